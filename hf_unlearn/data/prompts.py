# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts and answers as tokens: templates, and the seam between prompt and answer."""

import dataclasses
from collections.abc import Iterable

from datasets import Dataset

from ..errors import InputError
from ..runtime.files import sha256_json


@dataclasses.dataclass(frozen=True)
class QATemplate:
    """How a question becomes a prompt: `question_start + question + question_end + answer_start`, or a chat template.

    Spaces at the end of the prompt belong to the first word of the answer ("Answer:" + " Paris"), as byte-pair
    tokenizers expect; they are taken off the prompt and put in front of the answer.
    """

    question_start: str = "Question: "
    question_end: str = "\n"
    answer_start: str = "Answer: "
    answer_end: str = ""  # behind the answer, before the end-of-sequence token
    chat: bool = False  # use the tokenizer's chat template instead
    date_string: str = "10 Apr 2025"  # given to the chat template: Llama-3's insert today's date otherwise

    def prompt_and_answer(self, question: str, answer: str, tokenizer=None) -> tuple[str, str]:
        """The two texts that are tokenised separately; together they are the text that the model sees.

        The prompt has no space at its end (a chat template's is kept to the letter).
        """
        if not self.chat:
            text = f"{self.question_start}{question}{self.question_end}{self.answer_start}"
            prompt = text.rstrip(" ")
            return prompt, text[len(prompt) :] + answer + self.answer_end
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError(
                "a chat prompt needs a tokenizer with a chat template; set chat=False or another tokenizer"
            )
        messages = [{"role": "user", "content": question}]
        render = lambda messages, **kwargs: tokenizer.apply_chat_template(
            messages, tokenize=False, date_string=self.date_string, **kwargs
        )
        prompt = render(messages, add_generation_prompt=True)
        # Some templates (Llama-2) put a space between the prompt and the answer, most do not: ask the template.
        mark = "answer"
        following = render([*messages, {"role": "assistant", "content": mark}]).removeprefix(prompt)
        space = following[: following.find(mark)]
        return prompt, (space if space.isspace() else "") + answer + self.answer_end

    def fingerprint(self, tokenizer=None) -> str:
        """sha256 of all fields, and of the tokenizer's chat template where it is used. Every log stores it."""
        chat_template = tokenizer.chat_template if self.chat and tokenizer is not None else None
        return sha256_json({**dataclasses.asdict(self), "chat_template": chat_template})


def encode_qa(tokenizer, question: str, answer: str, template: QATemplate, max_length: int = 512) -> dict:
    """Tokens of one question and answer: `{"input_ids": list[int], "labels": list[int]}`, labels -100 on the prompt.

    Prompt and answer are tokenised separately, so that the labelled tokens of an answer do not depend on its question.
    The answer is tokenised as a continuation: after the prompt's last character, whose tokens are then dropped, which
    gives " Paris" for GPT-2's BPE and the same "▁Paris" as inside a sentence for SentencePiece. The end-of-sequence
    token is appended and labelled. What exceeds `max_length` tokens is cut off the end of the answer.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or the prompt alone fills `max_length` tokens.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token; set tokenizer.eos_token before tokenising answers"
        )
    prompt_text, answer_text = template.prompt_and_answer(question, answer, tokenizer)
    prompt = _encode_prompt_text(tokenizer, prompt_text, template)
    if len(prompt) >= max_length:
        raise InputError(
            f"a prompt of {len(prompt)} tokens leaves no room for its answer: raise max_length={max_length} "
            f"or shorten the question {question[:60]!r}"
        )
    answer_ids = _encode_continuation(tokenizer, prompt_text[-1:], answer_text) + [tokenizer.eos_token_id]
    return {
        "input_ids": (prompt + answer_ids)[:max_length],
        "labels": ([-100] * len(prompt) + answer_ids)[:max_length],
    }


def _encode_prompt_text(tokenizer, text: str, template: QATemplate) -> list[int]:
    # A chat template writes its own BOS; elsewhere the tokenizer's own rule holds, but an EOS never ends a prompt.
    ids = tokenizer(text, add_special_tokens=not template.chat)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not template.chat else ids


def _encode_continuation(tokenizer, before: str, text: str) -> list[int]:
    encode = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]
    anchor = encode(before)
    ids = encode(before + text)
    # The tokenizer may merge across the seam (":" and ")"): then the answer stands alone.
    return ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(text)


def tokenize_qa(dataset, tokenizer, template: QATemplate | None = None, max_length: int = 512):
    """A `datasets.Dataset` with columns input_ids, attention_mask and labels, a row for every row of `dataset`.

    Raises:
        InputError: no rows, a column question or answer is missing, or as `encode_qa` says.
    """
    template = template or QATemplate()
    check_columns(dataset, ("question", "answer"), "the dataset to tokenise")
    rows = [encode_qa(tokenizer, row["question"], row["answer"], template, max_length) for row in dataset]
    return Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) for row in rows],
            "labels": [row["labels"] for row in rows],
        }
    )


# The two prompts of Stanford Alpaca (Taori et al. 2023), without and with an input.
_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
ALPACA, ALPACA_INPUT = (
    QATemplate(f"{_ALPACA.format(middle)}\n\n### Instruction:\n", "\n\n### Response:", "")
    for middle in ("", ", paired with an input that provides further context")
)


def check_columns(rows: Iterable, columns: tuple[str, ...], where: str) -> None:
    """Refuse rows without one of `columns`, and no rows at all; `where` names them in the message."""
    if len(rows) == 0:
        raise InputError(f"{where} has no rows")
    present = list(rows[0])
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}; it has: {', '.join(present)}")

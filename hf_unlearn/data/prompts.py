# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts and answers as tokens: templates, chats, and the seam between prompt and answer."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset

from ..errors import InputError, first_line
from ..runtime.fields import check_fields
from ..runtime.files import sha256_json


logger = logging.getLogger(__name__)

# Stands for the answer while a chat template is asked what it writes around one.
MARK = "hf-unlearn-answer"


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
    chat: bool = False  # use the tokenizer's chat template instead; a turn ends as the template ends it
    date_string: str = "10 Apr 2025"  # given to the chat template: Llama-3's insert today's date otherwise
    system_prompt: str | None = None  # of a chat: its first turn, where the row has none of its own
    label_start: bool = False  # answer_start is learned too, as part of the answer
    skip_first: bool = False  # the answer's first token is not learned
    add_eos: bool = False  # of a chat: an end-of-sequence token behind the template's own end

    def prompt_and_answer(self, question: str, answer: str, tokenizer=None) -> tuple[str, str]:
        """The two texts that are tokenised separately; together they are the text that the model sees.

        The prompt has no space at its end (a chat template's is kept to the letter), and the answer of a chat has the
        end that the template gives it.
        """
        if self.chat:
            return self.chat_and_answer([{"role": "user", "content": question}], answer, tokenizer)
        before, begin = f"{self.question_start}{question}{self.question_end}", self.answer_start
        if not self.label_start:
            before, begin = before + begin, ""
        prompt = before.rstrip(" ")
        return prompt, before[len(prompt) :] + begin + answer + self.answer_end

    def chat_and_answer(self, turns: Sequence[Mapping], answer: str, tokenizer) -> tuple[str, str]:
        """The two texts of a chat that ends with the answer to `turns`, as the tokenizer's template writes them.

        What the template puts before an answer (an empty block of thoughts) stays, in the prompt. White space behind
        the template's end of a turn is left out: the model has stopped there.

        Raises:
            InputError: no chat template, or one that refuses the turns.
        """
        from jinja2.exceptions import TemplateError

        if tokenizer is None or not tokenizer.chat_template:
            raise InputError(
                "messages and chat=True need a tokenizer with a chat template: give rows of question and answer, or "
                "another tokenizer"
            )
        # A dataset's columns have an empty cell for what only other rows' turns have.
        turns = [{name: value for name, value in turn.items() if value is not None} for turn in turns]
        if self.system_prompt is not None and turns[0]["role"] != "system":
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        render = lambda turns, **kwargs: tokenizer.apply_chat_template(
            turns, tokenize=False, date_string=self.date_string, **kwargs
        )
        try:
            asked = render(turns, add_generation_prompt=True)
            whole = render([*turns, {"role": "assistant", "content": MARK}])
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise InputError(f"the chat template refuses turns of {roles}: {first_line(error)}") from error
        prompt, found, end = whole.rpartition(MARK)
        if not found:
            raise InputError("the chat template leaves the assistant's answer out: give the tokenizer another one")
        # Some templates (Llama-2) put a space between the prompt and the answer: it belongs to the first word.
        if prompt != asked:
            prompt, written = prompt.rstrip(" "), prompt
            answer = written[len(prompt) :] + answer
        if not self.add_eos:
            end = end.rstrip() or end or tokenizer.eos_token or ""  # a template that writes no end leaves it open
        return prompt, answer + self.answer_end + end

    def fingerprint(self, tokenizer=None) -> str:
        """sha256 of all fields, and of the tokenizer's chat template where it is used. Every log stores it."""
        chat_template = tokenizer.chat_template if self.chat and tokenizer is not None else None
        return sha256_json({**dataclasses.asdict(self), "chat_template": chat_template})


# The two prompts of Stanford Alpaca (Taori et al. 2023), without and with an input.
_ALPACA = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."
ALPACA, ALPACA_INPUT = (
    QATemplate(f"{_ALPACA.format(middle)}\n\n### Instruction:\n", "\n\n### Response:", "")
    for middle in ("", ", paired with an input that provides further context")
)

# Templates by name. Those of TOFU (Maini et al. 2024) and open-unlearning are these repositories' own, token for
# token: TOFU's Phi learns "Answer: " too, and open-unlearning, which counts a prompt's last space as a token of its
# own, never learns the first word of an answer behind "Answer: ".
PRESETS = {
    "question_answer": QATemplate(),
    "alpaca": ALPACA,
    "tofu_llama2": QATemplate("[INST] ", " [/INST]", ""),
    "tofu_phi": QATemplate(label_start=True),
    "open_unlearning": QATemplate(chat=True, system_prompt="You are a helpful assistant.", add_eos=True),
    "open_unlearning_gemma": QATemplate(chat=True, add_eos=True),
    "open_unlearning_llama2": QATemplate("[INST] ", " [/INST]", ""),
    "open_unlearning_phi": QATemplate(skip_first=True),
}


def make_template(
    template: str | Mapping | QATemplate | None = None,
    *,
    chat: bool = False,
    system_prompt: str | None = None,
    date_string: str | None = None,
) -> QATemplate:
    """A template by name (`PRESETS`), from a dict of `QATemplate`'s fields, or the default; with settings of a chat.

    Raises:
        InputError: an unknown name or field, a value of another type, or settings of a chat for a template that is
            none.
    """
    if isinstance(template, str):
        if template not in PRESETS:
            raise InputError(f"template={template!r}: choose one of {', '.join(PRESETS)}, or give a dict of fields")
        found = PRESETS[template]
    elif isinstance(template, QATemplate):
        found = template
    elif template is None or isinstance(template, Mapping):
        fields, given = [field.name for field in dataclasses.fields(QATemplate)], dict(template or {})
        if unknown := [name for name in given if name not in fields]:
            raise InputError(f"no field {unknown[0]}; there are {', '.join(fields)}")
        check_fields(QATemplate, given, {})
        found = QATemplate(**{"chat": chat} | given)
    else:
        raise InputError(f"template={template!r}: give a name ({', '.join(PRESETS)}) or a dict of fields")
    if chat and not found.chat:
        raise InputError("chat=True and a template that is no chat exclude each other: leave one of them out")
    given = {"system_prompt": system_prompt, "date_string": date_string}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not found.chat:
        raise InputError(f"{', '.join(given)} belongs to a chat: set chat=True, or leave it out")
    return dataclasses.replace(found, **given)


def one_bos(ids: list[int], tokenizer) -> list[int]:
    """The ids without a second beginning-of-sequence token, of a text that has brought its own."""
    bos = getattr(tokenizer, "bos_token_id", None)
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]
    return ids


def encode_qa(tokenizer, question: str, answer: str, template: QATemplate, max_length: int = 512) -> dict:
    """Tokens of one question and answer: `{"input_ids": list[int], "labels": list[int]}`, labels -100 on the prompt.

    Prompt and answer are tokenised separately, so that the labelled tokens of an answer do not depend on its question.
    The answer is tokenised as a continuation: after the prompt's last character, whose tokens are then dropped, which
    gives " Paris" for GPT-2's BPE and the same "▁Paris" as inside a sentence for SentencePiece. The end-of-sequence
    token is appended and labelled; the turn of a chat ends as its template ends it. What exceeds `max_length` tokens
    is cut off the end of the answer. With `skip_first` there are `prompt_ids` to generate from too.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or the prompt alone fills `max_length` tokens.
    """
    texts = template.prompt_and_answer(question, answer, tokenizer)
    return _cut(_encode(tokenizer, texts, template, max_length), max_length)


def encode_chat(tokenizer, messages: Sequence[Mapping], template: QATemplate, max_length: int = 512) -> dict:
    """Tokens of a chat as `encode_qa` gives them: labelled is the last turn, an assistant's, alone."""
    template = dataclasses.replace(template, chat=True)
    texts = template.chat_and_answer(messages[:-1], messages[-1]["content"], tokenizer)
    return _cut(_encode(tokenizer, texts, template, max_length), max_length)


def _cut(row: dict, max_length: int) -> dict:
    return {**row, **{name: row[name][:max_length] for name in ("input_ids", "labels")}}


def _encode(tokenizer, texts: tuple[str, str], template: QATemplate, max_length: int) -> dict:
    prompt_text, answer_text = texts
    # A chat template writes its own BOS; elsewhere the tokenizer's own rule holds, but an EOS never ends a prompt.
    prompt = one_bos(tokenizer(prompt_text, add_special_tokens=not template.chat)["input_ids"], tokenizer)
    eos = tokenizer.eos_token_id
    if prompt and prompt[-1] == eos and not template.chat:
        prompt = prompt[:-1]
    if len(prompt) >= max_length:
        raise InputError(
            f"a prompt of {len(prompt)} tokens leaves no room for its answer: raise max_length={max_length} "
            f"or shorten the question {prompt_text[:60]!r}"
        )
    answer = _encode_continuation(tokenizer, prompt_text[-1:], answer_text)
    if not template.chat or template.add_eos or not answer:
        if eos is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token; set tokenizer.eos_token before tokenising answers"
            )
        if not answer or answer[-1] != eos:
            answer = [*answer, eos]
    labels = [-100] * len(prompt) + answer
    row = {"input_ids": prompt + answer, "labels": labels}
    if template.skip_first:
        labels[len(prompt)] = -100
        # What open-unlearning generates from has the prompt's last spaces as a token of their own.
        spaces = answer_text[: len(answer_text) - len(answer_text.lstrip(" "))]
        row["prompt_ids"] = tokenizer(prompt_text + spaces)["input_ids"]
    return row


def _encode_continuation(tokenizer, before: str, text: str) -> list[int]:
    encode = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]
    anchor = encode(before)
    ids = encode(before + text)
    # The tokenizer may merge across the seam (":" and ")"): then the answer stands alone.
    return ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(text)


def tokenize_qa(dataset, tokenizer, template: QATemplate | None = None, max_length: int = 512):
    """A `datasets.Dataset` with columns input_ids, attention_mask and labels, a row for every row of `dataset`.

    Tokens that are cut off are counted in the log.

    Raises:
        InputError: no rows, a column question or answer is missing, or as `encode_qa` says.
    """
    check_columns(dataset, ("question", "answer"), "the dataset to tokenise")
    rows, cut_rows, cut_tokens = encode_rows(dataset, tokenizer, template or QATemplate(), max_length)
    if cut_rows:
        logger.warning(f"{cut_rows} of {len(rows)} answers are cut to {max_length} tokens: {cut_tokens} are left out")
    return with_masks(rows)


def encode_rows(rows: Iterable, tokenizer, template: QATemplate, max_length: int) -> tuple[list[dict], int, int]:
    """Rows of question and answer, or of messages, as tokens; how many rows were cut, and the tokens cut off."""
    encoded, cut = [], []
    chats = dataclasses.replace(template, chat=True)
    for row in rows:
        if "messages" in row:
            *turns, last = row["messages"]
            whole = _encode(tokenizer, chats.chat_and_answer(turns, last["content"], tokenizer), chats, max_length)
        else:
            texts = template.prompt_and_answer(row["question"], row["answer"], tokenizer)
            whole = _encode(tokenizer, texts, template, max_length)
        if (more := len(whole["input_ids"]) - max_length) > 0:
            cut.append(more)
        encoded.append(_cut(whole, max_length))
    return encoded, len(cut), sum(cut)


def with_masks(rows: Sequence[Mapping]) -> Dataset:
    """Rows of `input_ids` and `labels` as a `datasets.Dataset`, every token real."""
    return Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) for row in rows],
            "labels": [row["labels"] for row in rows],
        }
    )


def check_columns(rows: Iterable, columns: tuple[str, ...], where: str) -> None:
    """Refuse rows without one of `columns`, and no rows at all; `where` names them in the message."""
    if len(rows) == 0:
        raise InputError(f"{where} has no rows")
    present = list(rows[0])
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}; it has: {', '.join(present)}")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What did we break? The original model's own completions of harmless instructions, and where other models leave them.

The specificity evaluation of the K-FADE paper (section 4): completions of Alpaca instructions by the original model,
KL(original || unlearned) at every completion token, its quantiles (Figure 2), and the worst completions to read.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from datasets import Dataset

from ..data.prompts import ALPACA, ALPACA_INPUT, QATemplate, encode_qa
from ..errors import InputError
from .scoring import generate_ids, prompt_ids
from .specificity import KLResult


def generate_completions(
    model,
    tokenizer,
    instructions: Iterable[Mapping[str, str]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    template: QATemplate | Literal["alpaca", "chat"] | None = None,
    given: bool = False,
    max_length: int = 1024,
    progress: bool = False,
):
    """Completions of instructions as a `datasets.Dataset`, a row each, in their order, ready for `TokenKL`.

    Columns: input_ids (prompt and completion), labels (-100 on the prompt), prompt and completion (text). A completion
    ends with its EOS where the model wrote one.

    Args:
        model: the original model; it writes the completions, greedily. Not used when they are given.
        instructions (`Iterable[Mapping[str, str]]`): rows with instruction, input (or none), with `given` also output.
        template (`QATemplate` or `str`, *optional*): the prompt: "alpaca", "chat" (the tokenizer's chat template) or a
            `QATemplate` whose question is the instruction, a blank line and the input. By default "chat" where the
            tokenizer has a chat template.
        given (`bool`, *optional*, defaults to `False`): take each row's output as its completion, no model writes.
        max_length (`int`, *optional*, defaults to `1024`): tokens. Longer prompts are an error, longer outputs cut.

    Raises:
        InputError: no rows, a row without instruction (or output), a prompt that is too long, no EOS token.
    """
    encoded = []
    for number, row in enumerate(instructions):
        for column in ("instruction", *(["output"] if given else [])):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise InputError(f"instructions, row {number}: {column!r} is missing or empty; every row needs it")
        question, how = _question(row["instruction"], row.get("input") or "", template, tokenizer)
        encoded.append(encode_qa(tokenizer, question, row["output"] if given else "", how, max_length))
    if not encoded:
        raise InputError("there are no instructions to complete: give at least one row")
    prompts = [prompt_ids(row) for row in encoded]
    if given:
        completions = [row["input_ids"][len(prompt) :] for row, prompt in zip(encoded, prompts)]
    else:
        completions = generate_ids(
            model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
        )
    return Dataset.from_dict(
        {
            "input_ids": [prompt + new for prompt, new in zip(prompts, completions)],
            "labels": [[-100] * len(prompt) + new for prompt, new in zip(prompts, completions)],
            "prompt": tokenizer.batch_decode(prompts),
            "completion": ["".join(_pieces(tokenizer, *pair)).strip() for pair in zip(prompts, completions)],
        }
    )


def _question(instruction: str, context: str, template, tokenizer) -> tuple[str, QATemplate]:
    template = template or ("chat" if tokenizer.chat_template else "alpaca")
    if template == "alpaca":
        if not context.strip():
            return instruction, ALPACA
        return f"{instruction}\n\n### Input:\n{context}", ALPACA_INPUT
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    if template == "chat":
        return question, QATemplate(chat=True)
    if not isinstance(template, QATemplate):
        raise InputError(f"template={template!r}: choose alpaca, chat or a QATemplate")
    return question, template


def _pieces(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> list[str]:
    """The text that each of the new tokens adds, special tokens adding none.

    Decoded after the prompt's last token, for a first piece may lose its space; a character that several tokens make
    up belongs to the last of them.
    """
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ids = list(prompt[-1:])
    done, pieces = decode(ids), []
    for token in new:
        ids.append(token)
        text = decode(ids)
        whole = not text.endswith("\ufffd")
        pieces.append(text[len(done) :] if whole else "")
        done = text if whole else done
    return pieces


def worst_completions(result: KLResult, rows: Dataset, tokenizer, k: int = 10) -> list[dict]:
    """The k completions that the model left furthest, by their mean KL per token, worst first.

    Args:
        result (`KLResult`): measured on `rows`.
        rows (`Dataset`): of `generate_completions`, in the order in which they were measured.

    Returns:
        JSON-able dicts: row (its number), kl (mean), kl_max, tokens, prompt, completion, pieces (text and KL of every
        token) and marked, the completion with the KL of its hot spots in it, as in "use[[ mice 2.31]] for": tokens
        with at least half of the completion's largest.

    Raises:
        InputError: `rows` are not the rows of `result`.
    """
    counts = [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]
    if [count for count in counts if count] != result.sequence_tokens.tolist():
        raise InputError("these rows are not those that the KL was measured on, or not in that order: pass the same")
    measured = {number: kl for number, kl in enumerate(result.per_token.split(counts)) if len(kl)}
    worst = []
    for number in sorted(measured, key=lambda number: -float(measured[number].mean()))[:k]:
        row, kl = rows[number], measured[number].tolist()
        prompt = prompt_ids(row)
        pieces = _pieces(tokenizer, prompt, row["input_ids"][len(prompt) :])
        # The first token of a row is never predicted: a row without a prompt has one piece more than KLs.
        kl = [0.0] * (len(pieces) - len(kl)) + kl
        worst.append(
            {
                "row": number,
                "kl": float(measured[number].mean()),
                "kl_max": max(kl),
                "tokens": len(measured[number]),
                "prompt": row["prompt"],
                "completion": row["completion"],
                "pieces": [[text, value] for text, value in zip(pieces, kl)],
                "marked": _marked(pieces, kl, max(kl) / 2),
            }
        )
    return worst


def _marked(pieces: Sequence[str], kl: Sequence[float], threshold: float) -> str:
    # An end of sequence, or a part of a character, has no text of its own.
    show = lambda text: text or "…"
    hot = lambda value: value >= threshold > 0
    return "".join(f"[[{show(text)} {value:.2f}]]" if hot(value) else text for text, value in zip(pieces, kl)).strip()

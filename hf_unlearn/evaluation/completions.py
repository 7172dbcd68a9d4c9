# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What did we break? The original model's own completions of harmless instructions, and where other models leave them.

The specificity evaluation of the K-FADE paper (section 4): completions of Alpaca instructions by the original model,
KL(original || unlearned) at every completion token, its quantiles (Figure 2), and the worst completions to read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..data.collators import CausalCollator
from ..data.prompts import ALPACA, ALPACA_INPUT, QATemplate, encode_qa
from ..deltas import UpdateDelta
from ..errors import InputError
from ..runtime.loading import padding_id
from .scoring import generate_ids, prompt_ids
from .specificity import KLResult, TokenKL


def generate_completions(
    model,
    tokenizer,
    instructions: Iterable[Mapping[str, str]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    temperature: float = 0.0,
    seed: int = 0,
    template: QATemplate | Literal["alpaca", "chat"] | None = None,
    given: bool = False,
    max_length: int = 1024,
    progress: bool = False,
):
    """Completions of instructions as a `datasets.Dataset`, a row each, in their order, ready for `TokenKL`.

    Columns: input_ids (prompt and completion), labels (-100 on the prompt), prompt and completion (text). A completion
    ends with its EOS where the model wrote one.

    Args:
        model: the original model; it writes the completions. Not used when they are given.
        instructions: rows with instruction, and input where there is one; with `given` also output.
        temperature: 0 is greedy and the same every time; above 0 is drawn with `seed` in batches of `batch_size`.
        template: the prompt: "alpaca", "chat" (the tokenizer's chat template) or a `QATemplate` whose question is the
            instruction, a blank line and the input. By default "chat" where the tokenizer has a chat template.
        given: take each row's output as its completion, instead of letting the model write one.
        max_length: in tokens. Longer prompts are an error, longer given outputs are cut.

    Raises:
        InputError: no rows, a row without instruction (or output), a prompt that is too long, no EOS token.
    """
    from datasets import Dataset

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
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seed=seed,
            progress=progress,
        )
    return Dataset.from_dict(
        {
            "input_ids": [prompt + new for prompt, new in zip(prompts, completions)],
            "labels": [[-100] * len(prompt) + new for prompt, new in zip(prompts, completions)],
            "prompt": tokenizer.batch_decode(prompts),
            "completion": [_text_after(tokenizer, prompt, new) for prompt, new in zip(prompts, completions)],
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


def _text_after(tokenizer, prompt: Sequence[int], new: Sequence[int]) -> str:
    return "".join(_pieces(tokenizer, prompt, new)).strip()


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


def worst_completions(
    result: KLResult, rows, tokenizer, k: int = 10, by: Literal["mean", "sum", "max"] = "mean"
) -> list[dict]:
    """The k completions that the model left furthest, worst first.

    Args:
        result: measured on `rows`.
        rows: of `generate_completions`, in the order in which they were measured.
        by: what of a completion's per-token KL orders it.

    Returns:
        JSON-able dicts: row (its number), kl (mean), kl_max, tokens, prompt, completion, pieces (text and KL of every
        token) and marked, the completion with the KL of its hot spots in it, as in "use[[ mice 2.31]] for": tokens
        with at least half of the completion's largest.

    Raises:
        InputError: `rows` are not the rows of `result`, or an unknown `by`.
    """
    if by not in ("mean", "sum", "max"):
        raise InputError(f"by={by!r}: choose mean, sum or max")
    counts = [sum(label != -100 for label in labels[1:]) for labels in rows["labels"]]
    measured = [number for number, count in enumerate(counts) if count]
    counts = [count for count in counts if count]
    if counts != result.sequence_tokens.tolist():
        raise InputError("these rows are not those that the KL was measured on, or not in that order: pass the same")
    sequences = result.per_token.split(counts)
    score = {"mean": lambda kl: kl.mean(), "sum": lambda kl: kl.sum(), "max": lambda kl: kl.max()}[by]
    order = sorted(range(len(sequences)), key=lambda i: -float(score(sequences[i])))
    worst = []
    for i in order[:k]:
        row, kl = rows[measured[i]], sequences[i].tolist()
        prompt = prompt_ids(row)
        pieces = _pieces(tokenizer, prompt, row["input_ids"][len(prompt) :])
        # The first token of a row is never predicted: a row without a prompt has one piece more than KLs.
        kl = [0.0] * (len(pieces) - len(kl)) + kl
        worst.append(
            {
                "row": measured[i],
                "kl": float(sequences[i].mean()),
                "kl_max": max(kl),
                "tokens": len(sequences[i]),
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


@dataclass(frozen=True)
class SpecificityReport:
    """What `specificity_report` measured.

    Attributes:
        rows: one JSON-able dict a model: model, the columns of `KLResult.table_row`, and completions_sha256, the hash of
            the measured tokens: only rows of one hash can be compared.
        results: {label: `KLResult`}, in the order of `completions`.
        completions: the rows as they were measured, longest first.
    """

    rows: list[dict]
    results: dict[str, KLResult]
    completions: object

    def worst(self, label: str, tokenizer, k: int = 10, by: Literal["mean", "sum", "max"] = "mean") -> list[dict]:
        """`worst_completions` of one model."""
        return worst_completions(self.results[label], self.completions, tokenizer, k, by)

    def to_markdown(self) -> str:
        """A table in nats per token, and below it what was approximated."""
        names = ("mean", "median", "q90", "q99", "q99.9", "max", "nll_change")
        lines = ["| model | mean (95 %) | " + " | ".join([*names[1:-1], "NLL change"]) + " |", "|---|" + "---:|" * 7]
        for row in self.rows:
            low, high = row["mean_interval"]
            cells = [f"{row['mean']:.3g} ({low:.3g} to {high:.3g})", *(f"{row[name]:.3g}" for name in names[1:])]
            lines.append("| " + " | ".join([row["model"].replace("|", "\\|"), *cells]) + " |")
        first = self.rows[0]
        lines += ["", f"KL(original \\|\\| model), {first['completions']} completions, {first['tokens']} tokens."]
        for label, result in self.results.items():
            if result.approximation is not None:
                lines.append(f"- {label}: {result.approximation}")
        return "\n".join(lines)


def specificity_report(
    original,
    models: Mapping[str, object],
    completions,
    tokenizer,
    *,
    batch_size: int = 16,
    cache_bytes: int = 2**32,
    top_k: int | Literal["auto"] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SpecificityReport:
    """KL(original || model) on completions, for every model, with intervals, quantiles and what was approximated.

    Exact when the original's log-probabilities fit `cache_bytes` of the CPU's memory, or when all `models` are models:
    then the original runs beside each. An update is put into the original and taken out to the bit, so one copy of the
    model is enough; where the log-probabilities do not fit, its top k stand in for them (`TokenKL`) and the rows say
    how far that may be off.

    Args:
        models: {label: model, or `UpdateDelta` of `original`}.
        completions: rows of `generate_completions`, or any with input_ids and labels.
        top_k: force an approximation, or none of the above.
        seed: of the bootstrap.

    Raises:
        InputError: no models, an update that does not fit the original, or as `TokenKL` says.
    """
    from torch.utils.data import DataLoader

    from ..data.rows import fingerprint_rows

    if not models:
        raise InputError("no model to compare with the original: pass {label: model or UpdateDelta}")
    if top_k is None and any(isinstance(model, UpdateDelta) for model in models.values()):
        top_k = "auto"
    lengths = [len(ids) for ids in completions["input_ids"]]
    # Rows of one length together; the longest come first, so that a batch too large for the memory fails at once.
    completions = completions.select(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    loader = DataLoader(
        completions.select_columns(["input_ids", "labels"]),
        batch_size=batch_size,
        collate_fn=CausalCollator(padding_id(tokenizer)),
    )
    measure = TokenKL(original, loader, cache_bytes, top_k=top_k, seed=seed, progress=progress)
    results = {}
    for label, model in models.items():
        if isinstance(model, UpdateDelta):
            with model.applied_to(original):
                results[label] = measure(original, seed=seed)
        else:
            results[label] = measure(model, seed=seed)
    data = {"completions_sha256": fingerprint_rows(completions)}
    rows = [{"model": label, **result.table_row(seed=seed), **data} for label, result in results.items()]
    return SpecificityReport(rows, results, completions)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SQuAD's scores: answers from the logits of windows, exact match and F1 as the official scripts of v1.1 and v2.0."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from ..data.rows import with_span_labels
from ..data.squad import Windows
from .confidences import BATCH, encoder_outputs


BEST = 20  # starts and ends that are tried with each other, as transformers' own script does
LONGEST = 30  # tokens of an answer


class SquadOutputs(NamedTuple):
    """What a model says of N questions."""

    answers: list[str]  # "" for none
    log_confidences: np.ndarray  # (N,) of the mean probability of the answer's first and last token

    @property
    def confidences(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        return np.exp(self.log_confidences)


def squad_outputs(
    model, rows: Dataset, windows: Windows, padding: int, *, unanswerable: bool = False, batch_size: int = BATCH
) -> SquadOutputs:
    """Answers to all questions, and the confidence in the right ones.

    The answer is the span of the passage with the highest sum of logits over all windows of the question, of the
    `BEST` starts and ends of each, `LONGEST` tokens at most. The confidence is the mean probability of the first and
    the last token of the right answer, over the windows that hold it (over all, of the class token, where none does).

    Args:
        rows: `data.squad.load_squad`'s, which the windows were made of.
        padding: the id that fills short rows.
        unanswerable (`bool`, *optional*, defaults to `False`): no answer, "", where the class token has a higher sum
            in every window than the best span has anywhere (v2.0).

    Raises:
        NumericalError: outputs that are not finite.
    """
    count = len(rows)
    best, none = [(-np.inf, "")] * count, np.full(count, np.inf)
    found: list[list[tuple[bool, float]]] = [[] for _ in range(count)]
    data = with_span_labels(windows.rows)
    labels = np.array(data["labels"])[:, :, 0]
    contexts = rows["context"]
    for places, logits, _ in encoder_outputs(model, data, padding, batch_size):
        for place, (start, end) in zip(places, logits[:, :, 0].numpy(), strict=True):
            question, characters = int(windows.questions[place]), windows.offsets[place]
            start, end = start[: len(characters)], end[: len(characters)]
            right = np.exp([_log_softmax(start)[labels[place, 0]], _log_softmax(end)[labels[place, 1]]]).mean()
            found[question].append((bool(windows.answered[place]), float(right)))
            none[question] = min(none[question], start[0] + end[0])
            score, span = _best_span(start, end, characters)
            if span is not None and score > best[question][0]:
                best[question] = score, contexts[question][span]
    confidences = [np.mean([p for held, p in parts if held] or [p for _, p in parts]) for parts in found]
    answers = ["" if unanswerable and none[question] > score else text for question, (score, text) in enumerate(best)]
    return SquadOutputs(answers, np.log(np.maximum(confidences, 1e-300)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _best_span(start: np.ndarray, end: np.ndarray, characters: np.ndarray) -> tuple[float, slice | None]:
    """(sum of logits, characters) of the best span of one window; no span where it has none."""
    starts, ends = (np.argsort(-logits, kind="stable")[:BEST] for logits in (start, end))
    real = characters[:, 0] >= 0
    best, chosen = -np.inf, None
    for first in starts[real[starts]].tolist():
        for last in ends[real[ends]].tolist():
            if first <= last < first + LONGEST and start[first] + end[last] > best:
                best, chosen = float(start[first] + end[last]), slice(characters[first, 0], characters[last, 1])
    return best, chosen


def squad_scores(answers: Sequence[str], rows: Dataset) -> dict[str, float]:
    """`f1` and `exact` match, means over questions, each at most 1: of every question the best over its right answers.

    A question without an answer has one right answer, "" (v2.0).
    """
    f1, exact = [], []
    for answer, row in zip(answers, rows, strict=True):
        # As the official script of v2.0: right answers that are nothing but articles and punctuation do not count.
        right = [text for text in row["answers"]["text"] if normalize_answer(text)] or [""]
        f1.append(max(answer_f1(answer, text) for text in right))
        exact.append(max(normalize_answer(answer) == normalize_answer(text) for text in right))
    return {"f1": float(np.mean(f1)), "exact": float(np.mean(exact))}


def answer_f1(answer: str, right: str) -> float:
    """Harmonic mean of the shares of words that two answers have in common; 1 for two that are empty."""
    words, wanted = normalize_answer(answer).split(), normalize_answer(right).split()
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and further white space."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""How much of an answer a model still knows: the formulae of TOFU and open-unlearning, and their means.

Everything here is a pure function of numbers that a forward pass left behind (see `scoring.py`). Losses are in nats
per token, averaged over the answer's tokens *with* the final EOS; exact memorisation and extraction strength leave
the EOS out. Items without a value are None and are skipped by every mean.
"""

import functools
import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np


# Part of the definition of the published numbers: without it world-fact ratios move by up to 0.04.
EPSILON = 1e-10


def probability(avg_loss: float) -> float:
    """p(a|q) = exp(-L(a|q)), the length-normalised probability of an answer (TOFU, section 2.2.1)."""
    return math.exp(-avg_loss)


def normalised_probability(correct: float, wrong: Sequence[float]) -> float:
    """p(a) / (p(a) + sum_j p(a_j)): the answer's share among the options (TOFU: real authors and world facts)."""
    return correct / (correct + sum(wrong) + EPSILON)


def truth_ratio(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """R = exp(-mean_j L(a_j|q)) / exp(-L(a~|q)): wrong answers (geometric mean) over the correct one.

    `correct_loss` belongs to the paraphrase on forget and retain, to the answer itself on real authors and world
    facts. R falls towards 0 for a model that knows the answer.
    """
    return math.exp(-float(np.mean(wrong_losses))) / (math.exp(-correct_loss) + EPSILON)


def exact_memorization(correct: Sequence[bool]) -> float | None:
    """Share of teacher-forced argmax tokens that equal the answer's (EOS left out); None for an empty answer."""
    return float(np.mean(correct)) if len(correct) else None


def extraction_strength(correct: Sequence[bool]) -> float:
    """1 - k/n, k the shortest prefix after which every argmax token is right (Carlini et al. 2021, ES).

    `correct`: n booleans, EOS left out. As in open-unlearning k stops at n - 1, so that the floor is 1/n, the same
    as "only the last token is right"; an empty answer scores 0.
    """
    n = len(correct)
    if n == 0:
        return 0.0
    wrong = np.flatnonzero(~np.asarray(correct, dtype=bool))
    k = min(int(wrong[-1]) + 1, n - 1) if len(wrong) else 0
    return 1 - k / n


class UnicodeTokens:
    """Words of any script, for ROUGE of texts of which rouge_score's own pattern ([a-z0-9]) leaves nothing to compare.

    Of scripts that put no space between words (Chinese, Japanese, Thai ...) every character is a word.
    """

    WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")

    def tokenize(self, text: str) -> list[str]:
        words, apart = [], True
        for letter in unicodedata.normalize("NFKC", text).lower():
            kind = unicodedata.category(letter)[0]
            alone = kind == "L" and unicodedata.name(letter, "").startswith(self.WITHOUT_SPACES)
            if kind not in "LMN":
                apart = True
            elif kind == "M" and words:
                words[-1] += letter  # a mark belongs to the letter that it changes
            elif alone or apart:
                words.append(letter)
                apart = alone
            else:
                words[-1] += letter
        return words


@functools.cache
def _rouge_scorer(latin: bool):
    from rouge_score import rouge_scorer

    tokenizer = None if latin else UnicodeTokens()
    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=latin, tokenizer=tokenizer)


def _is_latin(text: str) -> bool:
    """Whether most letters of a text are ones that rouge_score keeps; its numbers are the published ones there."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith("LATIN") for letter in letters) >= len(letters)


def rouge(truth: str, generation: str) -> dict[str, float | None]:
    """ROUGE-1 recall, ROUGE-L F1 and ROUGE-L recall of `generation` against `truth`.

    As rouge_score has it, with the Porter stemmer; where the truth is not in Latin letters, of which rouge_score drops
    every one, of words of its own script (`UnicodeTokens`). None where the truth has no word at all.
    """
    latin = _is_latin(truth)
    if not UnicodeTokens().tokenize(truth):
        return dict.fromkeys(("rouge1_recall", "rougeL_f1", "rougeL_recall"))
    scores = _rouge_scorer(latin).score(truth, generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is not None; None when nothing is left."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def forget_truth_ratio_mean(ratios: Iterable[float | None]) -> float | None:
    """mean min(R, 1/R): 1 when right and wrong answers are equally likely (the aim on the forget set)."""
    return mean(None if r is None else min(r, 1 / (r + EPSILON)) for r in ratios)


def retain_truth_ratio_mean(ratios: Iterable[float | None]) -> float | None:
    """mean max(0, 1 - R): 1 when the right answer wins by far (retain, real authors, world facts)."""
    return mean(None if r is None else max(0.0, 1 - r) for r in ratios)


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """Model utility: the harmonic mean of its nine parts; 0 when one is 0, None when one is missing."""
    if not values or any(value is None for value in values):
        return None
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)

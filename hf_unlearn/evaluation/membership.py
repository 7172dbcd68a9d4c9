# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Attacks on confidences: can forget rows be told from rows that no model has seen, and a model from a retrained one?

SPE-Unlearn's tables print the share of forget rows that an attack calls members, with an arrow: lower is better. The
arrow misleads. A model retrained without the rows still has 0.75 (MNLI) or 0.93 (SST-2) in these tables, for most rows
that nobody has seen are answered with confidence too; what the attack can tell is how confident a model is, not what
it was trained on. A method that lowers the share further has made the model unsure of these very rows, which gives
them away as well. The goal is the retrained model's value, from either side, so tables put distances to that model
beside the share: of confidences and of predictions (`distances`), with what two retrained models of different seeds
differ by as the floor, and attacks whose chance is 0.5 (`attack`), with intervals.

Confidences are those of `evaluation.confidences`, of encoders; scores of language models are in `evaluation.privacy`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .bootstrap import EDGES
from .confidences import RowOutputs
from .privacy import auc


MOST_SHADOWS = 2000  # rows of each side that the attack's classifier is fitted on: its time grows with their square


def share_of_members(
    retain: Sequence[float], test: Sequence[float], forget: Sequence[float], seed: int = 0, most: int = MOST_SHADOWS
) -> float:
    """Share of forget rows that look like members: the MIA of SPE-Unlearn's tables (its section 4.1).

    A support vector machine (C = 3, radial basis, gamma "auto", as in the code of Liu et al. 2024, whom the paper
    cites; these report the complement) learns to tell the confidences of retain rows from those of test rows, as many
    of each as the smaller set has, `most` at most, drawn by `seed`, and is asked about the forget rows. All arguments
    are confidences in [0, 1], (N,) each.

    Raises:
        InputError: an empty set, or a confidence that is not finite.
    """
    from sklearn.svm import SVC

    sets = {"retain": retain, "test": test, "forget": forget}
    sets = {name: _checked(values, name) for name, values in sets.items()}
    count = min(len(sets["retain"]), len(sets["test"]), most)
    generator = np.random.default_rng(seed)
    shadows = [generator.choice(sets[name], count, replace=False) for name in ("retain", "test")]
    classifier = SVC(C=3, kernel="rbf", gamma="auto")
    classifier.fit(np.concatenate(shadows)[:, None], np.repeat([1, 0], count))
    return float(classifier.predict(sets["forget"][:, None]).mean())


class Distances(NamedTuple):
    """How far two models are apart on the same rows; 0 for the same model."""

    confidence: float  # mean absolute difference of the rows' confidences
    total_variation: float  # mean over rows of the total variation between predictions


def distances(model: RowOutputs, retrained: RowOutputs) -> Distances:
    """Distances of a model to another on the same rows, both in [0, 1].

    The total variation of a row is half the sum of absolute differences of class probabilities; between the normal
    distributions of variance 1 that outputs of a regression stand for, erf(|difference| / sqrt 8).

    Raises:
        InputError: other rows.
    """
    if len(model.labels) != len(retrained.labels) or (model.labels != retrained.labels).any():
        raise InputError("the two models were asked about other rows: give both the same")
    if model.is_regression:
        from scipy.special import erf

        variation = erf(np.abs(model.outputs[:, 0] - retrained.outputs[:, 0]) / np.sqrt(8))
    else:
        variation = np.abs(model.probabilities - retrained.probabilities).sum(1) / 2
    confidence = np.abs(model.confidences - retrained.confidences).mean()
    return Distances(float(confidence), float(variation.mean()))


class Attack(NamedTuple):
    """How well scores tell members from others: chance is an AUC of 0.5, and a true positive rate of the false one."""

    auc: float  # P(a member's score > another's), ties half
    interval: tuple[float, float]  # of the AUC, 95 % by bootstrap over rows of both sides
    tpr: float  # share of members that are found while at most `fpr` of the others are


def attack(
    members: Sequence[float], others: Sequence[float], fpr: float = 0.01, seed: int = 0, resamples: int = 500
) -> Attack:
    """How well a threshold on scores (high = like a member) tells forget rows from rows never trained on.

    Scores are log odds of confidences (`log_odds`), which do not saturate (Carlini et al. 2022):

    - the population attack (Ye et al. 2022): those of forget rows against those of test rows. A retrained model has an
      AUC of 0.5 but for chance, if the forget rows are like the others;
    - LiRA without shadow models: where a retrained model is at hand, it is the one model that each of the rows was
      left out of, and a score is the log odds less the retrained model's own: what is hard for every model no longer
      counts. With one such model its variance cannot be known, so this is the offline attack with one reference
      (Watson et al. 2022), an AUC of 0.5 again the goal.

    Raises:
        InputError: no scores of one side, or some that are not finite.
    """
    members, others = _checked(members, "forget"), _checked(others, "test")
    found = lambda a, b: auc(-a, -b)  # there a low score is a member's
    generator = np.random.default_rng(seed)
    draw = lambda scores: scores[generator.integers(len(scores), size=len(scores))]
    drawn = [found(draw(members), draw(others)) for _ in range(resamples)]
    low, high = np.quantile(drawn, EDGES)
    # The score that `allowed` of the others exceed at most.
    allowed = int(fpr * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return Attack(found(members, others), (float(low), float(high)), float((members > threshold).mean()))


def log_odds(outputs: RowOutputs) -> np.ndarray:
    """log p - log(1 - p) of the rows' confidences p, (N,), finite: p lies at least 1e-300 from 0 and 1e-16 from 1."""
    log_p = np.clip(outputs.log_confidences, np.log(1e-300), -1e-16)
    return log_p - np.log(-np.expm1(log_p))


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"the attack needs finite scores of {name} rows, and there are {len(values)}")
    return values

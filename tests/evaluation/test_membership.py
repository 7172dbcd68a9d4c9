# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Attacks on confidences against brute force and against samples whose answer is known; distances between models."""

import numpy as np
import pytest
from scipy import integrate, stats

from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.confidences import RowOutputs
from hf_unlearn.evaluation.membership import attack, distances, log_odds, share_of_members


def test_the_share_is_of_rows_called_members():
    """Members are sure, others are not: forget rows count as what they look like."""
    generator = np.random.default_rng(0)
    retain, test = generator.uniform(0.95, 1, 400), generator.uniform(0.3, 0.9, 150)
    assert share_of_members(retain, test, np.full(10, 0.99)) == 1
    assert share_of_members(retain, test, np.full(10, 0.5)) == 0
    assert share_of_members(retain, test, [0.99] * 3 + [0.4] * 7) == pytest.approx(0.3)
    # As many retain rows as there are test rows: the larger set does not win where the two are alike.
    mixed = generator.uniform(0, 1, 5000)
    assert 0.1 < share_of_members(mixed, mixed[:300], generator.uniform(0, 1, 400)) < 0.9


def test_the_classifier_is_that_of_the_paper(monkeypatch):
    import sklearn.svm

    seen = {}

    class Watched(sklearn.svm.SVC):
        def fit(self, features, labels):
            seen.update(self.get_params(), features=features, labels=labels)
            return super().fit(features, labels)

    monkeypatch.setattr(sklearn.svm, "SVC", Watched)
    generator = np.random.default_rng(1)
    retain, test = generator.uniform(size=50), generator.uniform(size=30)
    share_of_members(retain, test, [0.5], most=20)
    assert (seen["C"], seen["kernel"], seen["gamma"]) == (3, "rbf", "auto")
    assert seen["features"].shape == (40, 1) and seen["labels"].tolist() == [1] * 20 + [0] * 20
    assert set(seen["features"][:20, 0]) <= set(retain) and set(seen["features"][20:, 0]) <= set(test)


def test_an_attack_by_brute_force():
    generator = np.random.default_rng(2)
    members, others = generator.integers(0, 9, 40), generator.integers(-3, 8, 60)
    found = attack(members, others, fpr=0.05)
    assert found.auc == pytest.approx(np.mean([(m > o) + 0.5 * (m == o) for m in members for o in others]))
    allowed = [t for t in range(-5, 12) if (others > t).mean() <= 0.05]
    assert found.tpr == max((members > t).mean() for t in allowed)
    assert found.interval[0] < found.auc < found.interval[1]


def test_the_share_found_at_a_false_positive_rate():
    """Of a hundred others five may be taken for members, and no more: the threshold is the sixth highest."""
    others = np.arange(100.0)
    for members, share in (([94.5], 1), ([93.5], 0), ([94.0], 0), ([99.5, 94.1, 50.0, 0.0], 0.5)):
        assert attack(members, others, fpr=0.05, resamples=2).tpr == share
    assert attack([98.5, 99.5], others[:50], fpr=0.01, resamples=2).tpr == 1  # none of 50 may be


def test_the_interval_covers_the_truth():
    """Normal scores, one deviation apart, have an AUC of 0.760; in 60 trials some three miss it."""
    truth, covered = stats.norm.cdf(1 / np.sqrt(2)), 0
    for trial in range(60):
        generator = np.random.default_rng(trial)
        found = attack(generator.normal(1, 1, 80), generator.normal(0, 1, 120), seed=trial, resamples=200)
        covered += found.interval[0] <= truth <= found.interval[1]
    assert 51 <= covered <= 60


def outputs(values, labels, log_confidences=None):
    values, labels = np.asarray(values, float), np.asarray(labels)
    if log_confidences is None:
        log_confidences = np.zeros(len(labels))
    return RowOutputs(values, labels, np.asarray(log_confidences, float))


def test_distances():
    p = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    q = np.array([[0.1, 0.3, 0.6], [0.5, 0.25, 0.25]])
    with np.errstate(divide="ignore"):
        first = outputs(np.log(np.maximum(p, 1e-300)), [0, 1], np.log([0.5, 0.25]))
        second = outputs(np.log(np.maximum(q, 1e-300)) + 3, [0, 1], np.log([0.1, 0.75]))
    found = distances(first, second)
    assert found.confidence == pytest.approx((0.4 + 0.5) / 2) and found.total_variation == pytest.approx(0.45)
    assert distances(first, first) == (0, 0)
    values = distances(outputs([[1.0]], [2.0]), outputs([[2.7]], [2.0]))
    gap = lambda x: abs(stats.norm.pdf(x, 1.0) - stats.norm.pdf(x, 2.7)) / 2
    assert values.total_variation == pytest.approx(integrate.quad(gap, -10, 14)[0], abs=1e-6)
    with pytest.raises(InputError, match="other rows"):
        distances(first, outputs(p, [0, 2]))


def test_log_odds_do_not_saturate():
    sure = outputs(np.zeros((4, 2)), [0] * 4, [np.log(0.25), -1e-12, 0.0, -1e4])
    odds = log_odds(sure)
    assert odds[0] == pytest.approx(np.log(0.25 / 0.75)) and odds[1] == pytest.approx(12 * np.log(10), rel=1e-6)
    assert np.isfinite(odds).all() and odds[2] > odds[1] and odds[3] < -600


@pytest.mark.parametrize("values", [[], [float("nan")]])
def test_no_scores(values):
    with pytest.raises(InputError, match="finite scores of forget rows"):
        attack(values, [0.5])
    with pytest.raises(InputError, match="finite scores of test rows"):
        share_of_members([0.5], values, [0.5])

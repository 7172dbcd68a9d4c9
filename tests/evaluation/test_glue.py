# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Scores of GLUE's tasks against scikit-learn and scipy."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from hf_unlearn.evaluation.confidences import RowOutputs
from hf_unlearn.evaluation.glue import glue_scores


def outputs(values, labels):
    return RowOutputs(np.asarray(values, float), np.asarray(labels), np.zeros(len(labels)))


@pytest.mark.parametrize("classes", [2, 3])
def test_classes(classes):
    generator = np.random.default_rng(classes)
    logits, labels = generator.normal(size=(40, classes)), generator.integers(classes, size=40)
    found = glue_scores(outputs(logits, labels))
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    assert found.get("f1") == (pytest.approx(f1_score(labels, logits.argmax(1))) if classes == 2 else None)


def test_values_with_ties():
    generator = np.random.default_rng(0)
    labels = np.round(generator.uniform(0, 5, 60))
    values = np.round(labels + generator.normal(size=60), 1)
    found = glue_scores(outputs(values[:, None], labels))
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, labels).statistic)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, labels).statistic)


def test_nothing_to_correlate():
    assert glue_scores(outputs(np.ones((5, 1)), np.arange(5.0))) == {"spearman": 0.0, "pearson": 0.0}
    assert glue_scores(outputs([[1, 0], [1, 0]], [0, 0])) == {"accuracy": 1.0, "f1": 0.0}

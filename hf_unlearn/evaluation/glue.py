# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Scores of GLUE's tasks: accuracy and F1 of classes, Pearson's and Spearman's correlation of values."""

import numpy as np

from .confidences import RowOutputs


def glue_scores(outputs: RowOutputs) -> dict[str, float]:
    """Every score of rows by name, each at most 1.

    Of classes `accuracy`, of two classes also `f1`, of class 1 as GLUE has it; of values `spearman` and `pearson`. A
    correlation is 0 where labels or outputs are all alike, and so is the F1 where nothing is of class 1, nor taken for
    it.
    """
    predicted, labels = outputs.predictions, outputs.labels
    if outputs.is_regression:
        from scipy.stats import rankdata

        # Spearman's is Pearson's of ranks, equal values sharing the mean of theirs.
        return {
            "spearman": _pearson(rankdata(predicted), rankdata(labels)),
            "pearson": _pearson(predicted, labels),
        }
    scores = {"accuracy": float((predicted == labels).mean())}
    if outputs.outputs.shape[1] == 2:
        right = int((predicted & labels).sum())
        scores["f1"] = 2 * right / max(int(predicted.sum() + labels.sum()), 1)
    return scores


def _pearson(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size > 0 else 0.0

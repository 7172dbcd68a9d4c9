# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""95 % bootstrap intervals of means and quantiles over tokens, whole sequences resampled.

Tokens of one sequence are not independent, so a sequence is drawn with all of its tokens or not at all.
"""

from collections.abc import Sequence

import numpy as np


EDGES = (0.025, 0.975)


def mean_interval(sums: np.ndarray, tokens: np.ndarray, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(tokens); both (S,), one entry a sequence."""
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for i in range(resamples):  # one draw at a time: a (resamples, S) table would outgrow memory on large sets
        drawn = generator.integers(len(sums), size=len(sums))
        means[i] = sums[drawn].sum() / tokens[drawn].sum()
    low, high = np.quantile(means, EDGES)
    return float(low), float(high)


def quantile_bands(
    values: np.ndarray, tokens: np.ndarray, levels: Sequence[float], seed: int = 0, resamples: int = 500
) -> np.ndarray:
    """Quantiles of `values` with their percentile intervals, pointwise: (3, levels), rows value, low, high.

    `values` (N,) are grouped by sequence, `tokens` (S,) says how many each has, `levels` lie in [0, 1]. Quantiles are
    numpy's (linear between order statistics). Sorted once: a resample only changes how often each value counts, which
    costs O(N) instead of a sort.
    """
    values, levels = np.asarray(values, dtype=np.float64), np.asarray(levels, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    values, owner = values[order], np.repeat(np.arange(len(tokens)), tokens)[order]
    generator = np.random.default_rng(seed)
    drawn = np.empty((resamples, len(levels)))
    for i in range(resamples):
        times = np.bincount(generator.integers(len(tokens), size=len(tokens)), minlength=len(tokens))
        drawn[i] = _counted_quantiles(values, np.cumsum(times[owner]), levels)
    point = _counted_quantiles(values, np.arange(1, len(values) + 1), levels)
    return np.stack([point, *np.quantile(drawn, EDGES, axis=0)])


def _counted_quantiles(values: np.ndarray, ends: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles of the sorted values, each repeated as often as the running total `ends` says."""
    place = levels * (ends[-1] - 1)
    below = np.floor(place)
    above = np.minimum(below + 1, ends[-1] - 1)
    lower, upper = (values[np.searchsorted(ends, position, side="right")] for position in (below, above))
    return lower + (place - below) * (upper - lower)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Bootstrap bands, against resamples written out and the coverage that they promise."""

import numpy as np

from hf_unlearn.evaluation.bootstrap import quantile_bands


def test_quantile_bands_resample_whole_sequences():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 6, size=40)
    values = np.concatenate([generator.exponential(size=n) * generator.exponential() for n in tokens])
    levels = (0.0, 0.3, 0.5, 0.9, 1.0)
    bands = quantile_bands(values, tokens, levels, seed=3, resamples=300)
    np.testing.assert_allclose(bands[0], np.quantile(values, levels))
    # The same resamples, each written out and sorted.
    sequences, generator, drawn = np.split(values, np.cumsum(tokens)[:-1]), np.random.default_rng(3), []
    for _ in range(300):
        sample = np.concatenate([sequences[i] for i in generator.integers(40, size=40)])
        drawn.append(np.quantile(sample, levels))
    np.testing.assert_allclose(bands[1:], np.quantile(drawn, [0.025, 0.975], axis=0), atol=1e-12)
    assert (bands[1] <= bands[0]).all() and (bands[0] <= bands[2]).all()


def test_bands_cover_the_true_median():
    """Nominal 95 %: of 100 samples of independent sequences, 88 to 99 bands hold the truth."""
    held = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(size=80)
        _, low, high = quantile_bands(values, np.ones(80, dtype=int), [0.5], seed=seed, resamples=200)[:, 0]
        held += low <= np.log(2) <= high
    assert 88 <= held <= 99

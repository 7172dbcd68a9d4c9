# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Solves and norms: sums over weights, spectra, and what cannot be solved."""

import math
import warnings

import pytest
import torch

from hf_unlearn.errors import InputError, NumericalError
from tests.support.curvature import KIND_NAMES, fit_columns


def test_solve_refuses_what_it_cannot_do(model, data):
    curvature = fit_columns(model, data)
    name = curvature.names[0]
    g = torch.ones(12, 8)
    with pytest.raises(InputError, match="lm_head.weight has no curvature"):
        curvature.solve({"lm_head.weight": g}, 1e-3)
    with pytest.raises(InputError, match="expected shape"):
        curvature.norm({name: g.T})
    with pytest.raises(InputError, match="damping"):
        curvature.solve({name: g}, -1.0)
    with pytest.raises(NumericalError, match=name):
        curvature.solve({name: torch.full((12, 8), torch.nan)}, 1e-3)


def test_damping_below_precision_warns_once(tiny_llama, data):
    curvature = fit_columns(tiny_llama(), data)
    g = {name: torch.ones(target["shape"]) for name, target in curvature.metadata["targets"].items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature.solve(g, 1e-2)
    with pytest.warns(UserWarning, match=r"damping 1e-20 lies below .* of model\.layers\.\d\.mlp"):
        curvature.solve(g, 1e-20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature.solve(g, 1e-20)


def test_norm_adds_over_weights(model, data):
    curvature = fit_columns(model, data)
    steps = {name: torch.randn(model.get_parameter(name).shape).double() for name in curvature.names}
    parts = [curvature.norm({name: step}) ** 2 for name, step in steps.items()]
    assert curvature.norm(steps) == pytest.approx(math.sqrt(sum(parts)), rel=1e-12)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_spectrum_of_a_block(model, data, kind):
    curvature = fit_columns(model, data, kind=kind)
    name = curvature.names[0]
    values = (curvature._eigenvalues(name) * torch.ones(12, 8)).flatten()
    found = curvature.spectrum(name)
    assert found["size"] == 96 and found["largest"] == float(values.max())
    assert found["effective_rank"] == pytest.approx(float(values.sum() ** 2 / (values**2).sum()), rel=1e-12)
    assert found["condition"] == pytest.approx(float(values.max() / values[values > 0].min()), rel=1e-12)
    for tensor in curvature.tensors.values():
        tensor.zero_()
    assert curvature.spectrum(name) == {"size": 96, "largest": 0.0, "effective_rank": 0.0, "condition": math.inf}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Gradients at the logits: their covariance is the Hessian of the logits."""

import numpy as np
import pytest
import torch

from hf_unlearn.curvature import KFAC, Diagonal, make_curvature
from hf_unlearn.curvature import fisher as fisher_module
from tests.support.curvature import batches
from tests.support.curvature_cases import CASES, NAME, dense, small_llama


@pytest.mark.parametrize("fisher", ["sampled", "probe"])
def test_logit_gradients_have_the_covariance_of_the_logit_hessian(fisher):
    torch.manual_seed(0)
    logits, rows = torch.randn(1, 6, dtype=torch.float64) * 1.5, 200_000
    noise = torch.rand(rows, dtype=torch.float64) if fisher == "sampled" else torch.randint(2**62, (rows,))
    v = fisher_module.logit_gradients(logits.expand(rows, -1), noise, None, fisher)
    p = logits[0].softmax(-1)
    torch.testing.assert_close(v.T @ v / rows, torch.diag(p) - torch.outer(p, p), rtol=0, atol=2e-3)
    torch.testing.assert_close(v.sum(1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_class_without_probability_is_never_drawn():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]]).expand(3, -1)
    v = fisher_module.logit_gradients(
        logits, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64), None, "sampled"
    )
    assert (v[:, 2:] == 0).all() and (v[:, :2] < 0).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("fisher", ["sampled", "probe"])
def test_sampled_tends_to_exact(fisher):
    model = small_llama()
    name = NAME.format(0, "up_proj")
    ids = torch.randint(3, 11, (4, 5), generator=torch.Generator().manual_seed(0))
    exact = dense(KFAC().fit(model, batches(ids), fisher="exact", progress=False), name)
    errors = []
    for repeats in (5, 500):
        repeated = batches(ids.repeat(repeats, 1), size=500)
        block = dense(
            KFAC().fit(model, repeated, fisher=fisher, target_modules=["0.mlp.up_proj"], progress=False), name
        )
        errors.append(float((block - exact).norm() / exact.norm()))
    assert errors[1] < 0.06 and errors[1] < errors[0] / 3


def test_gradients_at_values_have_the_fisher_of_a_normal_distribution():
    values = torch.tensor([0.3, -2.0], dtype=torch.float64).repeat_interleave(100_000)[:, None]
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(len(values)))
    labels = torch.tensor(0.5).expand(len(values))
    v = {name: fisher_module.value_gradients(values, noise, labels, name) for name in fisher_module.FISHERS[:2]}
    assert abs(v["sampled"].mean()) < 0.01 and abs(v["sampled"].square().mean() - 1) < 0.01
    # A drawn label y has the gradient f - y.
    torch.testing.assert_close(v["sampled"], values - (values + noise[:, None]))
    assert v["probe"].unique().tolist() == [-1, 1] and abs(v["probe"].mean()) < 0.01
    torch.testing.assert_close(fisher_module.value_gradients(values, noise, labels, "empirical"), values - 0.5)


@pytest.mark.parametrize("kind", ["diagonal", "kfac", "ekfac"])
def test_a_probe_of_values_is_exact(kind):
    """One output a row: whatever its sign, its square is the row's."""
    case = CASES["values"]()
    exact, probe = (
        make_curvature(kind).fit(case.model, case.batches, fisher=fisher, progress=False)
        for fisher in ("exact", "probe")
    )
    for name in exact.names:
        torch.testing.assert_close(dense(probe, name), dense(exact, name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", ["values", "spans"])
@pytest.mark.parametrize("fisher", ["sampled", "probe"])
def test_sampled_values_and_spans_tend_to_exact(head, fisher):
    case = CASES[head]()
    fit = lambda data, fisher: Diagonal().fit(case.model, [data], fisher=fisher, progress=False)
    exact, errors = fit(case.columns, "exact"), []
    for repeats in (5, 500):
        columns = {name: value.repeat(repeats, *[1] * (value.dim() - 1)) for name, value in case.columns.items()}
        gap = lambda name, found: (found._eigenvalues(name) - exact._eigenvalues(name)).norm()
        found = fit(columns, fisher)
        errors.append(max(float(gap(name, found) / exact._eigenvalues(name).norm()) for name in exact.names))
    # Of values a probe has no error to lose.
    assert errors[1] < 0.08 and (errors[1] < errors[0] / 3 or errors[0] < 1e-9)

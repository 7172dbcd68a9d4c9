# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Gradients at the logits: their covariance is the Hessian of the logits."""

import pytest
import torch

from hf_unlearn.curvature import KFAC
from hf_unlearn.curvature import fisher as fisher_module
from tests.support.curvature import batches
from tests.support.curvature_cases import NAME, dense, small_llama


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

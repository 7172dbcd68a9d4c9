# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sums of weights and updates: one rounding, whatever the way."""

import pytest
import torch

from hf_unlearn.deltas.adding import add


def all_of(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_of_halves_is_that_of_fp32_rounded_once(dtype):
    base = all_of(dtype)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):  # every number with a hundred others of every size
        update = base[torch.randperm(len(base), generator=generator)]
        expected = (base.float() + update.float()).to(dtype)
        found = add(base, update, 1.0)
        assert torch.equal(found.isnan(), expected.isnan())
        assert torch.equal(found[~found.isnan()], expected[~expected.isnan()])


def test_zeros_keep_their_sign():
    zeros = torch.tensor([0.0, -0.0, 0.0, -0.0], dtype=torch.bfloat16)
    found = add(zeros, torch.tensor([0.0, 0.0, -0.0, -0.0], dtype=torch.bfloat16), 1.0)
    assert torch.signbit(found).tolist() == [False, False, False, True]


@pytest.mark.parametrize("scale", [1, 1.0, -1.0, 0.7])
@pytest.mark.parametrize("base", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("update", [torch.bfloat16, torch.float32])
def test_where_the_sum_goes_changes_nothing(base, update, scale):
    torch.manual_seed(0)
    weight, change = torch.randn(1000).to(base), torch.randn(1000).to(update)
    wide = torch.float64 if base == torch.float64 else torch.float32
    expected = (weight.to(wide) + scale * change.to(wide)).to(base)
    assert torch.equal(add(weight, change, scale), expected)
    copy = weight.clone()
    assert add(copy, change, scale, out=copy) is copy and torch.equal(copy, expected)

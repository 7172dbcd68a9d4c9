# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Groups of weights that share an input, and blocks of groups within a memory."""

import pytest
import torch

from hf_unlearn.errors import InputError
from tests.support.curvature import fit_columns, fitted, solutions


def test_shared_inputs_are_stored_once_and_equal_unshared(model, data):
    together = fit_columns(model, data, target_modules=r".*mlp\.(gate|up)_proj|.*self_attn\.[qkv]_proj")
    inputs = {name: target["input"] for name, target in together.metadata["targets"].items()}
    assert len(inputs) == 10 and len(set(inputs.values())) == 4
    alone = [fit_columns(model, data, target_modules=[name.removesuffix(".weight")]) for name in together.names]
    for step, one in zip(solutions(together), alone):
        g = {one.names[0]: torch.randn(step.shape, generator=torch.Generator().manual_seed(3)).double()}
        a, b = one.solve(g, 1e-3)[one.names[0]], together.solve(g, 1e-3)[one.names[0]]
        assert (a - b).norm() <= 1e-9 * a.norm()


def test_a_group_larger_than_the_memory_is_named():
    with pytest.raises(InputError, match=r"3,071 bytes, but model.layers.0.mlp.gate_proj.weight .* need 3,072"):
        fitted("kfac", max_factor_memory=3071)
    with pytest.raises(InputError, match="must be bytes, or a text such as '20GB', not 'much'"):
        fitted("kfac", max_factor_memory="much")

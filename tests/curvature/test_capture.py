# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a fit may not change of the model, and modules whose curvature cannot be captured."""

import pytest
import torch

from hf_unlearn.curvature import EKFAC
from hf_unlearn.errors import InputError
from tests.support.curvature import assert_same, batches, fit_columns


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
def test_gradient_checkpointing(model, data, use_reentrant, kind):
    reference = fit_columns(model, data, kind=kind)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.train()
    forwards = []
    handle = model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: forwards.append(1))
    curvature = fit_columns(model, data, kind=kind)
    handle.remove()
    # One that shows which weights share inputs; in each pass twice for each of three batches, and two that try whether
    # the head can be split off.
    assert len(forwards) == 1 + (2 * 3 + 2) * (2 if kind == "ekfac" else 1)
    assert_same(reference, curvature, tolerance=1e-12)
    assert all(module.training for module in model.modules())


def test_checkpointing_with_one_late_target(model, data):
    """No saved tensor of the lowest layer needs its target's input: it is never recomputed in the backward."""
    reference = fit_columns(model, data, target_modules=["0.mlp.down_proj"])
    model.gradient_checkpointing_enable()
    assert_same(reference, fit_columns(model, data, target_modules=["0.mlp.down_proj"]), tolerance=1e-12)


def test_model_is_left_as_found_also_after_an_error(model, data):
    model.train()
    model.model.layers[1].eval()
    model.lm_head.weight.requires_grad_(False)
    model.gradient_checkpointing_enable()
    weights = {key: value.clone() for key, value in model.state_dict().items()}

    def state():
        return (
            [module.training for module in model.modules()],
            [parameter.requires_grad for parameter in model.parameters()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
            ["forward" in vars(module) for module in model.modules()],
            [parameter.grad for parameter in model.parameters()],
        )

    before = state()
    fit_columns(model, data)
    assert state() == before

    class Broken:
        def __iter__(self):
            yield batches(*data[:2], mask=data[2])[0]
            raise RuntimeError("disk gone")

    with pytest.raises(RuntimeError, match="disk gone"):
        EKFAC().fit(model, Broken(), progress=False)
    assert state() == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
def test_a_module_that_never_runs_is_named(model, data, kind):
    model.extra = torch.nn.Linear(8, 8).double()
    with pytest.raises(InputError, match="extra.weight: its module never ran"):
        fit_columns(model, data, kind=kind, target_modules=["up_proj", "extra"])


def test_a_module_that_runs_twice_is_named(model, data):
    model.model.layers[1].mlp.up_proj.forward = model.model.layers[0].mlp.up_proj.__call__
    with pytest.raises(InputError, match="layers.0.mlp.up_proj.weight: its module runs several times"):
        fit_columns(model, data, target_modules=["0.mlp.up_proj"])

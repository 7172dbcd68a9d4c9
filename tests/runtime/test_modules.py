# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings that hold for a while: all of them are what they were afterwards."""

import pytest
import torch
from torch import nn

from hf_unlearn.runtime.modules import trainable


def required(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_only_the_given_parameters_are_trainable_and_every_flag_comes_back():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    before = required(model)
    assert before == ["0.weight", "1.weight", "1.bias"]
    # An iterator is read once; a parameter that was frozen may be among the chosen.
    with trainable(model, iter([model[0].bias, model[1].weight])):
        assert required(model) == ["0.bias", "1.weight"]
        model(torch.ones(1, 2)).sum().backward()
    assert required(model) == before
    assert model[0].bias.grad is not None and model[0].weight.grad is None
    with trainable(model):
        assert required(model) == []
    assert required(model) == before


def test_flags_come_back_after_an_error():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"), trainable(model, [model.bias]):
        raise RuntimeError("inside")
    assert required(model) == ["weight"]
    # On entry too: integers cannot require gradients.
    model.quantised = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(RuntimeError, match="floating point"), trainable(model, model.parameters()):
        pytest.fail("entered")
    assert required(model) == ["weight"]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""How many parameters an adapter tunes, and their values in the pretrained model."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_unlearn import BatchNormTuningConfig, KeyValuePromptConfig
from hf_unlearn.errors import InputError
from hf_unlearn.tuners import initial_parameters, parameter_share, print_parameter_share
from tests.support.tuners import CASES, HEAD, make_resnet, make_vit, nudge, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.mark.parametrize("name", CASES)
def test_initial_parameters_are_the_pretrained_model(name):
    make, config = CASES[name]
    model = get_peft_model(make(), config())
    start = {name: dict(model.named_parameters())[name].detach().clone() for name in tuned_names(model)}
    nudge(model)
    initial = initial_parameters(model)
    assert initial.keys() == start.keys()
    assert all(torch.equal(initial[name], start[name]) for name in start)
    with pytest.raises(InputError, match="no adapter named 'missing'"):
        initial_parameters(model, "missing")
    lora = get_peft_model(make_vit(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="does not keep the values"):
        initial_parameters(lora)


def test_parameter_share(capsys):
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    norms = sum(2 * m.num_features for m in make_resnet().modules() if isinstance(m, nn.BatchNorm2d))
    total = sum(parameter.numel() for parameter in make_resnet().parameters())
    head = 3 * 8 + 3
    assert parameter_share(model) == (norms + head, total, 100 * (norms + head) / total)
    print_parameter_share(model)
    assert (
        capsys.readouterr().out
        == f"tuned parameters: {norms + head} of {total:,} ({100 * (norms + head) / total:.2f} %)\n"
    )
    prompts = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=3))
    total = sum(parameter.numel() for parameter in make_vit().parameters())
    assert parameter_share(prompts)[:2] == (2 * 2 * 3 * 16, total)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Pixel borders: added to the image, and where they lie."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_unlearn import BorderPromptConfig
from hf_unlearn.tuners.border_prompt import border_places
from tests.support.tuners import IMAGES, logits, make_resnet, make_vit, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.mark.parametrize("make", [make_vit, make_resnet])
def test_border_is_added_and_the_interior_untouched(make):
    model = get_peft_model(make(), BorderPromptConfig(border=3, image_size=[16, 16], init_std=1.0))
    name = next(name for name in tuned_names(model))
    pixels = dict(model.named_parameters())[name].detach()
    frame = torch.zeros(3, 16, 16)
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[3:13, 3:13] = False
    frame[:, mask] = pixels
    assert pixels.shape == (3, 16 * 16 - 10 * 10) and tuned_names(model) == [name]
    assert torch.equal(logits(model), make()(IMAGES + frame).logits)
    seen = []
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model)
    assert torch.equal(seen[0][..., 3:13, 3:13], IMAGES[..., 3:13, 3:13])
    assert torch.equal(logits(model.unload()), logits(make()))


def test_border_places_of_oblong_images():
    assert border_places(4, 5, 1).tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    assert BorderPromptConfig(border=1, image_size=[4, 5]).image_size == [4, 5]

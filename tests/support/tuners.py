# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What tests of the tuners share: tiny models, a configuration for each tuner, and how to compare."""

import torch
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_unlearn import BatchNormTuningConfig, BorderPromptConfig, KeyValuePromptConfig
from hf_unlearn.tuners.key_value_prompt import KeyValuePromptLayer


IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, patch_size=4,
        **{"image_size": 16, "num_labels": 3, **kwargs},
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def make_resnet(seed=0):
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        model.train()(IMAGES)  # statistics that are not 0 and 1
    return model.eval()


HEAD = {"modules_to_save": ["classifier"]}
CASES = {
    "batch_norm": (make_resnet, lambda: BatchNormTuningConfig(**HEAD)),
    "key_value_prompt": (make_vit, lambda: KeyValuePromptConfig(num_prompts=3, init_std=1.0, **HEAD)),
    "border_prompt-vit": (make_vit, lambda: BorderPromptConfig(border=3, **HEAD)),
    "border_prompt-resnet": (make_resnet, lambda: BorderPromptConfig(border=3, image_size=16, **HEAD)),
}


@torch.no_grad()
def logits(model):
    return model.eval()(pixel_values=IMAGES).logits


@torch.no_grad()
def nudge(model, seed=1):
    """Move every parameter that trains; returns the outputs after it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return logits(model)


def prompt_layers(model):
    """Its attention modules with key/value prompts, in order."""
    return [module for module in model.modules() if isinstance(module, KeyValuePromptLayer)]


def tuned_names(model):
    """Names of the parameters that train, in order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]

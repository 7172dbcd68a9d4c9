# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A border prompt in a model."""

from torch import nn

from ...errors import InputError
from ..base import UnmergeableTuner
from .layer import BorderPromptLayer


class BorderPromptModel(UnmergeableTuner):
    """Wraps the first convolution of a model, the one that sees the image: one way for ViT and ResNet."""

    prefix = "border_prompt_"
    tuner_layer_cls = BorderPromptLayer
    targets = "2d convolution of the image"

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d)

    def default_targets(self, candidates: dict[str, nn.Module]) -> list[str]:
        return list(candidates)[:1]

    def _prepare_adapter_config(self, peft_config, model_config: dict):
        if peft_config.image_size is None:
            if not model_config.get("image_size"):
                raise InputError("the model's config does not tell the size of its images: give image_size")
            peft_config.set_image_size(model_config["image_size"])
        return super()._prepare_adapter_config(peft_config, model_config)

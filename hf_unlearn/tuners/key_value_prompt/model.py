# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Key/value prompts in a model."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..base import UnmergeableTuner
from .attention import attention_forward
from .layer import KeyValuePromptLayer, check_implementation, head_shape


class KeyValuePromptModel(UnmergeableTuner):
    """Wraps every attention module that goes through transformers' attention interface."""

    prefix = "key_value_prompt_"
    tuner_layer_cls = KeyValuePromptLayer
    targets = "attention on transformers' attention interface"

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return attention_forward(module) is not None and hasattr(module, "config")

    def check_target(self, name: str, module: nn.Module):
        head_shape(module)
        layer = self.model.get_submodule(name)
        config = layer.model_config if isinstance(layer, BaseTunerLayer) else module.config
        check_implementation(config._attn_implementation or "eager", name, module)

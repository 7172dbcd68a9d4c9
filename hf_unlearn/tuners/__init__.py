# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""PEFT methods whose few parameters Fast-NTK and LMEraser move: BatchNorm, key/value prompts, pixel borders."""

from ..peft_types import add_peft_type
from .batch_norm import BatchNormTuningConfig, BatchNormTuningLayer, BatchNormTuningModel, export_as_ln_tuning
from .border_prompt import BorderPromptConfig, BorderPromptLayer, BorderPromptModel
from .key_value_prompt import KeyValuePromptConfig, KeyValuePromptLayer, KeyValuePromptModel
from .shares import initial_parameters, parameter_share, print_parameter_share


add_peft_type("batch_norm_tuning", BatchNormTuningConfig, BatchNormTuningModel)
add_peft_type("key_value_prompt", KeyValuePromptConfig, KeyValuePromptModel)
add_peft_type("border_prompt", BorderPromptConfig, BorderPromptModel)

__all__ = [
    "BatchNormTuningConfig",
    "BatchNormTuningLayer",
    "BatchNormTuningModel",
    "BorderPromptConfig",
    "BorderPromptLayer",
    "BorderPromptModel",
    "KeyValuePromptConfig",
    "KeyValuePromptLayer",
    "KeyValuePromptModel",
    "export_as_ln_tuning",
    "initial_parameters",
    "parameter_share",
    "print_parameter_share",
]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of a run that do not belong to one method."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..curvature.layout import parse_bytes
from ..errors import InputError


def setting(default, text: str):
    """A field with the text that `HfArgumentParser` shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class UnlearnConfig(TrainingArguments):
    r"""
    Arguments of [`UnlearnTrainer`]: all of `transformers.TrainingArguments`, and these.

    Args:
        max_length (`int`, *optional*, defaults to `512`):
            Rows are cut to this many tokens when the trainer tokenises them.
        curvature_batch_size (`int`, *optional*, defaults to `8`):
            Retain sequences per forward pass while a curvature is fitted. Changes memory and speed, not the result.
        max_factor_memory (`int` or `str`, *optional*):
            Bytes, or a text such as `"20GB"`, of curvature that a process may hold on its device; what does not fit is
            fitted in several blocks of layers, one after another. See [`~curvature.Curvature.fit`].
        curvature_save_steps (`int`, *optional*, defaults to `100`):
            Retain batches after which a curvature fit writes its sums to `output_dir`, so that a run which is killed
            goes on inside the fit. Each time as many bytes are written as the factors have. 0 turns it off.
        kl_rows (`int`, *optional*, defaults to `64`):
            Retain rows on which KL(original || unlearned) is measured after a natural-gradient step; 0 turns it off.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` when the model is given by its name or folder.
    """

    # A row of an unlearning batch is a pair of rows, which no signature of a model lists.
    remove_unused_columns: bool | None = setting(False, "Drop columns the model does not take.")
    logging_steps: float = setting(1, "Log every X updates steps.")
    max_length: int = setting(512, "Rows are cut to this many tokens.")
    curvature_batch_size: int = setting(8, "Retain sequences per pass of a curvature fit.")
    max_factor_memory: str | None = setting(None, "Curvature that a process may hold on its device, such as 20GB.")
    curvature_save_steps: int = setting(100, "Retain batches after which a fit writes its sums; 0: off.")
    # A half-made update is nobody's business: only `save_model` and `push_to_hub` publish.
    hub_strategy: str = setting("end", "When to push to the Hub.")
    kl_rows: int = setting(64, "Retain rows on which the KL is measured after a step; 0: off.")
    model_init_kwargs: dict | None = setting(None, "Keyword arguments of from_pretrained, for a model given by name.")

    def __post_init__(self):
        super().__post_init__()
        parse_bytes(self.max_factor_memory)
        if self.curvature_save_steps < 0:
            raise InputError(f"curvature_save_steps must be 0 (off) or more, not {self.curvature_save_steps}")

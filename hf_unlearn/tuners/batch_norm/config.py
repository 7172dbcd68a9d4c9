# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of BatchNorm tuning."""

from dataclasses import dataclass

from peft import PeftConfig
from peft.utils import PeftType


@dataclass
class BatchNormTuningConfig(PeftConfig):
    """Train the weight and bias of every batch normalisation (Fast-NTK, arXiv:2312.14923, figure 1, left).

    Args:
        target_modules (`list[str]` or `str`, *optional*): Names or a pattern of the layers; all by default.
        exclude_modules (`list[str]` or `str`, *optional*): Names or a pattern of layers to leave alone.
        modules_to_save (`list[str]`, *optional*): Modules trained and saved too, as a rule the head: `["classifier"]`.
        update_running_stats (`bool`, defaults to `False`): Normalise with the batch's statistics in training and move
            the adapter's copy of the running ones. By default the pretrained ones are used in training too, so that a
            sample's output depends on no other, as Fast-NTK needs. The base layer's statistics never move.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    update_running_stats: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BATCH_NORM_TUNING

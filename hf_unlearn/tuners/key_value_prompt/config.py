# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of key/value prompts."""

from dataclasses import dataclass

from peft.utils import PeftType

from ...errors import InputError
from ..base import PromptConfig


@dataclass
class KeyValuePromptConfig(PromptConfig):
    """Append learned keys p_K and values p_V in every attention block (Fast-NTK, arXiv:2312.14923, figure 1, right).

    Args:
        num_prompts (`int`, defaults to 10): Length of p_K and p_V, the paper's.
        init_std (`float`, defaults to 0.02): Standard deviation of the normal that they are drawn from.
        init_seed (`int`, defaults to 0): Seed of the draw, which also depends on the name of the block.
        target_modules (`list[str]` or `str`, *optional*): Names or a pattern of attention modules; all by default.
        exclude_modules (`list[str]` or `str`, *optional*): Names or a pattern of modules to leave alone.
        modules_to_save (`list[str]`, *optional*): Modules trained and saved too, as a rule the head: `["classifier"]`.

    Raises:
        InputError: no prompts, or a negative standard deviation.
    """

    num_prompts: int = 10
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.KEY_VALUE_PROMPT
        if self.num_prompts < 1:
            raise InputError(f"num_prompts must be at least 1, not {self.num_prompts}")

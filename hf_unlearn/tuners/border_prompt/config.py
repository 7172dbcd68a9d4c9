# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of border prompts."""

from dataclasses import dataclass

from peft.utils import PeftType

from ...errors import InputError
from ..base import PromptConfig


@dataclass
class BorderPromptConfig(PromptConfig):
    """Add a learned border to every image: x + p, p zero inside (LMEraser, arXiv:2404.11056, equation 5).

    The paper's definition 1 says that the border is laid over the image and its equation 5 that it is added; adding is
    what is done here (a prompt of zeros is the pretrained model).

    Args:
        border (`int`, defaults to 30): Width in pixels, the paper's (of 224).
        image_size (`int` or `list[int]`, *optional*): Height and width of the images as the model gets them; one
            number for square ones. The model's `config.image_size` when left out.
        init_std (`float`, defaults to 0.0): Standard deviation of the border's draw; 0 is the pretrained model.
        init_seed (`int`, defaults to 0): Seed of the draw.
        target_modules (`list[str]` or `str`, *optional*): The convolution that sees the image; the first by default.
        exclude_modules (`list[str]` or `str`, *optional*): Names or a pattern of modules to leave alone.
        modules_to_save (`list[str]`, *optional*): Modules trained and saved too, as a rule the head: `["classifier"]`.

    Raises:
        InputError: a border that leaves no image, or a negative standard deviation.
    """

    border: int = 30
    image_size: int | list[int] | None = None

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.BORDER_PROMPT
        if self.border < 1:
            raise InputError(f"border must be at least 1 pixel, not {self.border}")
        if self.image_size is not None:
            self.set_image_size(self.image_size)

    def set_image_size(self, size: int | list[int] | tuple[int, int]):
        """Take the size of the images: a number, or (height, width)."""
        height, width = (size, size) if isinstance(size, int) else size
        if 2 * self.border >= min(height, width):
            raise InputError(
                f"a border of {self.border} leaves nothing of {height} x {width} images: it must be below "
                f"{(min(height, width) + 1) // 2}"
            )
        self.image_size = [height, width]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A learned border of pixels added to every image."""

from dataclasses import dataclass

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.utils import PeftType
from torch import Tensor, nn

from ..errors import InputError
from .base import PromptConfig, UnmergeableLayer, UnmergeableTuner


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


class BorderPromptLayer(nn.Module, UnmergeableLayer):
    """Adds the borders of the active adapters to the image, then runs the convolution.

    A border is one parameter (channels, pixels), its pixels in the order of rows; the interior passes untouched.
    """

    adapter_layer_names = ("border_prompt_pixels",)
    other_param_names = ("border_prompt_places", "image_size")
    cannot_merge = (
        "a border prompt changes the image, not the weights, and cannot be merged: keep the adapter, or unload() to "
        "get the base model"
    )

    def __init__(self, base_layer: nn.Conv2d, name: str):
        super().__init__()
        self.base_layer, self.name = base_layer, name
        self.border_prompt_pixels = nn.ParameterDict()
        # Follows from the config, so it is not saved.
        self.border_prompt_places = BufferDict(persistent=False)
        self.image_size: dict[str, tuple[int, int]] = {}
        self._active_adapter, self.merged_adapters = [], []
        self.train(base_layer.training)

    def update_layer(self, adapter_name: str, config: BorderPromptConfig):
        """Add an adapter: a border of N(0, init_std^2), zeros by default."""
        height, width = config.image_size
        places = border_places(height, width, config.border)
        generator = torch.Generator().manual_seed(config.init_seed)
        pixels = torch.randn(self.base_layer.in_channels, len(places), generator=generator) * config.init_std
        self.border_prompt_pixels[adapter_name] = nn.Parameter(pixels)
        self.border_prompt_places[adapter_name] = places
        self.image_size[adapter_name] = (height, width)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def initial_parameters(self, adapter_name: str) -> dict[str, Tensor]:
        """Zeros, the border of the pretrained model, by the name of the tuned one."""
        return {f"border_prompt_pixels.{adapter_name}": torch.zeros_like(self.border_prompt_pixels[adapter_name])}

    def forward(self, images: Tensor) -> Tensor:
        if not self.disable_adapters:
            for name in self.active_adapters:
                if name in self.border_prompt_pixels:
                    images = self._with_border(images, name)
        return self.base_layer(images)

    def _with_border(self, images: Tensor, name: str) -> Tensor:
        if tuple(images.shape[-2:]) != self.image_size[name]:
            found, wanted = (" x ".join(map(str, size)) for size in (images.shape[-2:], self.image_size[name]))
            raise InputError(f"the border prompt is for images of {wanted}, these are {found}: resize them")
        pixels = self.border_prompt_pixels[name].to(images).expand(len(images), -1, -1)
        return images.flatten(2).index_add(2, self.border_prompt_places[name], pixels).view_as(images)


def border_places(height: int, width: int, border: int) -> Tensor:
    """(pixels,) indices into a flattened image of those closer than `border` to an edge, in order."""
    inside = torch.zeros(height, width, dtype=torch.bool)
    inside[border : height - border, border : width - border] = True
    return (~inside).flatten().nonzero().squeeze(1)


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

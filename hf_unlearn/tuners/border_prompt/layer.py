# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A convolution that adds a learned border to the image it sees."""

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from ...errors import InputError
from ..base import UnmergeableLayer
from .config import BorderPromptConfig


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

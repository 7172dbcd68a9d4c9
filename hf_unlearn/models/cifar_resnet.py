# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""ResNets of the CIFAR experiments (He et al. 2016, section 4.2): 20, 32, 44, 56 or 110 layers on 32 x 32 images."""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ..errors import InputError


class CifarResNetConfig(PreTrainedConfig):
    r"""
    Args:
        depth (`int`, defaults to 20): Layers with weights: 6 n + 2, three stages of n blocks of two convolutions.
        num_channels (`int`, defaults to 3): Channels of an image.
        width (`int`, defaults to 16): Channels of the first stage; each later stage has twice as many.
        image_size (`int`, defaults to 32): Side of an image.
    """

    model_type = "cifar_resnet"

    def __init__(self, depth: int = 20, num_channels: int = 3, width: int = 16, image_size: int = 32, **kwargs):
        if (depth - 2) % 6 or depth < 8:
            raise InputError(f"depth must be 6 n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
        self.depth, self.num_channels, self.width, self.image_size = depth, num_channels, width, image_size
        kwargs.setdefault("num_labels", 10)
        super().__init__(**kwargs)


class Block(nn.Module):
    """Two 3 x 3 convolutions. Where the size changes the shortcut is a subsampled, zero-padded identity (option A)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.added:
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return (out + x).relu()


class CifarResNetForImageClassification(PreTrainedModel):
    """Images `pixel_values` (B, channels, H, W) to `.logits` (B, num_labels)."""

    config_class = CifarResNetConfig
    main_input_name = "pixel_values"
    base_model_prefix = "resnet"

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        width = config.width
        self.conv1 = nn.Conv2d(config.num_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before = width
        for stage, channels in enumerate((width, 2 * width, 4 * width), 1):
            blocks = []
            for number in range((config.depth - 2) // 6):
                blocks.append(Block(before, channels, 2 if number == 0 and stage > 1 else 1))
                before = channels
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(before, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ImageClassifierOutput:
        x = self.bn1(self.conv1(pixel_values)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        logits = self.linear(x.mean((2, 3)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @torch.no_grad()
    def reset_head(self, num_labels: int, seed: int = 0) -> "CifarResNetForImageClassification":
        """Put a new, randomly initialised head for another set of classes in; returns the model."""
        self.linear = nn.Linear(self.linear.in_features, num_labels)
        generator = torch.Generator().manual_seed(seed)
        bound = self.linear.in_features**-0.5
        for parameter in self.linear.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
        self.config.num_labels = num_labels
        return self


def load_cifar_resnet(source: str | Path) -> CifarResNetForImageClassification:
    """A model from a folder of `save_pretrained`, or from a file with a bare state dict of these names, in eval mode.

    Depth, width and number of classes of a bare file are read from its tensors.

    Raises:
        InputError: no such file, or tensors of another architecture.
    """
    source = Path(source)
    if source.is_dir():
        return CifarResNetForImageClassification.from_pretrained(source).eval()
    if not source.is_file():
        raise InputError(f"no such weights: {source}")
    tensors = {name.removeprefix("module."): tensor for name, tensor in load_file(source).items()}
    try:
        blocks = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layer1."))
        width, channels = tensors["conv1.weight"].shape[:2]
        labels = len(tensors["linear.weight"])
        config = CifarResNetConfig(6 * blocks + 2, channels, width, num_labels=labels)
        model = CifarResNetForImageClassification(config)
        # Counters that older files do not hold; evaluation does not read them.
        missing = set(model.state_dict()) - set(tensors)
        tensors |= {name: torch.tensor(0) for name in missing if name.endswith("num_batches_tracked")}
        model.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{source.name} holds no CIFAR ResNet: {' '.join(str(error).split())[:200]}") from error
    return model.eval()


AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig, exist_ok=True)
AutoModelForImageClassification.register(CifarResNetConfig, CifarResNetForImageClassification, exist_ok=True)

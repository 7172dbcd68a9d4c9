# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A batch normalisation with tuned copies beside it."""

import copy
import warnings

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InputError
from ..base import TypedTunerLayer
from .config import BatchNormTuningConfig


class BatchNormTuningLayer(nn.Module, TypedTunerLayer):
    """Runs the active adapter's copy of a batch normalisation; the copy keeps statistics of its own.

    The pretrained layer never changes, and is in evaluation mode while it is wrapped, so that a disabled adapter gives
    the base model in training mode too.
    """

    adapter_layer_names = ("batch_norm_tuning_layers",)
    other_param_names = ("update_running_stats",)

    def __init__(self, base_layer: _BatchNorm, name: str):
        super().__init__()
        self.base_layer, self.name = base_layer, name
        self.batch_norm_tuning_layers = nn.ModuleDict()
        self.update_running_stats: dict[str, bool] = {}
        self._active_adapter, self.merged_adapters = [], []
        self.train(base_layer.training)

    def update_layer(self, adapter_name: str, config: BatchNormTuningConfig):
        """Add an adapter: a copy of the pretrained layer."""
        self.batch_norm_tuning_layers[adapter_name] = copy.deepcopy(self.pretrained)
        self.update_running_stats[adapter_name] = config.update_running_stats
        self.train(self.training)

    @property
    def pretrained(self) -> _BatchNorm:
        """The layer of the pretrained model; merging swaps it with the adapter's copy."""
        return self.batch_norm_tuning_layers[self.merged_adapters[0]] if self.merged else self.base_layer

    def initial_parameters(self, adapter_name: str) -> dict[str, Tensor]:
        """Weight and bias of the pretrained layer, by the names of the adapter's."""
        path = "base_layer" if adapter_name in self.merged_adapters else f"batch_norm_tuning_layers.{adapter_name}"
        return {f"{path}.weight": self.pretrained.weight, f"{path}.bias": self.pretrained.bias}

    def train(self, mode: bool = True):
        # Trainer calls model.train() at every step; running statistics stay where they are unless asked.
        super().train(mode)
        self.base_layer.eval()
        for name, layer in self.batch_norm_tuning_layers.items():
            layer.train(mode and self.update_running_stats[name] and name not in self.merged_adapters)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged or not self.active_adapters:
            return self.base_layer(x)
        if len(self.active_adapters) > 1:
            raise InputError(f"{self.name} has {len(self.active_adapters)} active BatchNorm adapters: activate one")
        return self.batch_norm_tuning_layers[self.active_adapters[0]](x)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None):
        """Put the adapter's copy in place of the pretrained layer, which is kept for `unmerge`.

        Raises:
            InputError: more than one adapter.
            ValueError: `safe_merge`, and a value is not finite.
        """
        adapter_names = check_adapters_to_merge(self, adapter_names)
        if not adapter_names:
            return
        if len(adapter_names) > 1 or self.merged:
            raise InputError("one BatchNorm adapter can be merged at a time: unmerge first, or name one")
        tuned = self.batch_norm_tuning_layers[adapter_names[0]]
        if safe_merge and not all(torch.isfinite(tensor).all() for tensor in tuned.state_dict().values()):
            raise ValueError(f"NaNs detected in the merged weights. The adapter {adapter_names[0]} seems to be broken")
        self.batch_norm_tuning_layers[adapter_names[0]], self.base_layer = self.base_layer, tuned
        self.merged_adapters.append(adapter_names[0])
        self.train(self.training)

    def unmerge(self):
        """Put the pretrained layer back."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        name = self.merged_adapters.pop()
        self.base_layer, self.batch_norm_tuning_layers[name] = self.batch_norm_tuning_layers[name], self.base_layer
        self.train(self.training)

    def release(self):
        """The base layer leaves the wrapper in the mode that the model is in."""
        self.base_layer.train(self.training)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tuning of the affine parameters of batch normalisation, and its export to a format that PEFT reads alone."""

import copy
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils import PeftType
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..runtime.files import read_json, write_json, write_safetensors
from ..runtime.folders import staged_folder
from .base import TypedTuner, TypedTunerLayer


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


class BatchNormTuningModel(TypedTuner):
    """Wraps every batch normalisation of a model."""

    prefix = "batch_norm_tuning_"
    tuner_layer_cls = BatchNormTuningLayer
    targets = "batch normalisation"

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return isinstance(module, _BatchNorm)

    def check_target(self, name: str, module: nn.Module):
        if not module.affine:
            raise InputError(f"{name} has no weight and bias to tune (affine=False): put it into exclude_modules")
        if module.running_mean is None:
            raise InputError(
                f"{name} keeps no running statistics, so outputs depend on the batch: put it into exclude_modules"
            )

    @classmethod
    def _get_adapter_state_dict(cls, model, config, adapter_name, state_dict, unwanted_adapter_names):
        if any(isinstance(layer, BatchNormTuningLayer) and layer.merged for layer in model.modules()):
            raise InputError("a merged BatchNorm adapter stands in the base's place: unmerge_adapter() before saving")
        return super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True):
        # The copies stay in the dtype of the layers that they replace: batch_norm takes one dtype.
        pass


def export_as_ln_tuning(model: PeftModel, folder: str | Path, adapter_name: str = "default") -> Path:
    """Save a BatchNorm adapter as PEFT's own LN_TUNING, which copies layers whole: PEFT alone loads it.

    The outputs are the same to the bit. What is lost is the training rule: PEFT's layer moves its statistics then.

    Args:
        model (`PeftModel`): with the adapter.
        folder (`str` or `Path`): made when absent; the adapter's files alone are written.
        adapter_name (`str`, defaults to `"default"`): the adapter.

    Raises:
        InputError: no such adapter, one of another type, or a merged one.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, BatchNormTuningConfig):
        raise InputError(f"the model has no BatchNorm adapter named {adapter_name!r} to export")
    with tempfile.TemporaryDirectory() as own, staged_folder(folder) as staging:
        model.save_pretrained(own, selected_adapters=[adapter_name])
        saved = Path(own) if adapter_name == "default" else Path(own) / adapter_name
        settings = read_json(saved / "adapter_config.json") | {"peft_type": PeftType.LN_TUNING.value}
        del settings["update_running_stats"]
        tensors = {
            name.replace(".batch_norm_tuning_layers.", ".ln_tuning_layers."): tensor
            for name, tensor in load_file(saved / "adapter_model.safetensors").items()
        }
        write_json(staging / "adapter_config.json", settings)
        write_safetensors(staging / "adapter_model.safetensors", tensors, {"format": "pt"})
    return Path(folder)

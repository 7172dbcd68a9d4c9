# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""BatchNorm tuning of a model, and its export to a format that PEFT reads alone."""

import tempfile
from pathlib import Path

from peft import PeftModel
from peft.utils import PeftType
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import InputError
from ...runtime.files import read_json, staged_folder, write_json, write_safetensors
from ..base import TypedTuner
from .config import BatchNormTuningConfig
from .layer import BatchNormTuningLayer


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

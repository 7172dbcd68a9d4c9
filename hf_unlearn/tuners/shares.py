# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Counts of the parameters that an adapter tunes, and their values in the pretrained model."""

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from ..errors import InputError
from .base import TypedTunerLayer


def parameter_share(model: nn.Module) -> tuple[int, int, float]:
    """(parameters that train, parameters of the model without adapters, the former as a percentage of the latter).

    The "#Params ratio" of Fast-NTK's tables: BatchNorm and head of ResNet-110 are 8,746 of 1,727,962, 0.51 %. Copies
    that adapters keep of a module are no part of the total.
    """
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    tuned = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    added = set()
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, ModulesToSaveWrapper)):
            kept = module.base_layer if isinstance(module, BaseTunerLayer) else module.original_module
            added |= {id(parameter) for parameter in module.parameters()} - {id(p) for p in kept.parameters()}
    total = sum(parameter.numel() for key, parameter in parameters.items() if key not in added)
    return tuned, total, 100 * tuned / total


def print_parameter_share(model: nn.Module):
    """Print `parameter_share` as one line."""
    tuned, total, percent = parameter_share(model)
    print(f"tuned parameters: {tuned:,} of {total:,} ({percent:.2f} %)")


def initial_parameters(model: nn.Module, adapter_name: str = "default") -> dict[str, Tensor]:
    """Values at the pretrained model of everything that an adapter tunes, by `named_parameters()` name.

    BatchNorm: the base layer's weight and bias. Prompts: those that training started from. Border: zeros. Modules to
    save (a head): the original module. These are w0, where Fast-NTK linearises.

    Raises:
        InputError: no such adapter, or one of a type that does not keep its initial values.
    """
    initial = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            values = dict(module.original_module.named_parameters(f"modules_to_save.{adapter_name}"))
        elif isinstance(module, BaseTunerLayer) and adapter_name in module._get_available_adapters():
            if not isinstance(module, TypedTunerLayer):
                raise InputError(f"{path} ({type(module).__name__}) does not keep the values its adapter started from")
            values = module.initial_parameters(adapter_name)
        else:
            continue
        initial |= {f"{path}.{name}" if path else name: value.detach() for name, value in values.items()}
    if not initial:
        raise InputError(f"the model has no adapter named {adapter_name!r}")
    return initial

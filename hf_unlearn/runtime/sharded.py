# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Parameters that FSDP2 (`fully_shard`) has spread over processes: read whole, and written from whole values."""

import contextlib
import itertools
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def is_dtensor(tensor: Tensor) -> bool:
    # A tensor can be one only when its module is loaded; importing it here would cost every command half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of the model needs other processes, which hold parts of its weights."""
    return any(map(is_dtensor, model.parameters()))


def reshard(model: nn.Module):
    """Put back the parts: a forward without a backward leaves the outermost weights whole, and settings are lost."""
    module = sys.modules.get("torch.distributed.fsdp")
    for one in model.modules() if module is not None else ():
        if isinstance(one, module.FSDPModule):
            one.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one. Collective for a sharded one."""
    return tensor.detach().full_tensor() if is_dtensor(tensor) else tensor


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, known to every process, on the device of a parameter; this process's part if that is sharded."""
    tensor = tensor.to(parameter.device)
    if is_dtensor(tensor) or not is_dtensor(parameter):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # No process need tell the others: each cuts its part out of its own copy.
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole_on_cpu(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Copies, each whole, one by one. Collective for sharded ones; without `keep` for the others' sake alone."""
    copies = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            copies[name] = full.to("cpu", copy=True)
    return copies


@contextlib.contextmanager
def temporary_weights(model: nn.Module, tensors: Mapping[str, Tensor]):
    """The model with these values of parameters and buffers, by name; its own afterwards, also after an error.

    They may be whole, or parts where the parameter is one. Weights that FSDP2 has gathered, and keeps, would hide what
    is written into the parts: they are given up before and after.
    """
    reshard(model)
    both = itertools.chain(model.named_parameters(), model.named_buffers())
    named = {name: tensor for name, tensor in both if name in tensors}
    own = {name: tensor.detach().clone() for name, tensor in named.items()}
    try:
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(placed_like(tensors[name], tensor))
        yield
    finally:
        reshard(model)
        with torch.no_grad():
            for name, tensor in named.items():
                tensor.copy_(own[name])

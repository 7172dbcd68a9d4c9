# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Parameters that FSDP2 (`fully_shard`) has spread over processes: read whole, and written from whole values."""

import sys

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
    """Put back the parts: a forward without a backward leaves the outermost weights whole, where settings do not last."""
    module = sys.modules.get("torch.distributed.fsdp")
    for one in model.modules() if module is not None else ():
        if isinstance(one, module.FSDPModule):
            one.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of a sharded one. Collective for a sharded one."""
    return tensor.detach().full_tensor() if is_dtensor(tensor) else tensor


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, known to every process, on the device of a parameter; this process's part if that is sharded."""
    if is_dtensor(tensor) or not is_dtensor(parameter):
        return tensor.to(parameter.device)
    from torch.distributed.tensor import distribute_tensor

    # No process need tell the others: each cuts its part out of its own copy.
    return distribute_tensor(
        tensor.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def all_finite(tensor: Tensor) -> bool:
    """Whether this process's part of the tensor is finite everywhere."""
    return bool(torch.isfinite(tensor.to_local() if is_dtensor(tensor) else tensor).all())

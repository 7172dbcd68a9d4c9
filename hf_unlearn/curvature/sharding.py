# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature on many processes: who has which data, one reduction, and whose eigendecomposition it is."""

from collections.abc import Mapping

import torch
from torch import Tensor


def rank_and_size(accelerator) -> tuple[int, int]:
    return (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)


def all_reduce(tensors: Mapping[str, Tensor], accelerator):
    """Sum each tensor over the processes, in place and in sorted name order, so that all of them agree on the order."""
    if rank_and_size(accelerator)[1] > 1:
        for name in sorted(tensors):
            torch.distributed.all_reduce(tensors[name])


def agree(value, accelerator):
    """The first value that is not empty among the processes: what those without data could not see."""
    if rank_and_size(accelerator)[1] == 1:
        return value
    from accelerate.utils import gather_object

    return next((other for other in gather_object([value]) if other), value)


def assign(costs: Mapping[str, float], size: int) -> dict[str, int]:
    """Name -> rank: the costliest first, each to the process with the least work so far."""
    load, owners = [0.0] * size, {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = load.index(min(load))
        load[owners[name]] += costs[name]
    return owners

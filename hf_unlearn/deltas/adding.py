# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sum of a weight and its update, and the checks before it."""

import logging
import math
from collections.abc import Mapping

import torch

from ..errors import InputError
from ..runtime.checkpoints import shorten
from ..runtime.files import sha256_tensor


logger = logging.getLogger(__name__)


def add(base: torch.Tensor, update: torch.Tensor, scale: float) -> torch.Tensor:
    wide = torch.promote_types(base.dtype, torch.float32)
    return (base.detach().to(wide) + scale * update.to(wide)).to(base.dtype)


def is_base(config: Mapping, name: str, tensor: torch.Tensor) -> bool:
    expected = config.get("base_sha256", {}).get(name)
    return expected is None or sha256_tensor(tensor) == expected


def warn_of_other_base(config: Mapping, names: list[str]):
    if names:
        logger.warning(
            f"{len(names)} of the tensors are not the ones this update was made from (other weights or another dtype; "
            f"base: {config.get('base_model') or 'unknown'}): {shorten(names)}. Expected on a fine-tuned checkpoint; "
            "evaluate the result again."
        )


def check_scale(scale: float):
    if not math.isfinite(scale):
        raise InputError(f"scale must be a finite number, not {scale}")


def check_targets(updates: Mapping[str, torch.Size], targets: Mapping[str, tuple[torch.Size, torch.dtype]]):
    missing = [name for name in updates if name not in targets]
    if missing:
        raise InputError(
            f"the model has no tensor {shorten(missing)}; the update belongs to another architecture or to other "
            "names (compare with `hf-unlearn inspect`)"
        )
    for name, shape in updates.items():
        target, dtype = targets[name]
        if tuple(target) != tuple(shape):
            raise InputError(f"{name} has shape {tuple(target)} in the model and {tuple(shape)} in the update")
        if not dtype.is_floating_point or dtype.itemsize < 2:
            raise InputError(f"{name} is stored as {dtype}; apply the update to the model before it is quantised")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sum of a weight and its update, and the checks before it."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping

import torch

from ..errors import InputError
from ..runtime.checkpoints import shorten
from ..runtime.files import sha256_tensor


logger = logging.getLogger(__name__)


def add(base: torch.Tensor, update: torch.Tensor, scale: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """`base + scale * update`, formed in fp32 (fp64 for an fp64 base) and rounded once to the base's dtype.

    Args:
        out (`torch.Tensor`, *optional*): where the sum goes; the base itself may be it.
    """
    base = base.detach()
    # A sum of two tensors of half precision is formed in fp32 by torch itself, in a third of the time.
    if scale == 1 and base.dtype == update.dtype:
        return torch.add(base, update, out=out)
    wide = torch.promote_types(base.dtype, torch.float32)
    result = (base.to(wide) + scale * update.to(wide)).to(base.dtype)
    return result if out is None else out.copy_(result)


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


def destinations(
    names: Iterable[str],
    update_of: Callable[[str], torch.Tensor],
    known: list[list[str]] | None,
    ties: list[list[str]],
    place: Callable[[str], str] = lambda name: name,
) -> dict[str, str]:
    """{name in a model: name in the update} of every weight that an update moves, copies of tied ones too.

    Args:
        names: tensors of the update.
        update_of: gives one of them.
        known: groups of names that were one weight where the update was made; None: not recorded.
        ties: groups of names that are one weight in the model.
        place: gives the model's name for a name of the update.

    Raises:
        InputError: names are one weight in the model and were two where the update was made.
    """
    copies = {name: group for group in known or [] for name in group}
    found = {place(copy): name for name in names for copy in copies.get(name, [name])}
    for group in ties:
        origins = list(dict.fromkeys(found[name] for name in group if name in found))
        if not origins:
            continue
        alike = all(torch.equal(update_of(origins[0]), update_of(other)) for other in origins[1:])
        whole = known is None or origins[0] in copies or all(name in found for name in group)
        if not (alike and whole):
            raise InputError(
                f"{shorten(group)} are one tied weight in this model, and two where the update was made: it fits a "
                "model with tie_word_embeddings=False"
            )
        found |= dict.fromkeys(group, origins[0])
    return found


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

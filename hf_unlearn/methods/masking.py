# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Masks of methods: given, read from a folder, or chosen when a run begins; and what they keep of each weight."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.rows import longest_first, sample_rows
from ..errors import InputError
from ..runtime.fields import Range, check_fields
from ..structure.heads import KINDS, Structures, find_structures
from ..structure.mask import StructureMask
from ..structure.search import IMPORTANCES, choose_mask
from ..structure.statistics import mask_statistics, summed_gradients
from ..structure.wanda import refine
from .base import Run


BY_LOT = ("random", "shuffled")
CHOICES = (*IMPORTANCES, *BY_LOT)


@dataclass
class MaskSettings:
    """How a mask is chosen: the mapping that `mask=` of a method takes.

    Args:
        sparsity (`float`, defaults to `0.9`): share of the structures that stay frozen.
        structures (`list[str]`, defaults to `["heads", "filters"]`): what is chosen from.
        importance (`str`, defaults to `"mlr"`): a name of `structure.search.IMPORTANCES`, `"random"` for as many
            structures by lot, or `"shuffled"` for as many heads and as many filters as `"mlr"` chooses, by lot.
        rearrange (`bool`, defaults to `True`): one round of swaps within each layer.
        wanda_sparsity (`float`, *optional*): share of the chosen structures' entries that stay frozen too.
        samples (`int`, *optional*): retain rows that are measured (a seeded choice); all by default.

    Raises:
        InputError: a value out of range.
    """

    sparsity: float = 0.9
    structures: list[str] | tuple[str, ...] = KINDS
    importance: str = "mlr"
    rearrange: bool = True
    wanda_sparsity: float | None = None
    samples: int | None = None

    def __post_init__(self):
        allowed = {
            "sparsity": Range(least=0, below=1),
            "wanda_sparsity": Range(least=0, below=1),
            "importance": CHOICES,
            "samples": Range(least=1),
        }
        check_fields(type(self), dataclasses.asdict(self), allowed)
        if not self.structures or not set(self.structures) <= set(KINDS):
            raise InputError(f"structures must be some of {' and '.join(KINDS)}, not {list(self.structures)}")

    @classmethod
    def read(cls, given: Mapping) -> "MaskSettings":
        """From a mapping.

        Raises:
            InputError: a name that is no field, or as the class.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if unknown := [str(name) for name in given if name not in names]:
            raise InputError(f"mask: {', '.join(unknown)} is no setting of a mask; there are {', '.join(names)}")
        return cls(**given)


Mask = StructureMask | Mapping | str | Path


def check_mask(mask: Mask | None):
    """Refuse, before any work, what is no mask.

    Raises:
        InputError: another type, or settings that are none.
    """
    if isinstance(mask, Mapping):
        MaskSettings.read(mask)
    elif mask is not None and not isinstance(mask, StructureMask | str | Path):
        raise InputError(
            f"mask must be a StructureMask, its folder, or settings such as {{'sparsity': 0.9}}, not {mask!r}"
        )


def check_unfrozen(model: nn.Module, mask: StructureMask):
    """Refuse a mask of weights that the run may not change.

    Raises:
        InputError: with their number, and the first of them.
    """
    if frozen := [name for name in mask.names if not model.get_parameter(name).requires_grad]:
        raise InputError(
            f"{frozen[0]} is frozen ({len(frozen)} such parameters of the mask): unfreeze it with requires_grad_"
        )


def mask_of(mask: Mask, run: Run, model: nn.Module) -> StructureMask:
    """The mask of a run: the one given, if it is of this model; the one in a folder; or one chosen by settings.

    Raises:
        InputError: a mask of another model, or as `choose_mask`.
    """
    if isinstance(mask, Mapping):
        return chosen_mask(MaskSettings.read(mask), run, model, find_structures(model))
    return _given_mask(mask, model)


def planned_mask(mask: Mask, model: nn.Module) -> StructureMask:
    """The mask that a plan reckons with; the model may be on the meta device.

    One that settings will choose is taken as spread evenly over the layers.

    Raises:
        InputError: as `mask_of`.
    """
    if isinstance(mask, Mapping):
        settings = MaskSettings.read(mask)
        return StructureMask.even(find_structures(model), settings.sparsity, tuple(settings.structures))
    return _given_mask(mask, model)


def _given_mask(mask: StructureMask | str | Path, model: nn.Module) -> StructureMask:
    if isinstance(mask, str | Path):
        return StructureMask.from_pretrained(mask, model)
    if mask.structures.fingerprint != find_structures(model).fingerprint:
        raise InputError("the mask is of another model: choose one for this model")
    return mask


def tell_planned(mask: StructureMask, chosen_later: bool) -> str:
    """A line of a plan on its mask."""
    every = StructureMask.all(mask.structures, mask.kinds)
    share = f"{100 * mask.entries / every.entries:.1f} % of their {every.entries / 1e6:,.1f} M parameters"
    told = f"mask: {mask.count:,} of {every.count:,} {' and '.join(mask.kinds)}, {share}"
    return f"{told}; not chosen yet, so taken as spread evenly over the layers" if chosen_later else told


def chosen_mask(settings: MaskSettings, run: Run, model: nn.Module, structures: Structures) -> StructureMask:
    """A mask chosen on forget and retain rows, at the weights as they are. Collective.

    Raises:
        InputError: no retain rows where they are needed, and as `choose_mask`.
    """
    kinds, seed = tuple(settings.structures), run.args.seed
    if settings.sparsity == 0:
        mask = StructureMask.all(structures, kinds)
    elif settings.importance == "random":
        mask = StructureMask.random(structures, settings.sparsity, seed, kinds)
    else:
        mask = _measured_mask(settings, run, model, structures, kinds)
        if settings.importance == "shuffled":
            mask = mask.shuffled(seed)
    if settings.wanda_sparsity:
        loader = sorted_loader(run, run.forget_dataset)
        mask = refine(model, loader, mask, settings.wanda_sparsity, accelerator=run.accelerator)
    return mask


def sorted_loader(run: Run, rows: Dataset) -> DataLoader:
    """Batches for sums over rows, whose order does not matter: the longest first."""
    return run.loader(longest_first(rows)[0], run.args.curvature_batch_size)


def _measured_mask(settings: MaskSettings, run: Run, model, structures: Structures, kinds) -> StructureMask:
    importance = "mlr" if settings.importance == "shuffled" else settings.importance
    shared = {"accelerator": run.accelerator, "show": not run.args.disable_tqdm}
    load = lambda rows: sorted_loader(run, rows)
    about = {"kinds": kinds, "rearrange": settings.rearrange and importance != "norm"}
    if importance == "norm":
        weights = summed_gradients(model, load(run.forget_dataset), structures.owners, **shared)
        return choose_mask(structures, importance, settings.sparsity, weights=weights, **about)
    if run.retain_dataset is None:
        raise InputError(f"a mask of importance {importance!r} is measured on retain rows too: give retain_dataset")
    retain = sample_rows(run.retain_dataset, settings.samples, run.args.seed)
    measured = {
        side: mask_statistics(model, load(rows), structures, blocks=side == products and about["rearrange"], **shared)
        for side, rows in (("forget", run.forget_dataset), ("retain", retain))
        for products in [IMPORTANCES[importance]["products"]]
    }
    return choose_mask(structures, importance, settings.sparsity, **measured, **about)


def kept_entries(mask: StructureMask) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Name -> (rows, columns) that are kept, for a curvature's `kept`; of weights and biases."""
    return {name: (mask.rows(name), None if name.endswith(".bias") else mask.columns(name)) for name in mask.names}

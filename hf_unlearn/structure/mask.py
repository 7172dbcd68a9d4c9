# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Masks over heads and filters: which entries of which parameters an update may change, in memory and as files."""

import functools
import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.files import (
    read_json,
    read_tensors,
    sha256_json,
    sha256_tensor,
    unsealed,
    write_safetensors,
    write_sealed,
)
from ..runtime.folders import staged_folder
from ..runtime.hub import fetch_folder
from ..runtime.shapes import check_shape
from .heads import KINDS, Layout, Site, Structures, find_structures


CONFIG_FILE, TENSORS_FILE = "mask_config.json", "mask.safetensors"
FORMAT = 1
SHAPE = {
    "sha256": str,
    "fingerprint": str,
    "sites": {str: {"layer": int, "kind": str, "count": int, "module": str}},
    "tensors": {str: str},
    "settings": {},
    "sparsity": float,
    "share": float,
}


class StructureMask:
    """The heads and filters that an update may change, and with them the entries of parameters that they own.

    An entry under grouped queries' keys and values is kept when any head of its group is. What belongs to no structure
    (`Structures.unowned`) is not: of it nothing is kept.

    Args:
        structures (`Structures`): of the model.
        chosen (`Mapping[str, Tensor]`): key of a site -> bool (count,). Sites that are left out have none, and do not
            count in the sparsity: a mask of heads alone has no key of filters.
        elements (`Mapping[str, Tensor]`, *optional*, defaults to `None`): name of a parameter -> bool of the shape of
            what `select` gives: single entries that are kept (`structure.wanda`).
        settings (`Mapping`, *optional*, defaults to `None`): how it was chosen, for files and ledgers.

    Raises:
        InputError: a site that the structures do not have, or of another count; nothing is chosen.

    Example:

    ```python
    structures = find_structures(model)
    mask = StructureMask.random(structures, sparsity=0.9, seed=0)
    for name, parameter in model.named_parameters():
        mask.apply_(name, parameter.grad)
    ```
    """

    def __init__(
        self,
        structures: Structures,
        chosen: Mapping[str, Tensor],
        elements: Mapping[str, Tensor] | None = None,
        settings: Mapping | None = None,
    ):
        for key, one in chosen.items():
            if key not in structures.sites or one.shape != (structures.sites[key].count,):
                has = structures.sites[key].count if key in structures.sites else "no"
                raise InputError(
                    f"the mask is of another model: it has {len(one)} structures at {key}, the model has {has}; "
                    "choose a mask for this model"
                )
        self.structures, self.settings = structures, dict(settings or {})
        # In the order of the model, so that equal masks have equal hashes.
        self.chosen = {key: chosen[key].detach().cpu().bool() for key in structures.sites if key in chosen}
        if not any(one.any() for one in self.chosen.values()):
            raise InputError("the mask keeps no head and no filter, so nothing could change: choose a lower sparsity")
        self.elements: dict[str, Tensor] = {}
        for name, one in (elements or {}).items():
            if name not in structures.owners or one.shape != self._select_shape(name):
                raise InputError(f"the mask is of another model: its entries of {name} do not fit; choose it again")
            self.elements[name] = one.detach().cpu().bool()

    @classmethod
    def all(cls, structures: Structures, kinds: Iterable[str] = KINDS) -> "StructureMask":
        """The mask that keeps every structure of these kinds."""
        check_kinds(structures, kinds)
        sites = {key: site for key, site in structures.sites.items() if site.kind in kinds}
        return cls(structures, {key: torch.ones(site.count, dtype=torch.bool) for key, site in sites.items()})

    @classmethod
    def random(
        cls, structures: Structures, sparsity: float, seed: int, kinds: Iterable[str] = KINDS
    ) -> "StructureMask":
        """As many structures as eq. 4 lets a mask of this sparsity keep, each as likely as any other.

        A head owns far more entries than a filter, so a mask to compare a chosen one with is `shuffled`.
        """
        count = kept_count(check_kinds(structures, kinds), sparsity)
        generator = torch.Generator().manual_seed(seed)
        scores = {
            key: torch.rand(site.count, generator=generator, dtype=torch.float64)
            for key, site in structures.sites.items()
            if site.kind in kinds
        }
        settings = {"importance": "random", "sparsity": sparsity, "structures": list(kinds), "seed": seed}
        return cls(structures, highest(scores, count), settings=settings)

    @classmethod
    def even(cls, structures: Structures, sparsity: float, kinds: Iterable[str] = KINDS) -> "StructureMask":
        """As many structures at even distances, so that every layer keeps the same share of its own.

        What a plan takes a mask for that is not chosen yet. A chosen one may keep more of some layers.
        """
        count, total = kept_count(check_kinds(structures, kinds), sparsity), structures.count(kinds)
        sites = {key: site.count for key, site in structures.sites.items() if site.kind in kinds}
        chosen = (torch.arange(total + 1) * count // total).diff().bool()
        return cls(structures, dict(zip(sites, chosen.split(list(sites.values())), strict=True)))

    def shuffled(self, seed: int) -> "StructureMask":
        """A random mask of as many heads and as many filters, to compare this one with."""
        generator, chosen = torch.Generator().manual_seed(seed), {}
        for kind in KINDS:
            keys = [key for key in self.chosen if self.structures.sites[key].kind == kind]
            scores = {key: torch.rand(len(self.chosen[key]), generator=generator, dtype=torch.float64) for key in keys}
            chosen |= highest(scores, sum(int(self.chosen[key].sum()) for key in keys))
        return StructureMask(
            self.structures, chosen, settings={"importance": "shuffled", "seed": seed, "of": self.hash}
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of structures that it chooses from."""
        return tuple(kind for kind in KINDS if any(self.structures.sites[key].kind == kind for key in self.chosen))

    @property
    def sparsity(self) -> float:
        """The share of structures, at the mask's sites, that are frozen."""
        return 1 - self.count / sum(map(len, self.chosen.values()))

    @property
    def count(self) -> int:
        """Structures that are kept."""
        return sum(int(one.sum()) for one in self.chosen.values())

    @functools.cached_property
    def share(self) -> float:
        """Entries that are kept, of all of the model's."""
        return self.entries / sum(map(math.prod, self.structures.shapes.values()))

    @functools.cached_property
    def entries(self) -> int:
        """Entries of parameters that are kept."""
        return sum(
            int(self.elements[name].sum()) if name in self.elements else math.prod(self._select_shape(name))
            for name in self.names
        )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Parameters of which something is kept, by their `state_dict` names."""
        return tuple(name for name in self.structures.owners if len(self.kept(name)[1]))

    @functools.cached_property
    def hash(self) -> str:
        """Of what the mask keeps, and of which structures: for identities of runs and lines of a ledger."""
        return sha256_json([self.structures.fingerprint, self._hashes()])

    def kept(self, name: str) -> tuple[int, Tensor]:
        """(dim as stored, the entries along it) of what a parameter keeps; of another parameter no entries at all."""
        if name not in self._kept:
            site, part = self.structures.owners.get(name, (None, None))
            if site is None or site.key not in self.chosen:
                self._kept[name] = (0 if part is None else part.dim, torch.empty(0, dtype=torch.long))
            else:
                self._kept[name] = part.dim, part.kept(self.chosen[site.key]).nonzero()[:, 0]
        return self._kept[name]

    def rows(self, name: str) -> Tensor | None:
        """The outputs of a weight (d_out, d_in), or entries of a bias, that are kept; None for all.

        Of a `Conv1D`, which stores the transpose, these are columns in memory.
        """
        return self._along(name, on_inputs=False)

    def columns(self, name: str) -> Tensor | None:
        """The inputs of a weight (d_out, d_in) that are kept; None for all."""
        return self._along(name, on_inputs=True)

    def element_mask(self, name: str) -> Tensor:
        """A bool tensor that broadcasts to the parameter: which of its entries are kept."""
        shape, (dim, index) = self.structures.shapes[name], self.kept(name)
        if name in self.elements:
            return torch.zeros(shape, dtype=torch.bool).index_copy_(dim, index, self.elements[name])
        if name not in self.structures.owners:
            return torch.zeros([1] * len(shape), dtype=torch.bool)
        mask = torch.zeros(shape[dim], dtype=torch.bool).index_fill_(0, index, True)
        return mask.reshape([-1 if place == dim else 1 for place in range(len(shape))])

    def apply_(self, name: str, tensor: Tensor) -> Tensor:
        """Set to zero, in place, what is not kept of a tensor of a parameter's shape: its gradient, or its step."""
        return tensor.masked_fill_(~self.element_mask(name).to(tensor.device), 0)

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """What is kept of a tensor of a parameter's shape, as a smaller one: single elements are not told apart."""
        dim, index = self.kept(name)
        return tensor.index_select(dim, index.to(tensor.device))

    def scatter(self, name: str, part: Tensor) -> Tensor:
        """A tensor of the parameter's shape from what `select` gives: 0 elsewhere."""
        dim, index = self.kept(name)
        return part.new_zeros(self.structures.shapes[name]).index_copy_(dim, index.to(part.device), part)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `mask_config.json` and `mask.safetensors`, whose hashes it holds.

        Raises:
            OSError: a file could not be written; an older mask there is as it was.
        """
        sites = {key: self.structures.sites[key] for key in self.chosen}
        with staged_folder(folder, (TENSORS_FILE, CONFIG_FILE)) as staging:
            write_safetensors(staging / TENSORS_FILE, self._tensors())
            config = {
                "format": FORMAT,
                "fingerprint": self.structures.fingerprint,
                "sites": {key: {name: getattr(site, name) for name in SITE_KEYS} for key, site in sites.items()},
                "sparsity": self.sparsity,
                "share": self.share,
                "settings": self.settings,
                "tensors": self._hashes(),
            }
            write_sealed(staging / CONFIG_FILE, config)
        return Path(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo: str | Path,
        model: nn.Module,
        *,
        layout: Layout | None = None,
        revision: str | None = None,
    ) -> "StructureMask":
        """Load what `save_pretrained` wrote, for a model of the same structures.

        Raises:
            InputError: nothing there, damaged, or of a model with other structures.
        """
        config, chosen, elements = read_mask(folder_or_repo, revision)
        structures = find_structures(model, layout)
        if config["fingerprint"] != structures.fingerprint:
            raise InputError(
                f"{folder_or_repo} is a mask of another model: {_difference(config['sites'], structures)}; choose a "
                "mask for this model"
            )
        return cls(structures, chosen, elements, config["settings"])

    @functools.cached_property
    def _kept(self) -> dict[str, tuple[int, Tensor]]:
        return {}

    def _along(self, name: str, on_inputs: bool) -> Tensor | None:
        _, index = self.kept(name)
        if name not in self.structures.owners:
            return index
        site, part = self.structures.owners[name]
        return None if part.on_inputs != on_inputs or len(index) == len(part.first) else index

    def _select_shape(self, name: str) -> tuple[int, ...]:
        dim, index = self.kept(name)
        shape = self.structures.shapes[name]
        return (*shape[:dim], len(index), *shape[dim + 1 :])

    def _tensors(self) -> dict[str, Tensor]:
        return {f"chosen.{key}": one for key, one in self.chosen.items()} | {
            f"elements.{name}": one for name, one in self.elements.items()
        }

    def _hashes(self) -> dict[str, str]:
        return {name: sha256_tensor(tensor) for name, tensor in self._tensors().items()}


SITE_KEYS = ("layer", "kind", "count", "module")


def read_mask(folder_or_repo: str | Path, revision: str | None = None) -> tuple[dict, dict, dict]:
    """What a saved mask says without its model: config, site -> chosen structures, parameter -> kept elements.

    Raises:
        InputError: nothing there, or damaged.
    """
    folder = fetch_folder(folder_or_repo, revision, [CONFIG_FILE, TENSORS_FILE])
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder_or_repo} holds no {CONFIG_FILE}: give the folder or repository of a saved mask")
    config = read_json(folder / CONFIG_FILE, {})
    if config.get("format") != FORMAT:
        raise InputError(f"{folder_or_repo} was written by another version of hf_unlearn: choose the mask again")
    check_shape(config, SHAPE, folder / CONFIG_FILE)
    config = unsealed(config, folder / CONFIG_FILE)
    tensors = read_tensors(folder / TENSORS_FILE, config["tensors"], config["tensors"])
    if any(tensor.dtype != torch.bool for tensor in tensors.values()):
        raise InputError(f"{folder / TENSORS_FILE} holds other numbers than a mask's: choose the mask again")
    parts = {
        kind: {
            name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")
        }
        for kind in ("chosen", "elements")
    }
    counts = {key: site["count"] for key, site in config["sites"].items()}
    if counts != {key: one.numel() for key, one in parts["chosen"].items()}:
        raise InputError(f"{folder / CONFIG_FILE} and {TENSORS_FILE} do not belong together: choose the mask again")
    return config, parts["chosen"], parts["elements"]


def highest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The `count` structures of the highest scores over all sites: key -> bool. Of equal ones the first are taken."""
    flat = torch.cat([one.flatten().double() for one in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[:count]] = True
    return dict(zip(scores, chosen.split([len(one) for one in scores.values()]), strict=True))


def kept_count(total: int, sparsity: float) -> int:
    """How many of `total` structures a mask keeps: the most with count / total < 1 - sparsity (eq. 4), at least one.

    A sparsity of 0 keeps all: the mask that changes nothing, which eq. 4 taken literally does not allow.

    Raises:
        InputError: the sparsity is not in [0, 1); there is only one structure to choose from.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        raise InputError(f"sparsity is {sparsity!r}, the share of structures that stay frozen: from 0 to below 1")
    if sparsity == 0:
        return total
    if total < 2:
        raise InputError(f"there is {total} structure, so there is nothing to choose: use a sparsity of 0")
    # Exact: 1 - 0.9 is a little less than 0.1 in floating point, and 10 of 100 would pass for fewer than that.
    return max(1, math.ceil((1 - Fraction(repr(float(sparsity)))) * total) - 1)


def check_kinds(structures: Structures, kinds: Iterable[str]) -> int:
    """The number of structures of these kinds.

    Raises:
        InputError: there is no such kind, or the model has none of them.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds or not set(kinds) <= set(KINDS) or len(set(kinds)) < len(kinds):
        raise InputError(f"structures: {list(kinds)}, where each of {' and '.join(KINDS)} may stand once")
    if not (count := structures.count(kinds)):
        raise InputError(f"structures: the model has no {' and no '.join(kinds)}")
    return count


def _difference(saved: Mapping[str, Mapping], structures: Structures) -> str:
    """What first tells two models' structures apart."""
    for key, site in saved.items():
        own: Site | None = structures.sites.get(key)
        if own is None:
            return f"it has {site['count']} structures at {key}, where the model has none"
        if (site["module"], site["count"]) != (own.module, own.count):
            return f"{key} is {site['count']} at {site['module']}, and {own.count} at {own.module} in the model"
    return "other layers, or other shapes of weights"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sums that second-order unlearning goes on from: of a training set, less the rows that were forgotten (eq. 12)."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..curvature import Curvature, Diagonal
from ..curvature.artifact import CONFIG_FILE as FISHER_FILE
from ..errors import InputError
from ..runtime.files import (
    read_sealed,
    read_tensors,
    sha256_file,
    sha256_json,
    sha256_tensor,
    write_safetensors,
    write_sealed,
)
from ..runtime.folders import staged_folder
from ..runtime.processes import Processes, own
from ..structure.heads import Structures
from ..structure.mask import StructureMask
from ..structure.rows import Counts
from ..structure.search import choose_mask
from ..structure.statistics import GramSum, MaskStatistics, mask_statistics, summed_gradients
from .masking import MaskSettings, kept_entries


CONFIG_FILE, TENSORS_FILE, FISHER = "state_config.json", "state.safetensors", "fisher"
FORMAT = 1
SHAPE = {
    "sha256": str,
    "format": int,
    "fingerprint": str,
    "settings": dict,
    "requests": int,
    "samples": int,
    "forgotten": int,
    "before": str,
    "after": str,
    "others": str,
    "fisher": str,
    "tensors": {str: str},
}
HASH_BYTES = 16  # of a row's SHA-256


@dataclass
class Sums:
    """Sums over some rows, at the same weights, of what a mask keeps.

    Args:
        fisher (`Diagonal`): squares of the rows' own gradients, of weights and biases.
        gradients (`dict[str, Tensor]`): of the rows' summed loss, by `state_dict` name, whole.
        masks (`MaskStatistics`): of all masks of heads and filters.
    """

    fisher: Diagonal
    gradients: dict[str, Tensor]
    masks: MaskStatistics

    @classmethod
    def over(
        cls, model: nn.Module, loader: Iterable, mask: StructureMask, blocks: bool, gradients: bool, accelerator=None
    ) -> "Sums":
        """Of a loader's rows; with `blocks` products of masks within a layer too. Collective."""
        masks = mask_statistics(model, loader, mask.structures, blocks=blocks, accelerator=accelerator)
        found = summed_gradients(model, loader, mask.names, accelerator=accelerator) if gradients else {}
        return cls(fit_diagonal(model, loader, mask, accelerator=accelerator), found, masks)


def fit_diagonal(model: nn.Module, loader: Iterable, mask: StructureMask, **settings) -> Diagonal:
    """The empirical Fisher information of what a mask keeps (eq. 3), biases too."""
    return Diagonal().fit(model, loader, kept=kept_entries(mask), biases=True, fisher="empirical", **settings)


class SPEState:
    """What a service keeps beside its model: sums of the rows that are left and of those that were forgotten.

    All are taken at theta*, the weights before the first request, from which every update is made anew. So k requests
    of one row each end where one request of k rows does, and what was forgotten need not be read again. A row that is
    left or was forgotten is known by a hash of its tokens and labels.

    Of several processes each holds its own share of the Fisher information, and all else. The folder does not depend
    on their number: a state that two have made goes on with one.

    Attributes:
        settings: how the mask of a request is chosen.
        mask: of the entries whose sums are kept: all heads and filters, unless the mask of all requests is known
            beforehand (importance "fisher" without swaps, eq. 13).
        fisher, masks: of the rows that are left.
        gradients, forgotten: of the rows that were forgotten.
        base: name -> theta* of these entries (`StructureMask.select`).
        left, served: hashes of rows, and how often each is there.
        requests: how many were served.
        before, after: hash of the weights of these entries before the last request, and since.
        others: hash of all other tensors of the model.
    """

    def __init__(self, settings: MaskSettings, mask: StructureMask, sums: Sums, base: Mapping[str, Tensor], rows):
        self.settings, self.mask, self.fisher, self.masks = settings, mask, sums.fisher, sums.masks
        self.gradients, self.base = sums.gradients, dict(base)
        self.forgotten = MaskStatistics.empty(mask.structures, blocks=bool(sums.masks.blocks))
        self.left, self.served, self.requests = Counter(rows), Counter(), 0
        self.before = self.after = self.others = ""

    @staticmethod
    def is_there(folder: str | Path) -> bool:
        """Whether a folder holds a state."""
        return (Path(folder) / CONFIG_FILE).is_file()

    @classmethod
    def digest(cls, folder: str | Path) -> str | None:
        """A hash of the state in a folder; None where there is none yet."""
        return sha256_file(Path(folder) / CONFIG_FILE) if cls.is_there(folder) else None

    @classmethod
    def prepare(
        cls,
        model: nn.Module,
        loader: Iterable,
        structures: Structures,
        settings: MaskSettings,
        rows: Iterable[str],
        accelerator=None,
    ) -> "SPEState":
        """From all rows that the model was trained on, whose hashes are `rows`; its weights are theta*. Collective.

        Raises:
            InputError: settings that need forget rows again at every request.
        """
        if settings.wanda_sparsity:
            raise InputError("wanda_sparsity looks at forget rows, which memory_aided requests do not keep: leave it")
        kinds = tuple(settings.structures)
        mask = StructureMask.all(structures, kinds)
        blocks = settings.rearrange and settings.importance != "norm"
        if settings.importance == "fisher" and not settings.rearrange:
            found = mask_statistics(model, loader, structures, accelerator=accelerator)
            mask = choose_mask(structures, "fisher", settings.sparsity, kinds=kinds, retain=found, rearrange=False)
        sums = Sums.over(model, loader, mask, blocks, gradients=False, accelerator=accelerator)
        sums.gradients = {name: torch.zeros(structures.shapes[name]) for name in mask.names}
        base = {name: mask.select(name, model.get_parameter(name).detach()).clone() for name in mask.names}
        state = cls(settings, mask, sums, base, rows)
        state.before = state.after = state.weights_hash(model)
        state.others = state.others_hash(model)
        return state

    # ---- the model ------------------------------------------------------------------------------------------------
    def weights_hash(self, model: nn.Module) -> str:
        """Of the entries whose sums are kept."""
        parts = {name: self.mask.select(name, model.get_parameter(name).detach()) for name in self.mask.names}
        return sha256_json({name: sha256_tensor(tensor) for name, tensor in parts.items()})

    def others_hash(self, model: nn.Module) -> str:
        """Of all that no request changes."""
        hashes = {}
        for name, tensor in model.state_dict().items():
            if name in self.base:
                dim, index = self.mask.kept(name)
                tensor = tensor.index_fill(dim, index.to(tensor.device), 0)
            hashes[name] = sha256_tensor(tensor)
        return sha256_json(hashes)

    def check_model(self, model: nn.Module) -> bool:
        """Whether the model is the one after the last request; False: the one before it, whose save was lost.

        Raises:
            InputError: another model.
        """
        now = self.weights_hash(model)
        if now not in (self.before, self.after) or self.others_hash(model) != self.others:
            raise InputError(
                "the state is of another model: give the model that its last request made, or begin a new state"
            )
        return now == self.after

    @torch.no_grad()
    def set_weights(self, model: nn.Module, steps: Mapping[str, Tensor] | None = None, scale: float = 0.0):
        """theta* + scale * steps in the entries whose sums are kept."""
        for name, base in self.base.items():
            parameter, (dim, index) = model.get_parameter(name), self.mask.kept(name)
            value = base.to(parameter.device)
            if steps is not None:
                value = value + (scale * self.mask.select(name, steps[name])).to(value.device)
            parameter.index_copy_(dim, index.to(parameter.device), value.to(parameter.dtype))

    # ---- requests -------------------------------------------------------------------------------------------------
    def check_rows(self, rows: Iterable[str], again: bool):
        """Refuse rows that were not in the training set, or were forgotten before.

        Args:
            rows: hashes of the forget rows.
            again: whether the last request is made again, whose rows were served.

        Raises:
            InputError: with the number of such rows, and the place of the first.
        """
        rows = list(rows)
        known, what = (self.served, "the last request") if again else (self.left, "the training set of the state")
        room, missing = Counter(known), []
        for place, row in enumerate(rows, 1):
            if room[row]:
                room[row] -= 1
            else:
                missing.append(place)
        if not missing:
            if len(rows) >= sum(self.left.values()) and not again:
                raise InputError(f"the request has all {len(rows)} rows that are left: no row would hold the model")
            return
        served = sum(self.served[rows[place - 1]] > 0 for place in missing)
        if served and not again:
            raise InputError(
                f"{served} of {len(rows)} forget rows were forgotten by an earlier request (the first is row "
                f"{missing[0]}): leave them out"
            )
        raise InputError(
            f"{len(missing)} of {len(rows)} forget rows are not in {what} (the first is row {missing[0]}): a row is "
            "known by its tokens and labels; give rows that the model was trained on, with the same template"
        )

    def forget(self, part: Sums, rows: Iterable[str]):
        """Take a request's rows, whose sums at theta* are `part`, from what is left."""
        self.fisher, self.masks = self.fisher.minus(part.fisher), self.masks.minus(part.masks)
        self.forgotten.merge(part.masks)
        for name, gradient in part.gradients.items():
            self.gradients[name] = self.gradients[name].to(gradient) + gradient
        rows = list(rows)
        self.left.subtract(rows)
        self.left += Counter()  # without those of which none is left
        self.served.update(rows)
        self.requests += 1

    def request_mask(self) -> StructureMask:
        """The mask of the update that all rows forgotten so far ask for."""
        settings = self.settings
        if settings.sparsity == 0 or (settings.importance == "fisher" and not settings.rearrange):
            return self.mask
        about = {"kinds": tuple(settings.structures), "rearrange": bool(self.masks.blocks)}
        if settings.importance == "norm":
            about |= {"weights": self.gradients}
        return choose_mask(
            self.mask.structures, settings.importance, settings.sparsity, forget=self.forgotten, retain=self.masks,
            **about,
        )  # fmt: skip

    # ---- files ----------------------------------------------------------------------------------------------------
    def save(self, folder: str | Path):
        """Write the state; an older one there is replaced as a whole. Collective: of sums one process writes its own.

        Raises:
            OSError: a file could not be written; an older state there is as it was.
        """
        processes = self.fisher.processes
        processes.doing = "saving a state"
        first = processes.rank == 0
        with contextlib.ExitStack() as stack:
            begin = lambda: stack.enter_context(staged_folder(folder, (TENSORS_FILE, f"{FISHER}/*", CONFIG_FILE)))
            staging = processes.share(lambda: begin() if first else None)[0]
            self.fisher.save_pretrained(staging / FISHER)
            own(processes, lambda: self._write(staging) if first else None)
            own(processes, lambda: stack.close() if first else None)  # here the folder is put in its place

    def _write(self, staging: Path):
        tensors = {f"base.{name}": tensor for name, tensor in self.base.items()}
        tensors |= {f"gradient.{name}": self.mask.select(name, one) for name, one in self.gradients.items()}
        tensors |= {f"chosen.{key}": one for key, one in self.mask.chosen.items()}
        for side, found in (("left", self.masks), ("forgotten", self.forgotten)):
            tensors |= {f"{side}.gradients.{key}": one for key, one in found.gradients.items()}
            tensors |= {f"{side}.squares.{key}": one for key, one in found.squares.items()}
            tensors |= {f"{side}.blocks.{key}": one.matrix() for key, one in found.blocks.items()}
        tensors |= {"rows.left": _packed(self.left), "rows.served": _packed(self.served)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        write_safetensors(staging / TENSORS_FILE, tensors)
        config = {
            "format": FORMAT,
            "fingerprint": self.mask.structures.fingerprint,
            "settings": dataclasses.asdict(self.settings),
            "requests": self.requests,
            "samples": self.masks.counts.samples,
            "forgotten": self.forgotten.counts.samples,
            "before": self.before,
            "after": self.after,
            "others": self.others,
            # Which has the hashes of all that lies beside it.
            "fisher": sha256_file(staging / FISHER / FISHER_FILE),
            "tensors": {name: sha256_tensor(tensor) for name, tensor in tensors.items()},
        }
        write_sealed(staging / CONFIG_FILE, config)

    @classmethod
    def load(cls, folder: str | Path, structures: Structures, settings: MaskSettings, accelerator=None) -> "SPEState":
        """Read a state for a model of these structures. Collective.

        Raises:
            InputError: damaged, of other structures or made with other settings.
        """
        processes = Processes(accelerator, "loading a state")
        state = own(processes, lambda: cls._read(Path(folder), structures, settings))
        state.fisher = Curvature.from_pretrained(Path(folder) / FISHER, accelerator=accelerator)
        return state

    @classmethod
    def _read(cls, folder: Path, structures: Structures, settings: MaskSettings) -> "SPEState":
        """All of a state but the Fisher information."""
        config = read_sealed(folder / CONFIG_FILE, SHAPE)
        if config["format"] != FORMAT:
            raise InputError(f"{folder} was written by another version of hf_unlearn: begin a new state")
        if config["fingerprint"] != structures.fingerprint:
            raise InputError(f"{folder} is the state of another model: its heads and filters are others")
        made = MaskSettings.read(config["settings"])
        if different := [f.name for f in dataclasses.fields(made) if _of(made, f) != _of(settings, f)]:
            raise InputError(
                f"{folder} was made with other settings ({', '.join(different)}): its sums are those of "
                f"{different[0]}={getattr(made, different[0])!r}; give the same, or begin a new state"
            )
        if sha256_file(folder / FISHER / FISHER_FILE) != config["fisher"]:
            raise InputError(f"{folder / FISHER} is not of the state beside it: copy the folder again as a whole")
        tensors = read_tensors(folder / TENSORS_FILE, config["tensors"], config["tensors"])
        part = lambda start: {name.removeprefix(start): one for name, one in tensors.items() if name.startswith(start)}
        mask = StructureMask(structures, part("chosen."))
        sums = Sums(None, {}, None)
        statistics = []
        for side, samples in (("left", config["samples"]), ("forgotten", config["forgotten"])):
            found = MaskStatistics(part(f"{side}.gradients."), part(f"{side}.squares."), counts=Counts(samples))
            for key, square in part(f"{side}.blocks.").items():
                found.blocks[key] = GramSum(len(square))
                found.blocks[key].square = square
            statistics.append(found)
        sums.masks = statistics[0]
        sums.gradients = {name: mask.scatter(name, one) for name, one in part("gradient.").items()}
        state = cls(made, mask, sums, part("base."), _unpacked(tensors["rows.left"]))
        state.forgotten, state.served = statistics[1], Counter(_unpacked(tensors["rows.served"]))
        for name in ("requests", "before", "after", "others"):
            setattr(state, name, config[name])
        return state


def _of(settings: MaskSettings, field) -> object:
    value = getattr(settings, field.name)
    return list(value) if isinstance(value, list | tuple) else value


def _packed(rows: Counter) -> Tensor:
    """Hashes in order, (rows, 16) bytes."""
    joined = b"".join(bytes.fromhex(row)[:HASH_BYTES] for row in sorted(rows.elements()))
    if not joined:
        return torch.zeros(0, HASH_BYTES, dtype=torch.uint8)
    return torch.frombuffer(bytearray(joined), dtype=torch.uint8).view(-1, HASH_BYTES)


def _unpacked(tensor: Tensor) -> list[str]:
    return [bytes(row).hex() for row in tensor.tolist()]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What unlearning changed: an update that can be saved, checked, applied again, added up and negated."""

import contextlib
import logging
import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..errors import InputError, NumericalError
from ..runtime.checkpoints import base_tensors, shorten, tied_names
from ..runtime.files import sha256_json, sha256_tensor, write_json, write_safetensors
from ..runtime.folders import staged_folder
from ..runtime.hub import public_name, push_folder
from ..runtime.lora import save_lora
from ..runtime.provenance import library_versions
from .adding import add, check_scale, check_targets, destinations, is_base, warn_of_other_base
from .reader import CONFIG_FILE, FILES, FORMAT_VERSION, WEIGHTS_FILE, DeltaReader, stored_sha256
from .stored import StoredModel


logger = logging.getLogger(__name__)

SAVED_DTYPE = torch.bfloat16  # unless another is asked for: of files, and of the hashes that logs and cards tell


@dataclass(eq=False, repr=False)
class UpdateDelta:
    """The difference `unlearned - base` of every tensor that unlearning touched.

    Take it in fp32 as the update was made: the difference of two bf16 checkpoints has lost what rounding swallowed.

    Args:
        tensors: {`state_dict` name in the base model: update, fp32, the shape of the weight}.
        config: what is known about the update, JSON-able; see `delta_config`.

    Raises:
        NumericalError: a tensor holds NaN or infinity.
    """

    tensors: dict[str, torch.Tensor]
    config: dict = field(default_factory=dict)

    def __post_init__(self):
        self.tensors = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in self.tensors.items()}
        broken = [name for name, tensor in self.tensors.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise NumericalError(f"the update of {shorten(broken)} is not finite; take a smaller step or more damping")

    def __repr__(self) -> str:
        count = sum(tensor.numel() for tensor in self.tensors.values())
        base = self.config.get("base_model") or "an unnamed model"
        return f"UpdateDelta({len(self.tensors)} tensors, {count:,} numbers, norm {self.norm():.4g}, to {base})"

    @classmethod
    def between(
        cls,
        base: torch.nn.Module | Mapping[str, torch.Tensor] | str | Path,
        unlearned: torch.nn.Module | Mapping[str, torch.Tensor] | str | Path,
        **about,
    ) -> "UpdateDelta":
        """The update from `base` to `unlearned`, of the floating-point tensors that differ.

        Both are models, or state dicts, or checkpoints on disk (folders or Hub repositories), which are read one
        tensor at a time: only what differs is held.
        Weights that are tied in both are taken once, under the first of their names. `about` goes to `delta_config`:
        base_model, base_revision, method, settings, seed, tied.

        Raises:
            InputError: the two do not have the same names and shapes, or weights tied in `base` moved apart.
        """
        on_disk = isinstance(base, str | Path)
        if on_disk != isinstance(unlearned, str | Path):
            raise InputError("base and unlearned: give two models, two state dicts, or two checkpoints")
        before, after = map(StoredModel if on_disk else base_tensors, (base, unlearned))
        if before.keys() != after.keys():
            raise InputError(
                f"base and unlearned model differ in their tensors: {shorten(before.keys() ^ after.keys())}; pass two "
                "models of one architecture (merge adapters first with merge_and_unload())"
            )
        # State dicts hold a tied weight under each of its names.
        groups = about.get("tied") or (before.ties if on_disk else _one_place(before))
        copies = {name: group[0] for group in groups for name in group[1:] if group[0] in after}
        tensors = {}
        for name in sorted(after, key=copies.__contains__):  # first names first
            old, new = before[name], after[name]
            if old.shape != new.shape:
                raise InputError(f"{name} has shape {tuple(old.shape)} in base and {tuple(new.shape)} in unlearned")
            if not new.is_floating_point() or (name in copies and _place(new) == _place(after[copies[name]])):
                continue
            update = _fp32(new) - _fp32(old)
            update[(new == old).cpu()] = 0.0  # also where both are infinite, as bounds of activations are
            if name not in copies and update.any():
                tensors[name] = update
            elif name in copies and not torch.equal(update, tensors.get(copies[name], torch.zeros_like(update))):
                raise InputError(
                    f"{copies[name]} and {name} are one tied weight in base and moved apart in unlearned, which no "
                    "update of the base can hold: load the base with tie_word_embeddings=False"
                )
        if groups or on_disk or isinstance(base, torch.nn.Module):
            about = {"tied": groups} | about
        tensors = {name: tensors[name] for name in after if name in tensors}
        return cls(tensors, delta_config(_Some(before, tensors), **about))

    @torch.no_grad()
    def apply_to(self, model: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
        """Add `scale` times the update to the model's weights in place; returns the model.

        The sum is formed in fp32 (fp64 for an fp64 model) and rounded once to the model's dtype. Nothing is changed
        when a check fails. A base tensor with another hash than the one unlearning started from is a warning: applying
        an update to a fine-tuned checkpoint is an expected use.

        Raises:
            InputError: the model lacks a tensor of the update, or has it in another shape or in a quantised type; a
                weight is tied in the model and was not where the update was made.
        """
        check_scale(scale)
        targets = self._targets(model)
        moved = self._moved(model, targets)
        shapes = {name: self.tensors[of].shape for name, of in moved.items()}
        check_targets(shapes, {name: (tensor.shape, tensor.dtype) for name, tensor in targets.items()})
        if unloaded := [name for name in moved if targets[name].is_meta]:
            raise InputError(f"{shorten(unloaded)} are on the meta device; load the model's weights first")
        # A tied weight, which has several names, moves once.
        once = {_place(targets[name]): name for name in reversed(moved)}
        others = [moved[name] for name in once.values() if not is_base(self.config, moved[name], targets[name])]
        warn_of_other_base(self.config, others)
        for name in once.values():
            targets[name].copy_(add(targets[name], self.tensors[moved[name]].to(targets[name].device), scale))
        return model

    @contextlib.contextmanager
    def applied_to(self, model: torch.nn.Module, scale: float = 1.0):
        """The model with the update inside, and the bits it had before afterwards (subtracting would round).

        Raises:
            InputError: as `apply_to`.
        """
        targets = self._targets(model)
        moved = self._moved(model, targets)
        before = {name: targets[name].to("cpu", copy=True) for name in moved if name in targets}
        try:
            yield self.apply_to(model, scale)
        finally:
            with torch.no_grad():
                for name, tensor in before.items():
                    targets[name].copy_(tensor)

    def _targets(self, model: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The model's tensors by the names that this update knows: those of the checkpoint, or of a worn adapter."""
        worn = {name.removeprefix("base_model.model."): tensor for name, tensor in model.state_dict().items()}
        return base_tensors(model) | {name: worn[name] for name in self.tensors if name in worn}

    def _moved(self, model: torch.nn.Module, targets: Mapping[str, torch.Tensor]) -> dict[str, str]:
        """{name in the model: name in the update}; copies that the model does not have are left out."""
        found = destinations(self.tensors, self.tensors.__getitem__, self.config.get("tied"), tied_names(model))
        return {name: of for name, of in found.items() if name in targets or name == of}

    def __neg__(self) -> "UpdateDelta":
        """The update that takes this one back: added to the unlearned model it gives the base."""
        return UpdateDelta({name: -tensor for name, tensor in self.tensors.items()}, dict(self.config))

    def __add__(self, other: "UpdateDelta") -> "UpdateDelta":
        """Both updates as one, both having started from the same base weights.

        Its description is the first one's; hashes of base tensors are those of both.

        Raises:
            InputError: a tensor that both touch had another value or another shape before one than before the other.
        """
        mine, theirs = (delta.config.get("base_sha256", {}) for delta in (self, other))
        both = self.tensors.keys() & other.tensors.keys()
        if foreign := [name for name in both if self.tensors[name].shape != other.tensors[name].shape]:
            raise InputError(f"the two updates have {shorten(foreign)} in different shapes: they are of other models")
        if foreign := [name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]]:
            raise InputError(
                f"the two updates started from different weights ({shorten(foreign)}): add updates of one base, or "
                "apply them one after the other"
            )
        summed = self.tensors | other.tensors | {name: self.tensors[name] + other.tensors[name] for name in both}
        ties = [delta.config.get("tied") for delta in (self, other)]
        tied = None if None in ties else [*ties[0], *(group for group in ties[1] if group not in ties[0])]
        return UpdateDelta(summed, {**self.config, "base_sha256": {**mine, **theirs}, "tied": tied})

    def save_lora(self, model: torch.nn.Module, save_directory: str | Path, energy: float = 0.99) -> dict:
        """Write the update as a LoRA adapter of least rank that keeps `energy` of its sum of squares.

        Returns (and logs) what is lost: see [`~runtime.lora.save_lora`], whose arguments and errors are the same.
        `model` is the base model, on the meta device if need be.
        """
        report = save_lora(self.tensors, model, save_directory, energy)
        ranks = report["ranks"].values()
        logger.info(
            f"{save_directory}: LoRA of ranks {min(ranks)} to {max(ranks)} on {len(ranks)} layers; "
            f"{100 * report['lost']:.3g} % of the update's energy is lost"
        )
        return report

    def norm(self) -> float:
        """Euclidean norm over all tensors."""
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in self.tensors.values()))

    def sha256(self, dtype: torch.dtype = torch.float32) -> str:
        """Hash of names and values after rounding to `dtype`.

        `delta.sha256(torch.bfloat16)` is that of what `save_pretrained` stores: `from_pretrained(dir).sha256()`.
        """
        # One rounded tensor at a time: the same value as `sha256_tensors` of all of them.
        return sha256_json({name: sha256_tensor(tensor.to(dtype).float()) for name, tensor in self.tensors.items()})

    def save_pretrained(
        self, save_directory: str | Path, dtype: torch.dtype = SAVED_DTYPE, max_shard_size: int | str = "5GB"
    ) -> Path:
        """Write `delta.safetensors` (shards and an index above `max_shard_size`) and `delta_config.json`.

        The update itself in bf16 loses 0.2 % of its length, where subtracting bf16 checkpoints may lose 30 %. An
        older delta in the folder is replaced as a whole (`staged_folder`): a failure or a kill leaves it as it was.

        Raises:
            OSError: the folder cannot be written.
        """
        from huggingface_hub import split_torch_state_dict_into_shards

        folder = Path(save_directory)
        sizes = {name: torch.empty_like(tensor, dtype=dtype, device="meta") for name, tensor in self.tensors.items()}
        split = split_torch_state_dict_into_shards(
            sizes, filename_pattern="delta{suffix}.safetensors", max_shard_size=max_shard_size
        )
        about = {"dtype": str(dtype).removeprefix("torch."), "sha256": self.sha256(dtype)}
        hashes = {name: sha256_tensor(tensor.to(dtype)) for name, tensor in self.tensors.items()}
        about["stored_sha256"] = stored_sha256(about["sha256"], hashes)
        config = {"format_version": FORMAT_VERSION, **self.config, **about}
        # One key only: safetensors writes several in no certain order, and equal updates shall be equal bytes.
        metadata = {"format": "pt"}
        with staged_folder(folder, FILES) as staging:
            # An update that changed nothing is a whole delta too.
            for filename, names in (split.filename_to_tensors or {WEIGHTS_FILE: []}).items():
                tensors = {name: self.tensors[name].to(dtype) for name in names}
                write_safetensors(staging / filename, tensors, metadata)
            if split.is_sharded:
                index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
                write_json(staging / f"{WEIGHTS_FILE}.index.json", index)
            write_json(staging / CONFIG_FILE, config)
        return folder

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path, revision: str | None = None) -> "UpdateDelta":
        """Read a folder with `delta_config.json` (or one that holds it as `delta/`), or such a Hub repository.

        Raises:
            InputError: there is no complete delta at that place, or its tensors are not those that were saved.
        """
        reader = DeltaReader(path_or_repo, revision)
        reader.check()
        return cls({name: reader.tensor(name) for name in reader.files}, reader.config)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str = "Upload update delta",
        dtype: torch.dtype = SAVED_DTYPE,
    ) -> str:
        """Upload the delta as `delta/` of a model repository in one commit; returns the commit's URL."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "delta", dtype=dtype)
            return push_folder(repo_id, folder, private=private, commit_message=commit_message)


def _place(tensor: torch.Tensor) -> tuple:
    return tensor.device, tensor.data_ptr(), tensor.shape


@dataclass(frozen=True)
class _Some(Mapping):
    """Some tensors of others, which are read when asked for."""

    tensors: Mapping[str, torch.Tensor]
    names: Collection[str]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def _one_place(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Groups of names whose floating-point tensors are one."""
    groups: dict[tuple, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            groups.setdefault(_place(tensor), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _fp32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32)


def delta_config(
    base: Mapping[str, torch.Tensor],
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    method: str | None = None,
    settings: Mapping | None = None,
    seed: int | None = None,
    tied: Iterable[Sequence[str]] | None = None,
) -> dict:
    """Describe an update: `base` holds the touched tensors as they were before it (hashed here, not kept).

    `tied` has the groups of names that are one weight in the model (`tied_names`); None: not known.
    The description is published: of a `base_model` that is a local folder only the folder's name is told.
    """
    return {
        "format_version": FORMAT_VERSION,
        "base_model": public_name(base_model),
        "base_revision": base_revision,
        "method": method,
        "settings": dict(settings or {}),
        "seed": seed,
        "base_sha256": {name: sha256_tensor(tensor) for name, tensor in base.items()},
        "tied": None if tied is None else [list(group) for group in tied if not base.keys().isdisjoint(group)],
        "versions": library_versions(),
    }

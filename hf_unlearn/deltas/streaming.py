# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Transfer of a saved update onto a checkpoint: every file is copied, then the touched tensors in it are summed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.checkpoints import CHUNK, Shards, shorten
from ..runtime.conversions import Conversion
from ..runtime.files import as_bytes, begin_tensor_hash, sha256_tensor, write_json, write_text
from ..runtime.folders import staged_folder
from ..runtime.hub import hide_places, public_name
from .adding import add, check_scale, check_targets, destinations, warn_of_other_base
from .card import transfer_card
from .reader import DeltaReader
from .stored import checkpoint_of


# Weights in another format are those of the model as it was, so `transfer` does not carry them over.
NOT_TRANSFERRED = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}


def transfer(delta_dir: str | Path, model_dir: str | Path, output_dir: str | Path, scale: float = 1.0) -> Path:
    """Apply a saved delta to a safetensors checkpoint, file by file, and write the result as a new checkpoint.

    Names of weights in memory and of tensors on disk are matched by transformers' own rules (`Conversion`): renamed
    tensors, a base model's prefix, experts that are fused in memory. Every stored copy of a tied weight is changed.

    Memory: a few MB, and for weights that are fused or split on disk those of one layer. Configuration and tokenizer
    files are copied; weights in other formats are not, and a card of its own takes the place of the card. The result
    is built in a hidden folder beside `output_dir` and renamed at the end, so a kill leaves no half checkpoint. Delta
    and checkpoint (with `model.safetensors`, or shards and their index) are folders or Hub repositories; `output_dir`
    is new or empty.

    Raises:
        InputError: a folder is not what it should be, the delta is damaged, or the checkpoint lacks a tensor of it.
        OSError: the result could not be written (nothing is left behind).
    """
    check_scale(scale)
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder; choose another --output or remove it")
    reader = DeltaReader(delta_dir)
    reader.check()
    source, model = checkpoint_of(model_dir)
    plan = Plan(reader, Shards(source, "model.safetensors"), model)

    with staged_folder(output) as building:
        for filename in plan.checkpoint.filenames:
            shutil.copyfile(source / filename, building / filename)
            _add_to_file(building / filename, plan, filename, scale)
        warn_of_other_base(reader.config, sorted(plan.other_base))
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix not in NOT_TRANSFERRED and file.name != "README.md":
                shutil.copyfile(file, building / file.name)
        record = {"delta": reader.config, "model": public_name(model_dir), "scale": scale}
        record["other_base"] = sorted(plan.other_base)
        write_json(building / "unlearning_transfer.json", record)
        hide_places(building)
        write_text(building / "README.md", transfer_card(record, source, model))
    return output


class Plan:
    """Which stored tensors of a checkpoint a delta changes, and by what.

    Args:
        reader (`DeltaReader`): the saved delta.
        checkpoint (`Shards`): the tensors on disk.
        model (`nn.Module`, *optional*): the checkpoint's model on the meta device; None: names are taken as they are.

    Raises:
        InputError: a tensor of the delta has no place in the checkpoint, or another shape; a weight that is tied in
            the checkpoint's model and was not where the update was made.
    """

    def __init__(self, reader: DeltaReader, checkpoint: Shards, model: torch.nn.Module | None):
        self.reader, self.checkpoint = reader, checkpoint
        self.conversion = Conversion(model, checkpoint.files)
        self.other_base: set[str] = set()
        # {name on disk: name in the delta} of tensors that lie on disk as they lie in memory.
        self.updates: dict[str, str] = {}
        # {name on disk: the group of weights in memory that it is made of}.
        self.parts: dict[str, tuple[str, ...]] = {}
        self._made: tuple[tuple, dict] = ((), {})
        # {name in the checkpoint's model: name in the delta}.
        self._moved = destinations(
            reader.files, reader.tensor, reader.config.get("tied"), self.conversion.ties, self.conversion.in_memory
        )
        placed = set()
        for name, of in self._moved.items():
            if name in self.conversion.renamed:
                self.updates |= dict.fromkeys(self.conversion.renamed[name], of)
                placed.add(of)
            elif group := self.conversion.group_of(name):
                self._plan_group(group)
                placed.add(of)
        shapes = {name: reader.stored(of).shape for name, of in self.updates.items()}
        homeless = {name: reader.stored(name).shape for name in reader.files if name not in placed}
        check_targets(shapes | homeless, checkpoint.headers(shapes))

    def _plan_group(self, group: tuple[str, ...]):
        weights = self.conversion.weights
        updates = {name: self.reader.stored(self._moved[name]) for name in group if name in self._moved}
        check_targets(
            {name: update.shape for name, update in updates.items()},
            {name: (weights[name].shape, weights[name].dtype) for name in group},
        )
        on_disk = self.conversion.to_disk({name: weights[name] for name in group})
        shapes = {name: tensor.shape for name, tensor in on_disk.items()}
        check_targets(shapes, self.checkpoint.headers(shapes))
        self.parts |= dict.fromkeys(shapes, group)

    def update_of(self, name: str) -> Iterator[torch.Tensor]:
        """What is added to a tensor on disk, a flat chunk at a time."""
        if name in self.updates:
            return self.reader.stored(self.updates[name]).chunks()
        if self._made[0] != self.parts[name]:
            self._made = (), {}  # one group at a time
            self._made = self.parts[name], self._make(self.parts[name])
        return iter(self._made[1][name].reshape(-1).split(CHUNK))

    def expected(self, name: str) -> str | None:
        """Hash of the tensor on disk that the update was made from; groups are compared as they are made."""
        return self.reader.config.get("base_sha256", {}).get(self.updates.get(name))

    def _make(self, group: tuple[str, ...]) -> dict[str, torch.Tensor]:
        updates = {name: self._moved.get(name) for name in group}
        read = {name: self.reader.tensor(of) for name, of in updates.items() if of is not None}
        dtype = next(iter(read.values())).dtype
        for name in group:
            read.setdefault(name, torch.zeros(self.conversion.weights[name].shape, dtype=dtype))
        on_disk = self.conversion.to_disk(read)
        back = self.conversion.to_memory(on_disk)
        same = all(name in back and torch.equal(back[name], read[name]) for name in group)
        del back, read  # a group may be a good part of a layer: it is held once where it can be
        if not same:
            raise InputError(
                f"the update of {shorten(group)} does not come back from the form it has on disk: apply it with "
                "UpdateDelta.apply_to to the loaded model, and save that"
            )
        base = self.conversion.to_memory({name: self.checkpoint.tensor(name) for name in on_disk})
        expected = self.reader.config.get("base_sha256", {})
        moved = {name: of for name, of in updates.items() if of is not None}
        self.other_base |= {of for name, of in moved.items() if sha256_tensor(base[name]) != expected.get(of)}
        return on_disk


def _add_to_file(path: Path, plan: Plan, filename: str, scale: float):
    """Sum the touched tensors of a copied file in place: their shapes and types, and so the header, stay the same."""
    names = [name for name in (*plan.updates, *plan.parts) if plan.checkpoint.files[name] == filename]
    with open(path, "r+b") as file:
        for name in names:
            base = plan.checkpoint.stored(name)
            digest = begin_tensor_hash(base.dtype, base.shape)
            place = base.begin
            for old, update in zip(base.chunks(), plan.update_of(name), strict=True):
                digest.update(as_bytes(old))
                file.seek(place)
                place += file.write(as_bytes(add(old, update, scale)))
            if plan.expected(name) not in (None, digest.hexdigest()):
                plan.other_base.add(plan.updates[name])

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Plan of a transfer: which stored tensors of a checkpoint an update changes, and by what."""

from dataclasses import dataclass

import torch

from ..runtime.checkpoints import Shards
from ..runtime.conversions import Conversion
from .adding import check_targets, destinations
from .reader import DeltaReader


@dataclass(frozen=True)
class Sum:
    """A tensor of the update, and the stored tensors that it is added to, one after the other."""

    update: str
    onto: tuple[str, ...]


class Plan:
    """Which stored tensors of a checkpoint a delta changes, and by what.

    Args:
        reader (`DeltaReader`): the saved delta.
        checkpoint (`Shards`): the tensors on disk.
        model (`nn.Module`, *optional*): the checkpoint's model on the meta device; None: names are taken as they are.

    Attributes:
        sums (`list[Sum]`): of all weights that lie on disk as they lie in memory, whole or in runs.
        groups (`list[tuple[str, ...]]`): weights that must be converted as a whole (`Conversion.group_of`).
        moved (`dict[str, str]`): {name in the checkpoint's model: name in the delta}.
        touched (`set[str]`): names on disk of all that changes.

    Raises:
        InputError: a tensor of the delta has no place in the checkpoint, or another shape; a weight that is tied in
            the checkpoint's model and was not where the update was made.
    """

    def __init__(self, reader: DeltaReader, checkpoint: Shards, model: torch.nn.Module | None):
        self.reader, self.checkpoint = reader, checkpoint
        self.conversion = Conversion(model, checkpoint.files)
        self.sums: list[Sum] = []
        self.groups: list[tuple[str, ...]] = []
        self.touched: set[str] = set()
        self.moved = destinations(
            reader.files, reader.tensor, reader.config.get("tied"), self.conversion.ties, self.conversion.in_memory
        )
        placed, groups = set(), {}
        for name, of in self.moved.items():
            if name in self.conversion.renamed:
                self.sums += [Sum(of, (copy,)) for copy in self.conversion.renamed[name]]
                placed.add(of)
            elif group := self.conversion.group_of(name):
                groups[group] = None
                placed.add(of)
        shapes = {copy: reader.stored(one.update).shape for one in self.sums for copy in one.onto}
        homeless = {name: reader.stored(name).shape for name in reader.files if name not in placed}
        check_targets(shapes | homeless, checkpoint.headers(shapes))
        self.touched |= shapes.keys()
        for group in groups:
            self._plan_group(group)

    def _plan_group(self, group: tuple[str, ...]):
        weights = self.conversion.weights
        updates = {name: self.reader.stored(self.moved[name]) for name in group if name in self.moved}
        check_targets(
            {name: update.shape for name, update in updates.items()},
            {name: (weights[name].shape, weights[name].dtype) for name in group},
        )
        on_disk = self.conversion.to_disk({name: weights[name] for name in group})
        shapes = {name: tensor.shape for name, tensor in on_disk.items()}
        check_targets(shapes, self.checkpoint.headers(shapes))
        if (runs := self.conversion.runs_of(group)) is None:
            self.groups.append(group)
            self.touched |= shapes.keys()
        else:
            sums = [Sum(self.moved[name], tuple(runs[name])) for name in updates]
            self.sums += sums
            self.touched.update(*(one.onto for one in sums))

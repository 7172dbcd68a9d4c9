# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Weights of a checkpoint under the names that they have in memory, read one at a time."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.checkpoints import Shards
from ..runtime.conversions import Conversion, skeleton
from ..runtime.hub import fetch_folder


CHECKPOINT = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*"]


def checkpoint_of(path_or_repo: str | Path) -> tuple[Path, torch.nn.Module | None]:
    """A checkpoint's folder, and its model without weights; None where its architecture is unknown.

    Raises:
        InputError: there is no such folder or repository, or its configuration describes no model.
    """
    from ..models.cifar_resnet import CifarResNetForImageClassification

    source = fetch_folder(path_or_repo, None, CHECKPOINT)
    return source, skeleton(source, [CifarResNetForImageClassification])


def read_group(conversion: Conversion, checkpoint: Shards, group: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The weights of a group (`Conversion.group_of`), as transformers makes them of what is stored."""
    on_disk = conversion.to_disk({name: conversion.weights[name] for name in group})
    return conversion.to_memory({name: checkpoint.tensor(name) for name in on_disk})


class StoredModel(Mapping):
    """{name in memory: tensor} of a safetensors checkpoint; a tied weight has the first of its names.

    Memory: the tensor that was asked for, and of weights that are fused or split on disk those of one group.

    Attributes:
        ties: groups of names that are one weight.

    Raises:
        InputError: as `checkpoint_of` and `Shards`; copies of a tied weight that differ.
    """

    def __init__(self, path_or_repo: str | Path):
        source, model = checkpoint_of(path_or_repo)
        self.checkpoint = Shards(source, "model.safetensors")
        self.conversion = Conversion(model, self.checkpoint.files)
        self.ties = self.conversion.ties
        self._group: tuple[tuple, dict] = ((), {})
        names = self.checkpoint.files if model is None else self.conversion.weights
        # {name: that under which it is found}.
        self._places = {name: name for name in names if self._is_stored(name)}
        for group in self.ties:
            stored = [name for name in group if name in self._places]
            for copy in stored[1:]:
                if not torch.equal(self._read(copy), self._read(stored[0])):
                    raise InputError(
                        f"{source}: {stored[0]} and {copy} are one tied weight and differ in the checkpoint: set "
                        "tie_word_embeddings to false in its config.json if they are two"
                    )
                del self._places[copy]
            if stored:
                del self._places[stored[0]]
                self._places[group[0]] = stored[0]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._read(self._places[name])

    def __contains__(self, name) -> bool:
        return name in self._places  # nothing is read to know it

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _is_stored(self, name: str) -> bool:
        return name in self.conversion.renamed or bool(self.conversion.group_of(name))

    def _read(self, name: str) -> torch.Tensor:
        if name in self.conversion.renamed:
            return self.checkpoint.tensor(self.conversion.renamed[name][0])
        group = self.conversion.group_of(name)
        if self._group[0] != group:
            self._group = (), {}  # one group at a time
            self._group = group, read_group(self.conversion, self.checkpoint, group)
        return self._group[1][name]

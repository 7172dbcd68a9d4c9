# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rules of transformers between the names of weights in memory and the names and layouts of a checkpoint's tensors."""

import copy
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..errors import InputError
from .checkpoints import shorten, tied_names
from .files import read_json


logger = logging.getLogger(__name__)


def skeleton(folder: str | Path, kinds: Iterable[type] = ()) -> torch.nn.Module | None:
    """The model that a checkpoint's config.json describes, on the meta device: names, shapes and ties, no weights.

    None where there is no such file, or its architecture is none of transformers' own, nor one of `kinds` (remote
    code is not run).
    """
    import transformers

    path = Path(folder) / "config.json"
    if not path.is_file():
        return None
    content = read_json(path)
    architectures = content.get("architectures") if isinstance(content, dict) else None
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    kind = {one.__name__: one for one in kinds}.get(name) if isinstance(name, str) else None
    if kind is None and isinstance(name, str) and "auto_map" not in content:
        kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        return None
    try:
        config = kind.config_class.from_pretrained(folder)
        with torch.device("meta"):
            return kind(config)
    except Exception as error:  # whatever a config's values make a constructor raise
        raise InputError(f"{path} describes no {name} that can be built ({error}): is it the model's own?") from error


class Conversion:
    """Where the weights of a model in memory lie in a checkpoint that transformers would load into it.

    transformers renames tensors as it loads them, adds or takes the base model's prefix, and joins or splits some
    (experts, fused projections). What is joined or split is a group, which goes to the disk as saving would send it.

    Args:
        model: the model, on the meta device (see `skeleton`). None: names on disk are names in memory.
        stored (`Iterable[str]`): names of the checkpoint's tensors.
    """

    def __init__(self, model: torch.nn.Module | None, stored: Iterable[str]):
        self.model, self.stored = model, set(stored)
        # {name in memory: names on disk of its copies}, of the weights that are renamed at most.
        self.renamed: dict[str, list[str]] = {}
        # {first name in memory: ((name on disk, the converter's pattern that it matches), ...)}, of groups.
        self._groups: dict[str, list[tuple[str, str]]] = {}
        self.ties = tied_names(model) if model is not None else []
        self._group_of: dict[str, tuple[str, ...]] | None = None
        if model is None:
            self.renamed = {name: [name] for name in self.stored}
            return
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        self.weights = model.state_dict()
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        # As `convert_and_load_state_dict_in_model` finds the place of every tensor.
        for key in sorted(self.stored, key=dot_natural_key):
            prefix = model.base_model_prefix, self.weights
            name, pattern = rename_source_key(key, renamings, converters, *prefix)
            if name not in self.weights and key in self.weights:
                name, pattern = rename_source_key(key, [], [], *prefix)
            if name not in self.weights:
                continue  # transformers loads nothing from it either
            if pattern is None:
                self.renamed.setdefault(name, []).append(key)
            else:
                self._groups.setdefault(name, []).append((key, pattern))
        # Saving reverts what loading has used.
        model._weight_conversions = [rule for rule in rules if rule.was_used()]

    def in_memory(self, name: str) -> str:
        """The name of this model for a weight of a model with, or without, the base model's prefix."""
        prefix = f"{self.model.base_model_prefix}." if self.model is not None else ""
        if self.model is None or name in self.weights:
            return name
        return next((n for n in (name.removeprefix(prefix), prefix + name) if n in self.weights), name)

    def group_of(self, name: str) -> tuple[str, ...]:
        """The weights in memory that share stored tensors with this one (itself among them), in their order."""
        from transformers.core_model_loading import WeightConverter, apply_converters

        if self.model is None:
            return ()
        if self._group_of is None:
            back = [rule.reverse_transform() for rule in self.model._weight_conversions[::-1]]
            back = [rule for rule in back if isinstance(rule, WeightConverter)]
            groups: dict[str, list[str]] = {}
            for other in self.weights:
                place, pattern = apply_converters(other, back)
                if pattern is not None:
                    groups.setdefault(place, []).append(other)
            self._group_of = {other: tuple(names) for names in groups.values() for other in names}
        return self._group_of.get(name, ())

    def runs_of(self, group: tuple[str, ...]) -> dict[str, list[str]] | None:
        """{weight of a group: the stored tensors that it consists of, one after the other}, row-major.

        None where it does not: where rows are interleaved, or their elements transposed or computed. What stacks and
        joins tensors moves whole rows, so rows of one number, which is the row's own, show where all of them go.
        """
        from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, SplitModulelist

        whole_rows = Chunk, Concatenate, MergeModulelist, SplitModulelist
        steps = [
            step
            for name in group
            for pattern in {pattern for _, pattern in self._groups.get(name, [])}
            for step in self._by_pattern[pattern].operations
        ]
        weights = {name: self.weights[name] for name in group}
        stored = self.to_disk(weights)
        widths = {tensor.shape[-1:] for tensor in (*weights.values(), *stored.values())}
        if not (steps and all(type(step) in whole_rows for step in steps) and len(widths) == 1):
            return None
        places, count = {}, 0
        for name, weight in weights.items():
            shape = *weight.shape[:-1], 1
            places[name] = torch.arange(count, count + math.prod(shape)).reshape(shape)
            count += math.prod(shape)
        found = self.to_disk(places)
        back = self.to_memory(found)
        order = sorted(found, key=lambda name: int(found[name].flatten()[0]))
        if not (
            all(found[name].shape[:-1] == tensor.shape[:-1] for name, tensor in stored.items())
            and torch.equal(torch.cat([found[name].flatten() for name in order]), torch.arange(count))
            and all(name in back and torch.equal(back[name], place) for name, place in places.items())
        ):
            return None
        runs: dict[str, list[str]] = {}
        for name, place in places.items():
            first, last = int(place.flatten()[0]), int(place.flatten()[-1])
            within = lambda rows: first <= int(rows.flatten()[0]) and int(rows.flatten()[-1]) <= last  # noqa: B023
            runs[name] = [one for one in order if within(found[one])]
        return runs if sum(map(len, runs.values())) == len(order) else None

    def to_disk(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors of a whole group in memory -> those of the checkpoint, by name.

        Raises:
            InputError: the checkpoint has not the tensors that the group becomes.
        """
        from transformers.core_model_loading import revert_weight_conversion

        prefix = f"{self.model.base_model_prefix}."
        found = {}
        for name, tensor in revert_weight_conversion(self.model, dict(tensors)).items():
            names = (name, name.removeprefix(prefix), prefix + name)
            place = next((n for n in names if n in self.stored), None)
            if place is None:
                raise InputError(
                    f"the checkpoint has no {name}, which {shorten(tensors)} becomes on disk: was it saved by "
                    "transformers, and whole?"
                )
            found[place] = tensor
        return found

    def to_memory(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All stored tensors of groups -> the weights that transformers makes of them, by name."""
        weights = {}
        for first, members in self._groups.items():
            if members[0][0] not in tensors:
                continue
            converter = copy.deepcopy(self._by_pattern[members[0][1]])
            for key, pattern in members:
                converter.add_tensor(first, key, pattern, tensors[key])
            made = converter.convert(first, model=self.model, config=self.model.config)
            weights |= {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        return weights

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a comparison asks of a problem: rows to forget and to keep, and numbers that say how it went."""

import abc
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets

from ..data.rows import row_hashes
from ..errors import InputError
from ..evaluation.specificity import KLResult
from ..report.page import Section
from ..report.vocabulary import Vocabulary
from ..runtime.loading import load_model, load_tokenizer


if TYPE_CHECKING:
    from .comparison import Comparison

# Sections of a YAML that every kind of problem has.
COMMON_SECTIONS = {"title", "problem", "seed", "data", "model", "evaluation", "arguments", "methods"}
REMEMBERED = 2**34  # bytes for the original model's log-probabilities


class StageSize(NamedTuple):
    """What a dry run knows of a stage: numbers of rows, and tokens of a retain row."""

    name: str
    forget_rows: int
    retain_rows: int
    length: int


@dataclass(frozen=True)
class Stage:
    """Rows (`input_ids`, `labels`) that are unlearned together; stages follow one another on the same model."""

    name: str
    forget: Dataset
    retain: Dataset

    @property
    def size(self) -> StageSize:
        """Its numbers of rows, and the mean length of a retain row."""
        tokens = sum(map(len, self.retain["input_ids"]))
        return StageSize(self.name, len(self.forget), len(self.retain), round(tokens / len(self.retain)))


class Problem(abc.ABC):
    """One unlearning problem. The original model is changed in place while methods run, and put back.

    Attributes:
        name: for titles and cards.
        original: the model that knows too much.
        tokenizer: its tokenizer, with a padding token.
        max_length: tokens of the longest row.
        stages: what is to be forgotten, in order.
        results: what the rows of the table mean.
        sections: sections of its YAML, beside `COMMON_SECTIONS`.
    """

    name: str
    original: torch.nn.Module
    tokenizer: object
    max_length: int
    stages: list[Stage]
    results: ClassVar[Vocabulary]
    sections: ClassVar[set[str]]

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Mapping, progress: bool = True) -> "Problem":
        """Load data and models as a YAML says.

        Raises:
            InputError: a setting that does not exist, data or models that cannot be had.
        """

    @classmethod
    @abc.abstractmethod
    def sizes(cls, config: Mapping) -> list[StageSize]:
        """The sizes of the stages, without a model."""

    @abc.abstractmethod
    def identity(self) -> dict:
        """JSON-able: what decides the numbers, beside the original's weights and the methods."""

    @abc.abstractmethod
    def prepare(self, folder: Path, identity: str):
        """Called before the first method runs: remember what must be asked of the original while it is whole.

        Args:
            folder: the comparison's, for what takes long; `identity` is the hash of what the comparison is.
        """

    def references(self) -> dict[str, torch.nn.Module]:
        """Models that the table shows beside the methods, the original first."""
        return {"original": self.original}

    @abc.abstractmethod
    def look(self, model) -> dict:
        """Quick numbers of a candidate: `results.metrics` among them.

        Raises:
            NumericalError: the candidate diverged.
        """

    @abc.abstractmethod
    def measure(self, model, folder: Path | None = None) -> tuple[dict, KLResult]:
        """All numbers of a row of the table, and its divergence token by token; details are written into `folder`."""

    def notes(self) -> list[str]:
        """What a reader should know before trusting the numbers."""
        return []

    def further(self, comparison: "Comparison", rows: Sequence[Mapping]) -> list[Section]:
        """Further sections of the report, measured when the table is done."""
        return []

    @abc.abstractmethod
    def card(self, rows: Sequence[Mapping], best: Mapping) -> dict:
        """What the card of the best model says of data and scores (keys of `cards.render_card`)."""

    def settings(self) -> dict:
        """Sizes that the YAML does not tell, for the report."""
        return {
            "rows": {stage.name: {"forget": len(stage.forget), "retain": len(stage.retain)} for stage in self.stages}
        }


def together(stages: Sequence[Stage]) -> list[Stage]:
    """All stages as one; a retain row that several have counts once."""
    if len(stages) == 1:
        return list(stages)
    retain = concatenate_datasets([stage.retain for stage in stages])
    first = {row: index for index, row in reversed(list(enumerate(row_hashes(retain))))}
    forget = concatenate_datasets([stage.forget for stage in stages])
    return [Stage(" and ".join(stage.name for stage in stages), forget, retain.select(sorted(first.values())))]


def configured(function, section: str, settings: Mapping | None, **others):
    """`function(**settings, **others)`, where settings come from a person's YAML.

    Raises:
        InputError: a setting that the function does not have, or one that is missing.
    """
    settings = settings or {}
    parameters = {name: value for name, value in inspect.signature(function).parameters.items() if name not in others}
    if not isinstance(settings, Mapping):
        raise InputError(
            f"{section}: give settings by name, not {settings!r}; there are {', '.join(sorted(parameters))}"
        )
    if unknown := set(settings) - set(parameters):
        raise InputError(
            f"{section}: no setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(parameters))}"
        )
    required = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    if missing := sorted(required - set(settings)):
        raise InputError(f"{section}: {', '.join(missing)} is missing; there are {', '.join(sorted(parameters))}")
    return function(**settings, **others)


def model_arguments(model: Mapping) -> dict:
    """How `from_pretrained` is called for the section `model`."""
    return {"dtype": model.get("dtype", "auto"), "device_map": "auto" if torch.cuda.is_available() else None}


def load_original(model: Mapping, purpose: str) -> tuple[torch.nn.Module, object, dict]:
    """Model and tokenizer of `model.original`, and the arguments that load a second model alike.

    Raises:
        InputError: they cannot be loaded, or there is no tokenizer.
    """
    if not model.get("original"):
        raise InputError("model.original is missing: give a model id, a folder, or model.scratch")
    kwargs = model_arguments(model)
    tokenizer = load_tokenizer(model["original"], kwargs, required_for=purpose)
    original, _ = load_model(model["original"], tokenizer, kwargs)
    return original.eval(), tokenizer, kwargs

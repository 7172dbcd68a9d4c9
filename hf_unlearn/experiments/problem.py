# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Problems as a comparison sees them: rows to forget and to keep, models, and numbers that say how it went."""

import abc
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from ..data.collators import CausalCollator
from ..data.rows import row_hashes
from ..errors import InputError, first_line
from ..evaluation.specificity import KLResult, TokenKL
from ..methods.base import StageSize
from ..miniature.training import llama_config
from ..report.page import Section
from ..report.vocabulary import Vocabulary
from .line import Line
from .settings import Experiment, check_settings, configured


REMEMBERED = 2**34  # bytes for the original model's log-probabilities
Reader = Callable[[str, Mapping | None], object]


def typed(settings: type) -> Reader:
    """The reader of a section whose keys are the fields of a dataclass."""
    return lambda section, written: configured(settings, section, written)


@dataclass(frozen=True)
class Stage:
    """Rows that are unlearned together; stages follow one another on the same model."""

    name: str
    forget: Dataset
    retain: Dataset
    questions: Dataset | None = None  # the forget rows as text, for methods that put other answers to them
    template: Mapping | None = None  # fields of `QATemplate`, by which the questions become the forget rows

    @property
    def size(self) -> StageSize:
        """Its numbers of rows, and the mean length of a retain row."""
        tokens = len(self.retain)  # an image is one position
        if "input_ids" in self.retain.column_names:
            tokens = sum(map(len, self.retain["input_ids"]))
        return StageSize(self.name, len(self.forget), len(self.retain), round(tokens / len(self.retain)))


@dataclass(frozen=True)
class Reference:
    """A model that the table shows beside the methods, the seconds that its training took, if known, and what else
    its row says."""

    model: torch.nn.Module
    seconds: float | None = None
    more: Mapping = field(default_factory=dict)


class Problem(abc.ABC):
    """One unlearning problem at one size and seed. Methods change the original model in place; it is restored.

    Attributes:
        name: for titles and cards.
        original: the model that knows too much.
        tokenizer: its tokenizer, with a padding token; None for images.
        collator: makes batches of rows; None for the trainer's own.
        max_length: tokens of the longest row.
        stages: what is to be forgotten, in order.
        vocabulary: what the rows of the table mean.
        sections: readers of the sections of its YAML, the optional ones `tuner` and `tuning` among them.
        every_evaluation: whether every evaluation during a training is a candidate; else the end of a training is,
            which comes when `should_stop` says so.
        every_stage: whether the numbers after each stage are looked at, by `score_stage`, and not those alone after
            the last one.
    """

    name: str
    original: torch.nn.Module
    tokenizer: object = None
    collator: Callable | None = None
    max_length: int = 512
    stages: list[Stage]
    vocabulary: ClassVar[Vocabulary]
    sections: ClassVar[Mapping[str, Reader]]
    every_evaluation: ClassVar[bool] = True
    every_stage: bool = False

    # ---- before anything is loaded ---------------------------------------------------------------------------------
    @abc.abstractmethod
    def __init__(self, experiment: Experiment, size, seed: int, progress: bool = True):
        """Load data and models; `size` is one of `sizes`.

        Raises:
            InputError: data or models that cannot be had.
        """

    @classmethod
    def sizes(cls, experiment: Experiment) -> Sequence:
        """The sizes that the table is run for, values of the vocabulary's `size_key`; [None] where there is one."""
        return [None]

    @classmethod
    @abc.abstractmethod
    def stage_sizes(cls, experiment: Experiment, size) -> list[StageSize]:
        """The sizes of the stages, without a model."""

    @classmethod
    def architecture(cls, experiment: Experiment) -> tuple[torch.nn.Module, dict]:
        """The original's architecture on the meta device, and a batch that it takes.

        Raises:
            InputError: the YAML does not tell the architecture, and the model is not at hand.
        """
        return experiment.model.architecture()

    @classmethod
    def candidates(cls, line: Line) -> int:
        """How many candidates a line shows."""
        return line.candidates if cls.every_evaluation else line.number_of_trainings

    # ---- numbers ---------------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def identity(self) -> dict:
        """JSON-able: what decides the numbers, beside the original's weights, the stages' rows and the methods."""

    @abc.abstractmethod
    def prepare(self, folder: Path, identity: str):
        """Called before the first method runs: remember what must be asked of the original while it is whole.

        What takes long goes to the comparison's folder; `identity` is the hash of what the comparison is.
        """

    def references(self) -> dict[str, Reference]:
        """Models that the table shows beside the methods, the original first."""
        return {self.vocabulary.references[0]: Reference(self.original)}

    @abc.abstractmethod
    def score_candidate(self, model) -> dict:
        """Quick numbers of a candidate: `vocabulary.metrics` among them.

        Raises:
            NumericalError: the candidate diverged.
        """

    def score_stage(self, model, stages: int) -> dict:
        """Numbers of a model after so many stages, with `every_stage`: entries of the `path` of a candidate's row."""
        raise TypeError(f"{type(self).__name__} looks at the last stage alone")

    def should_stop(self, model) -> bool:
        """Whether a training has done what it is for; asked at every evaluation that is no candidate."""
        return False

    @abc.abstractmethod
    def evaluate(self, model, folder: Path | None = None) -> tuple[dict, KLResult | None]:
        """All numbers of a row, and its divergence by token where there is one; details are written into `folder`."""

    # ---- what is told ----------------------------------------------------------------------------------------------
    def answers(self, model) -> dict[str, list[dict]]:
        """What a model says to the few questions that a report opens with, as `compare_answers` takes it."""
        return {}

    def notes(self) -> list[str]:
        """What a reader should know before trusting the numbers."""
        return []

    def extra_rows(self, cell) -> list[dict]:
        """Rows of further tables, measured when the lines of a `Cell` are done."""
        return []

    def extra_sections(self, cell, rows: Sequence[Mapping]) -> list[Section]:
        """Further sections of the report, measured when the lines of a `Cell` are done."""
        return []

    @classmethod
    def table_sections(cls, experiment: Experiment, rows: Sequence[Mapping]) -> list[Section]:
        """Further sections of the report, made of the rows of all sizes and seeds."""
        return []

    @abc.abstractmethod
    def card(self, rows: Sequence[Mapping], best: Mapping) -> dict:
        """What the card of the best model says of data and scores beside `rows` (keys of `render_card`)."""

    def facts(self) -> dict:
        """Sizes that the YAML does not tell, for the report."""
        return {
            "rows": {stage.name: {"forget": len(stage.forget), "retain": len(stage.retain)} for stage in self.stages}
        }


def divergence_from(problem: Problem, rows: Dataset, **settings) -> TokenKL:
    """The KL of models from a language problem's original, whose answers to `rows` are remembered."""
    loader = DataLoader(
        rows.select_columns(["input_ids", "labels"]),
        batch_size=problem.settings.batch_size,
        collate_fn=CausalCollator(problem.tokenizer.pad_token_id),
    )
    return TokenKL(problem.original, loader, cache_bytes=REMEMBERED, **settings)


def merge_stages(stages: Sequence[Stage]) -> list[Stage]:
    """All stages as one; a retain row that several have counts once, and one that a later stage forgets not at all."""
    if len(stages) == 1:
        return list(stages)
    retain = concatenate_datasets([stage.retain for stage in stages])
    first = {row: index for index, row in reversed(list(enumerate(row_hashes(retain))))}
    forget = concatenate_datasets([stage.forget for stage in stages])
    kept = sorted(first[row] for row in first.keys() - set(row_hashes(forget)))
    return [Stage(" and ".join(stage.name for stage in stages), forget, retain.select(kept))]


@dataclass
class LanguageModel:
    """The section `model` of a language problem.

    Args:
        original: the model that knows too much, by Hub id or folder; or `scratch`, sizes of one to be trained here.
        dtype: of the weights.
        config: the architecture (`model_type` and its fields), for a dry run without the weights.

    Attributes:
        train: what trains a model of `scratch`; its defaults are the sizes that are not given.
    """

    original: str | None = None
    dtype: str = "auto"
    config: dict | None = None
    scratch: dict | None = None
    train: ClassVar[Callable]

    def __post_init__(self):
        if self.scratch is not None:
            check_settings(self.train, "model.scratch", self.scratch, ("splits", "hazards", "seed", "progress"))
        elif not self.original:
            raise InputError("model.original is missing: give a model id, a folder, or model.scratch")

    @property
    def arguments(self) -> dict:
        """How `from_pretrained` is called."""
        return {"dtype": self.dtype, "device_map": "auto" if torch.cuda.is_available() else None}

    def architecture(self) -> tuple[torch.nn.Module, dict]:
        """A causal language model on the meta device, and a batch.

        Raises:
            InputError: no architecture is given, and the model's own is not at hand.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            if self.config is not None:
                fields = dict(self.config)
                config = AutoConfig.for_model(fields.pop("model_type"), **fields)
            elif self.scratch is not None:
                # The tokenizer that is trained may come out smaller.
                defaults = {name: value.default for name, value in inspect.signature(self.train).parameters.items()}
                names = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads")
                config = llama_config(**{name: (defaults | self.scratch)[name] for name in names})
            else:
                config = AutoConfig.from_pretrained(self.original)
        except (OSError, ValueError, KeyError) as error:
            reason = first_line(error)
            raise InputError(f"no architecture for a dry run ({reason}): give model.config in the YAML") from error
        dtype = getattr(torch, self.dtype, torch.float32)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype if isinstance(dtype, torch.dtype) else None)
        return model.eval(), {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}

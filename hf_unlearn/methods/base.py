# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The seam of a method: all that trainer, comparison, dry run, card and log may ask of it, and it of a run.

Whoever uses a method asks what [`Method`] names, never which method it is.
"""

import abc
import contextlib
import copy
import dataclasses
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..errors import InputError
from ..objectives import count_predictions, count_rows
from ..optim import Part
from ..runtime.fields import Range, check_fields


@dataclass
class Counts:
    """Predicted tokens, and rows that have any, of one optimiser step: over all its micro-batches and processes.

    At least 1 each, so that a batch without labels gives a loss of 0.
    """

    forget_tokens: int
    forget_rows: int
    retain_tokens: int = 0
    retain_rows: int = 0

    @classmethod
    def at_least_one(cls, numbers: Sequence[int]) -> "Counts":
        return cls(*[max(int(number), 1) for number in numbers])

    @staticmethod
    def numbers(batches: Sequence[Mapping]) -> list[int]:
        """Tokens and rows of each side of some batches, to be summed over processes."""
        found = []
        for side in ["forget", *(["retain"] if "retain" in batches[0] else [])]:
            labels = [batch.get(side, batch)["labels"] for batch in batches]
            found += [sum(map(count_predictions, labels)), sum(map(count_rows, labels))]
        return found


class StageSize(NamedTuple):
    """What is known of a stage before it runs: its name, numbers of rows, and tokens of a retain row."""

    name: str
    forget_rows: int
    retain_rows: int
    length: int


class Run(Protocol):
    """What a method may use of the trainer that runs it.

    Attributes:
        model: as it is trained; `accelerator.unwrap_model(model)` for the model below wrappers.
        args: the training arguments, after `Method.configure`.
        accelerator: of the launch, also with one process.
        state: transformers' `TrainerState`; `global_step` counts optimiser steps, or parts of the method's own run.
        forget_dataset, retain_dataset: prepared rows; no retain rows where none were given.
        single_collator: makes a batch of single rows.
        base_weights: what could move, as it was before the first step: parameter name -> tensor on the CPU.
        cost: seconds and memory by name, which the method may add to.
        is_sharded: whether the model is spread over processes.
    """

    model: nn.Module
    args: Any
    accelerator: Any
    state: Any
    forget_dataset: Any
    retain_dataset: Any
    single_collator: Callable
    base_weights: Mapping[str, Tensor]
    cost: dict[str, float]
    is_sharded: bool

    def loader(self, dataset, batch_size: int) -> DataLoader:
        """Batches of single rows, in order."""

    def weights_of_base(self) -> contextlib.AbstractContextManager:
        """The model with the weights it had before the first step."""

    def train(self) -> Any:
        """The whole run, for methods that search with it (`Method.sweep_search`)."""


class Method(abc.ABC):
    """
    A way to unlearn. Subclasses are dataclasses of the paper's settings, and define `loss` (the trainer's loop
    descends it) or `run` (a closed form, or many small trainings). Everything else has a default here.

    Attributes:
        label: name for tables and cards.
        paper: title, id and BibTeX entry, for the card.
        paired: batches are `{"forget": ..., "retain": ...}` pairs instead of forget rows alone.
        retain_alone: batches are retain rows alone, and an epoch is one of these; counts of a step stand where those
            of forget rows do.
        needs_retain: a retain dataset must be given.
        even_batches: all processes get the same number of batches, for which rows may be repeated. False: no row
            counts twice in a step.
        own_update: `changes` reports what was changed; else the trainer takes the difference of the weights.
        searched: settings or training arguments of which a line of a comparison must set or search one.
        alternatives: texts, one of which is put in the place of each forget row's answer; the rows that this gives are
            a side "alternative" of paired batches.
        own_steps: optimiser steps, or parts of its own run, of one training; None: the number of epochs decides.
        allowed: setting -> the range of its numbers, or the texts to choose from. Types are those of the annotations.

    Raises:
        InputError: a setting of another type, out of range, not finite, or none of the choices.
    """

    label: ClassVar[str]
    paper: ClassVar[dict[str, str]] = {}
    paired: bool = False
    retain_alone: bool = False
    needs_retain: bool = True
    even_batches: ClassVar[bool] = True
    own_update: ClassVar[bool] = False
    searched: ClassVar[tuple[str, ...]] = ("learning_rate",)
    own_steps: int | None = None
    alternatives: Sequence[str] = ()
    allowed: ClassVar[Mapping[str, Range | Sequence[str]]] = {}

    def __post_init__(self):
        self.check_settings()

    def check_settings(self):
        """As `check_values`, of all of this method's; numbers of NumPy become Python's, which JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name, value in values.items():
            if isinstance(value, numbers.Real) and not isinstance(value, int | float):
                values[name] = value.item()
                setattr(self, name, values[name])
        self.check_values(values)

    @classmethod
    def check_values(cls, values: Mapping[str, object]):
        """Refuse settings, by name, that the method could not be made with; see `Raises` of the class."""
        check_fields(cls, values, cls.allowed)

    def settings(self) -> dict:
        """JSON-able settings, for logs, deltas and the identity of a run."""
        return {"method": type(self).__name__} | {
            field.name: value
            if isinstance(value := getattr(self, field.name), SETTING_TYPES)
            else type(value).__name__
            for field in dataclasses.fields(self)
        }

    # ---- what the trainer asks -------------------------------------------------------------------------------------
    def configure(self, args, forget_rows: int):
        """The training arguments (`UnlearnConfig`) that this method needs, as a copy.

        Raises:
            InputError: they do not fit the number of forget rows or of processes.
        """
        args = copy.copy(args)
        if self.own_steps is not None:
            args.max_steps = self.own_steps
        return args

    def prepare(self, run: Run):
        """Called once when training begins, before the optimiser exists."""

    def compared(self, run: Run) -> dict:
        """What else than code, settings, rows and weights must be the same on all processes: words -> value."""
        return {}

    def run(self, run: Run) -> Iterator[Mapping[str, float]] | None:
        """None: the trainer's loop over batches of `loss`. Else the method's own work, in parts.

        A generator changes the weights in place and yields after each part what there is to log: the trainer then
        counts a step (`run.state.global_step`), logs, evaluates and writes a checkpoint. `own_steps` is the number of
        parts. A run that is resumed has the weights of the checkpoint, and as many parts behind it as steps.
        """
        return None

    def create_optimizer(self, run: Run) -> torch.optim.Optimizer | None:
        """The method's own optimiser; None for the one that the training arguments name."""
        return None

    def parts(self, run: Run) -> Mapping[str, Part]:
        """The parameters of which the optimiser may change some entries alone, and which these are."""
        return {}

    def begin(self, run: Run):
        """Called before the first batch, when the model is wrapped and spread as it will be during the run."""

    def loss(self, model, inputs, counts: Counts) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the loss (shares add up over the step), and parts to log under the same rule."""
        raise TypeError(f"{type(self).__name__} defines neither loss nor run")

    def on_log(self, run: Run) -> dict[str, float]:
        """Further numbers of the step that is logged."""
        return {}

    def on_load(self, run: Run):
        """Called before the optimiser's state of a checkpoint is loaded into a model that is spread over processes."""

    def changes(self, run: Run) -> dict[str, Tensor] | None:
        """With `own_update` what was changed so far, in fp32 as it was made: parameter name -> tensor."""
        return None

    def finish(self, run: Run):
        """Called when training ends, also after an error."""

    # ---- what a card and a ledger ask ------------------------------------------------------------------------------
    def account(self) -> dict:
        """JSON-able facts of the run that is done, beside settings and cost."""
        return {}

    # ---- what a comparison and a dry run ask -----------------------------------------------------------------------
    def check(self, stage: StageSize):
        """Refuse a stage that the method could only fail on once it runs.

        Raises:
            InputError: for example fewer forget rows than the steps need.
        """

    def plan(self, model: nn.Module, stage: StageSize) -> list[str]:
        """What a training on this stage will do and cost, a line each; the model may be on the meta device.

        Raises:
            InputError: settings that do not fit the model.
        """
        return []

    def evaluations(self, epochs: int, arguments: Mapping) -> int:
        """How many candidates one training shows: one after each epoch, or after every `eval_steps` steps."""
        steps = arguments.get("max_steps") if self.own_steps is None else self.own_steps
        return epochs if steps is None else steps // arguments.get("eval_steps", 1)

    def schedule(self, epochs: int) -> dict:
        """Training arguments that make a training show its candidates."""
        if self.own_steps is None:
            return {"num_train_epochs": epochs, "eval_strategy": "epoch"}
        return {"eval_strategy": "steps", "eval_steps": 1}

    def reached(self, state) -> dict:
        """How far a training has come at a candidate, from its `TrainerState`."""
        if self.own_steps is None:
            return {"epochs": round(state.epoch or 0, 2)}
        return {"steps": max(state.global_step, 1)}

    def sharing(self, folder: Path) -> "Method":
        """The same method, which may keep in a folder what the trainings of one search have in common."""
        return self

    def sweeps(self, search: Mapping[str, Sequence]) -> bool:
        """Whether one training serves all values of a search (`sweep_search`)."""
        return False

    def sweep_search(
        self, run: Run, search: Mapping[str, Sequence], evaluate: Callable, best: Callable[[list[dict]], int]
    ):
        """Train once and show every value of the search to `evaluate(model, values)`; the best stays in the model."""
        raise TypeError(f"{type(self).__name__} has no candidates that share a training")


def check_classes(run: Run, objective: str):
    """Refuse an objective of classes on values.

    Raises:
        InputError: the forget rows are those of a regression.
    """
    if isinstance(run.forget_dataset[0]["labels"], float):
        raise InputError(
            f"objective={objective!r} needs wrong classes, which a regression does not have: choose one of its loss"
        )


SETTING_TYPES = (str, int, float, bool, type(None), list, tuple, dict)


def split_labels(batch: dict) -> tuple[dict, Tensor]:
    """A batch without its labels (so that the model computes no loss of its own), and the labels."""
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]

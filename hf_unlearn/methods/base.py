# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a method decides; the loop, logs, checkpoints and files are the trainer's."""

import abc
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch


if TYPE_CHECKING:
    from ..trainer.config import UnlearnConfig
    from ..trainer.trainer import UnlearnTrainer


@dataclass
class Counts:
    """Predicted tokens, and rows that have any, of one optimiser step: over all its micro-batches and processes.

    At least 1 each, so that a batch without labels gives a loss of 0.
    """

    forget_tokens: int
    forget_rows: int
    retain_tokens: int = 0
    retain_rows: int = 0


class Method(abc.ABC):
    """
    A way to unlearn. Subclasses are dataclasses of the paper's settings; everything else has a default here.

    Attributes:
        label: name for tables and cards.
        paper: title, id and BibTeX entry, for the card.
        paired: batches are `{"forget": ..., "retain": ...}` pairs instead of forget rows alone.
        needs_retain: a retain dataset must be given.
        natural_gradient: its optimiser is `NaturalGradientAscent`, which accounts for the update and its KL itself.
    """

    label: ClassVar[str]
    paper: ClassVar[dict[str, str]] = {}
    paired: bool = False
    needs_retain: bool = True
    natural_gradient: ClassVar[bool] = False

    def settings(self) -> dict:
        """JSON-able settings, for logs, deltas and the identity of a run."""
        return {"method": type(self).__name__} | {
            field.name: value
            if isinstance(value := getattr(self, field.name), SETTING_TYPES)
            else type(value).__name__
            for field in dataclasses.fields(self)
        }

    def configure(self, args: "UnlearnConfig", forget_rows: int) -> "UnlearnConfig":
        """The training arguments that this method needs (a copy).

        Raises:
            InputError: they do not fit the number of forget rows or of processes.
        """
        return args

    def prepare(self, trainer: "UnlearnTrainer"):
        """Called once when training begins, before the optimiser exists."""

    def create_optimizer(self, trainer: "UnlearnTrainer") -> torch.optim.Optimizer | None:
        """The method's own optimiser; None for the one that the training arguments name."""
        return None

    @abc.abstractmethod
    def loss(self, model, inputs, counts: Counts) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """This micro-batch's share of the loss (shares add up over the step), and parts to log under the same rule."""

    def finish(self, trainer: "UnlearnTrainer"):
        """Called when training ends, also after an error."""


SETTING_TYPES = (str, int, float, bool, type(None), list, tuple, dict)


def split_labels(batch: dict) -> tuple[dict, torch.Tensor]:
    """A batch without its labels (so that the model computes no loss of its own), and the labels."""
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]

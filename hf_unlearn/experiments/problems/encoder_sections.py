# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sections of the YAML of problems whose model is a tuned encoder: rows, those to forget, the encoder, its tuning."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from datasets import Dataset

from ...data.rows import draw_request, sample_rows
from ...errors import InputError
from ...evaluation.confidences import BATCH
from ...report.vocabulary.glue import CHOICES
from ...runtime.fields import Range, check_fields
from ..settings import check_settings


@dataclass
class EncoderData(abc.ABC):
    """The keys of the section `data` that tasks of encoders share.

    Args:
        rows: training rows of D, drawn by the seed; all by default.
        forget: how many of them are to be forgotten, drawn by the seed.
        requests: how many requests the forget rows come in, one after another; the rows of later ones are retain
            rows of those before.
        test_rows: rows of the test set; all by default.
        max_length: tokens of the longest row.

    Attributes:
        embedded: the `source` that stands for invented rows; the section has a key of the same name for their maker.
        title: of the task, for names and messages.
        outputs: of the head.

    Raises:
        InputError: numbers out of range, arguments of the embedded rows with another source.
    """

    rows: int | None = None
    forget: int = 128
    requests: int = 1
    test_rows: int | None = None
    max_length: int = 128
    allowed: ClassVar[Mapping] = dict.fromkeys(
        ("rows", "forget", "requests", "test_rows", "max_length"), Range(least=1)
    )
    embedded: ClassVar[str]
    make: ClassVar[Callable]  # of the embedded rows: a function of the seed
    title: ClassVar[str]
    outputs: ClassVar[int]

    def __post_init__(self):
        check_fields(type(self), vars(self), self.allowed)
        if self.requests > self.forget:
            raise InputError(f"data.requests={self.requests}: there are {self.forget} rows to forget; lower it")
        if self.is_embedded:
            check_settings(self.make, f"data.{self.embedded}", getattr(self, self.embedded), ("seed",))
        elif getattr(self, self.embedded) is not None:
            raise InputError(
                f"data.{self.embedded} belongs to source: {self.embedded}: leave it out, or change source"
            )

    @property
    def is_embedded(self) -> bool:
        return self.source == self.embedded

    @abc.abstractmethod
    def load(self) -> tuple[Dataset, Dataset]:
        """(training rows, test rows) as text, of files or the Hub."""

    def sets(self, seed: int) -> tuple[Dataset, Dataset, Dataset]:
        """(forget, retain, test) rows as text.

        Raises:
            InputError: as `load`, or more rows asked for than there are.
        """
        make = type(self).make
        train, test = make(seed, **(getattr(self, self.embedded) or {})) if self.is_embedded else self.load()
        for name, wanted, rows in (("rows", self.rows, train), ("test_rows", self.test_rows, test)):
            if wanted is not None and wanted > len(rows):
                raise InputError(f"data.{name}={wanted}: {self.title} has {len(rows)}; lower it, or leave it out")
        forget, retain = draw_request(sample_rows(train, self.rows, seed), self.forget, seed)
        return forget, retain, sample_rows(test, self.test_rows, seed)


@dataclass
class EncoderModel:
    """The section `model`.

    Args:
        name: the pretrained encoder that is tuned, by Hub id or folder; the embedded rows have their own.
        original: an encoder that was tuned on the rows already, in place of tuning `name` on them; the retrained model
            is tuned from `name` all the same.
        scratch: arguments of the maker of a small encoder for the embedded rows.

    Attributes:
        make: this maker, a function of rows and the seed, which gives (tokenizer, model).
        head: the class of transformers that puts the head on.
    """

    name: str | None = None
    original: str | None = None
    scratch: dict | None = None
    make: ClassVar[Callable]
    head: ClassVar[str]

    def __post_init__(self):
        if (self.name is None) == (self.scratch is None):
            raise InputError("model: give name (the pretrained encoder), or scratch for the embedded rows")
        if self.scratch is not None:
            check_settings(self.make, "model.scratch", self.scratch, ("rows", "seed"))

    def start(self, rows: Dataset, seed: int) -> tuple:
        """(tokenizer, model) of `scratch`, for the words of some rows."""
        return type(self).make(rows, seed, **self.scratch)


@dataclass
class EncoderTuning:
    """The section `tuning`: AdamW with a linear schedule, as the paper's appendix A.1; its rates are 1e-5 to 5e-5."""

    epochs: int = 5
    learning_rate: float = 3e-5
    batch_size: int = 32
    weight_decay: float = 0.0
    allowed: ClassVar[Mapping] = {
        **dict.fromkeys(("epochs", "batch_size"), Range(least=1)),
        "learning_rate": Range(above=0),
        "weight_decay": Range(least=0),
    }

    def __post_init__(self):
        check_fields(EncoderTuning, vars(self), self.allowed)


@dataclass
class EncoderEvaluation:
    """The section `evaluation`.

    Args:
        batch_size: rows in a forward pass.
        retain_rows: rows that stay on which RA and the attack are measured, drawn by the seed.
        choose: which candidate of a line its row shows, of `CHOICES`: "gap", the one with the least gap to the
            retrained model, or "unlearning", the one whose UA is nearest to the retrained model's, which compares
            lines at equal forgetting, as sweeps do.
        retrain_every: with several requests, retrain a model after every so many of them too; after the last alone by
            default.
        again: retrain a second model from another seed, which shows how near to the first one can come.
    """

    batch_size: int = BATCH
    retain_rows: int = 5000
    choose: str = CHOICES[0]
    retrain_every: int | None = None
    again: bool = True
    allowed: ClassVar[Mapping] = {
        **dict.fromkeys(("batch_size", "retain_rows", "retrain_every"), Range(least=1)),
        "choose": CHOICES,
    }

    def __post_init__(self):
        check_fields(EncoderEvaluation, vars(self), self.allowed)

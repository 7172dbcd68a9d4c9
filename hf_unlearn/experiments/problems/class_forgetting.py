# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Class forgetting (Fast-NTK's tables): tune on all classes, forget one, compare with retraining on the others.

A table has one column for each number of images per class; its rows are means over seeds. Candidates of a line are
chosen on training rows alone, without the retrained model.
"""

import copy
import functools
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from transformers import set_seed

from ...data.images import (
    ImageCollator,
    class_names,
    find_class,
    keep_classes,
    load_images,
    select_per_class,
    split_class,
)
from ...data.rows import fingerprint_rows
from ...errors import InputError
from ...evaluation.images import accuracy, count_predictions, linear_probe, relearning_epochs
from ...methods.base import StageSize
from ...report.class_tables import class_sections, paper_figures
from ...report.questions import FORGET, RETAIN
from ...report.vocabulary.classes import FORGOTTEN, PROBE, TOLERANCE, ClassVocabulary
from ...runtime.cache import cached_json
from ...runtime.files import sha256_json, sha256_tensors
from ...runtime.provenance import code_sha256
from ..problem import Problem, Reference, Stage, typed
from ..settings import check_settings
from .image_models import ImageModel, Tuning, check_images, read_tuner
from .tuning import tune, tuned


CALLED = 3  # classes that an answer names


@dataclass
class Images:
    """The section `data`.

    Args:
        train, test: sources of `load_images`, with their splits after a colon ("cifar10:train"); without `test` the
            share `holdout` of each class of `train` is set apart, the same for all seeds.
        forget: number or name of the class to forget.
        per_class: images per class of D, one column of the table each.
        classes: take this many classes only (a seeded choice that holds the forgotten one).
        image_size, mean, std: of `ImageCollator`.
        holdout_per_class: images per class of the hold-out set; all by default.
        data_dir: where sources that are folders lie.

    Raises:
        InputError: no number of images, or a folder that does not exist.
    """

    train: str = "digits:train"
    test: str | None = "digits:test"
    holdout: float = 0.2
    forget: int | str = 0
    per_class: list[int] = field(default_factory=lambda: [40])
    classes: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    holdout_per_class: int | None = None
    data_dir: str | None = None

    def __post_init__(self):
        if not self.per_class:
            raise InputError("data.per_class is empty: name the numbers of images per class")
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise InputError(f"data.data_dir: the folder {self.data_dir} does not exist")
        self.collator = ImageCollator(tuple(self.mean), tuple(self.std), self.image_size)

    def load(self, source: str) -> Dataset:
        place, _, split = source.partition(":")
        if self.data_dir is not None and (Path(self.data_dir) / place).exists():
            place = str(Path(self.data_dir) / place)
        return load_images(place, split or "train")

    def sets(self, per_class: int, seed: int) -> tuple[Dataset, Dataset, Dataset]:
        """(D_f, D_r, hold-out) of a size and seed; the forgotten class is the same in all.

        Raises:
            InputError: no such class, or too few images.
        """
        train = self.load(self.train)
        train, test = (train, self.load(self.test)) if self.test is not None else set_apart(train, self.holdout)
        forget = find_class(train, self.forget)
        if self.classes is not None:
            if not 2 <= self.classes <= len(class_names(train)):
                raise InputError(f"data.classes must lie between 2 and {len(class_names(train))}, not {self.classes}")
            others = [label for label in range(len(class_names(train))) if label != forget]
            order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
            chosen = [forget, *(others[place] for place in order[: self.classes - 1])]
            train, test, forget = keep_classes(train, chosen), keep_classes(test, chosen), 0
        rows = select_per_class(train, per_class, seed)
        return *split_class(rows, forget), select_per_class(test, self.holdout_per_class, seed)


def set_apart(rows: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """(train, test): the share of each class that a fixed draw puts into the second.

    Raises:
        InputError: a share that leaves one of them empty.
    """
    if not 0 < share < 1:
        raise InputError(f"data.holdout must lie between 0 and 1, not {share}: it is the share of images set apart")
    split = rows.train_test_split(test_size=share, seed=0, stratify_by_column="labels")
    return split["train"], split["test"]


@dataclass
class ClassEvaluation:
    """The section `evaluation`.

    Args:
        relearning: arguments of `evaluation.images.relearning_epochs`; not measured by default.
        probe: whether to train a new head on the features of the pretrained model, of one drawn at random, and of the
            line "Fast-NTK" (Table III).
        paper: network and dataset of the paper's figures that stand beside the measured ones.
    """

    relearning: dict | None = None
    probe: bool = False
    paper: str | None = None

    def __post_init__(self):
        self.figures = paper_figures(self.paper)
        if self.relearning is not None:
            others = ("model", "rows", "collator", "seed")
            check_settings(relearning_epochs, "evaluation.relearning", self.relearning, others)


class ClassForgetting(Problem):
    """One class forgotten by a model tuned on all. `sets` are D_f, D_r and the hold-out set, `everything` is D."""

    vocabulary = ClassVocabulary()
    sections = {
        "data": typed(Images),
        "model": typed(ImageModel),
        "tuner": read_tuner,
        "tuning": typed(Tuning),
        "evaluation": typed(ClassEvaluation),
    }
    # As the paper's baselines a training goes on until nothing of D_f is left, and its end is the candidate.
    every_evaluation = False

    def __init__(self, experiment, size, seed, progress=True):
        self.images, self.image_model, self.tuner = experiment.data, experiment.model, experiment.tuner
        self.tuning, self.settings = experiment.tuning, experiment.evaluation
        self.per_class, self.seed, self.collator = size, seed, self.images.collator
        self.sets = forget, retain, _ = self.images.sets(size, seed)
        self.stages, self.everything = [Stage("class", forget, retain)], concatenate_datasets([retain, forget])
        self.name = f"{self.images.train.partition(':')[0]} without class {self.images.forget}"

    @classmethod
    def sizes(cls, experiment):
        return experiment.data.per_class

    @classmethod
    def stage_sizes(cls, experiment, size):
        forget, retain, _ = experiment.data.sets(size, experiment.seeds[0])
        return [StageSize("class", len(forget), len(retain), 1)]

    @classmethod
    def architecture(cls, experiment):
        classes = len(class_names(experiment.data.load(experiment.data.train)))
        model = experiment.model.architecture(experiment.data.classes or classes, experiment.data)
        size = experiment.data.image_size or model.config.image_size
        # With its tuner: target modules are named as the run names them.
        return experiment.tuner.wrap(model), {"pixel_values": torch.zeros(2, 3, size, size, device="meta")}

    # ---- models ----------------------------------------------------------------------------------------------------
    @functools.cached_property
    def start(self) -> nn.Module:
        """The pretrained model with its tuner."""
        labels = len(class_names(self.sets[1]))
        start = self.tuner.wrap(self.image_model.load(self.images, labels, self.seed, self.tuner.head))
        check_images(start, self.everything, self.collator)
        return start

    @functools.cached_property
    def original(self) -> nn.Module:
        return self._full.model

    @functools.cached_property
    def _full(self) -> Reference:
        return self._tuned(self.everything)

    def _tuned(self, rows: Dataset) -> Reference:
        """The model tuned on some rows, once for all that decides what comes out."""
        settings = self.tuning.of(self.per_class)
        key = {
            "kind": "tuned image classifier",
            "rows": fingerprint_rows(rows),
            "images": asdict(self.collator),
            "tuning": settings,
            "seed": self.seed,
        }
        return tuned(self.start, key, lambda model: tune(model, rows, self.collator, settings, self.seed))

    def references(self):
        full, retrained = self.vocabulary.references
        return {full: self._full, retrained: self._tuned(self.sets[1])}

    # ---- numbers ---------------------------------------------------------------------------------------------------
    def identity(self):
        return {
            "holdout": fingerprint_rows(self.sets[2]),
            "images": asdict(self.collator),
            "relearning": self.settings.relearning,
        }

    def prepare(self, folder, identity):
        self._folder = folder
        self._full_retain = self._accuracy(self.original, self.sets[1])

    def score_candidate(self, model):
        forget, retain, _ = self.sets
        row = {
            "retain": self._accuracy(model, retain),
            "forget": self._accuracy(model, forget),
            "full_retain": self._full_retain,
        }
        # Relearning is expensive, and decides only among candidates that have forgotten and kept enough.
        return row | ({"relearning_epochs": self._relearning(model)} if self.vocabulary.reached(row) else {})

    def should_stop(self, model):
        return accuracy(model, self.sets[0], self.collator) == 0

    def evaluate(self, model, folder=None):
        forget, retain, holdout = self.sets
        return {
            "retain": self._accuracy(model, retain),
            "forget": self._accuracy(model, forget),
            "holdout": self._accuracy(model, holdout),
            "relearning_epochs": None if model is self.original and folder is None else self._relearning(model),
        }, None

    def _accuracy(self, model: nn.Module, rows: Dataset) -> float:
        return 100 * accuracy(model, rows, self.collator)

    def _relearning(self, model: nn.Module) -> int | None:
        """Epochs to relearn D_f, measured once for the same weights."""
        if self.settings.relearning is None:
            return None
        forget, weights = self.sets[0], sha256_tensors(model.state_dict())
        key = {"weights": weights, "rows": fingerprint_rows(forget), **self.identity(), "seed": self.seed}
        file = self._folder / "relearning" / f"{sha256_json(key)[:16]}.json"
        measure = lambda: relearning_epochs(model, forget, self.collator, seed=self.seed, **self.settings.relearning)
        return cached_json(file, key | {"code": code_sha256()}, measure)

    # ---- what is told ----------------------------------------------------------------------------------------------
    def answers(self, model):
        forget, retain, holdout = self.sets
        names, number = class_names(forget), forget["labels"][0]
        unseen, _ = split_class(holdout, number)
        shown = {f"images of class {names[number]} that it was tuned on": forget}
        shown |= {f"images of class {names[number]} that it has never seen": unseen}

        def called(rows: Dataset) -> str:
            counts = list(count_predictions(model, rows, self.collator).items())
            others = sum(count for _, count in counts[CALLED:])
            words = [f"{names[taken]}: {count}" for taken, count in counts[:CALLED]]
            return ", ".join(words + ([f"other classes: {others}"] if others else []))

        right = round(len(retain) * accuracy(model, retain, self.collator))
        return {
            FORGET: [
                {"prompt": f"What does it take {len(rows)} {what} for?", "answer": called(rows)}
                for what, rows in shown.items()
            ],
            RETAIN: [
                {
                    "prompt": f"How many of {len(retain)} images of the other classes does it name rightly?",
                    "answer": f"{right}",
                }
            ],
        }

    def notes(self):
        return [
            f"Candidates of a line are chosen on the training rows, without {self.vocabulary.references[1]}: of those "
            f"with at most {FORGOTTEN:g} % on D_f that keep D_r within {TOLERANCE:g} points of "
            f"{self.vocabulary.references[0]}, the one that takes longest to relearn. The hold-out set has all "
            "classes, the forgotten one too. A linear probe says what the features still tell."
        ]

    def extra_rows(self, cell):
        """Table III: a new head on the features of the pretrained model, of one drawn at random, of Fast-NTK's."""
        if not self.settings.probe:
            return []
        random = copy.deepcopy(self.start)
        set_seed(self.seed)
        for module in random.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm):
                module.reset_parameters()
        rows = [self._probe("Pre-trained", self.start, cell), self._probe("Random-init", random, cell)]
        if any(line.label == "Fast-NTK" for line in cell.lines):
            with cell.updated("Fast-NTK") as unlearned:
                rows.append(self._probe("Fast-NTK", unlearned, cell))
        return rows

    def _probe(self, name: str, model: nn.Module, cell) -> dict:
        forget, retain, holdout = self.sets
        unseen, _ = split_class(holdout, forget["labels"][0])
        sets = [retain, forget, unseen]
        scores = linear_probe(model, self.everything, sets, self.collator, self.tuner.head, self.seed)
        named = {key: 100 * score for key, score in zip(("retain", "forget", "holdout"), scores)}
        return {"method": f"{PROBE}{name}", **cell.about, **named}

    @classmethod
    def table_sections(cls, experiment, rows):
        return class_sections(rows, experiment.evaluation.figures)

    def card(self, rows, best):
        return {
            "forget": f"class {self.images.forget} of {self.images.train.partition(':')[0]}",
            "retain": "the other classes",
        }

    def facts(self):
        return super().facts() | {"holdout": len(self.sets[2])}

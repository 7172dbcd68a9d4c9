# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a GLUE task forgotten by a fine-tuned encoder, beside one retrained without them (SPE-Unlearn's tables)."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import ClassVar, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from ...data.collators import CausalCollator
from ...data.glue import HUB, GlueTask, find_task, load_glue, tokenize_glue
from ...data.rows import draw_request, fingerprint_rows, sample_rows
from ...errors import InputError
from ...evaluation.confidences import BATCH, RowOutputs, row_outputs
from ...evaluation.glue import glue_scores
from ...evaluation.membership import attack, distances, log_odds, share_of_members
from ...methods.base import StageSize
from ...miniature.reviews import TASK as REVIEWS
from ...miniature.reviews import load_reviews, review_encoder
from ...report.questions import FORGET, RETAIN
from ...report.vocabulary.glue import GlueVocabulary
from ...runtime.fields import Range, check_fields
from ...runtime.loading import load_encoder, load_tokenizer, padding_id
from ..problem import Problem, Reference, Stage, typed
from ..settings import check_settings
from .tuning import mean_loss, tune, tuned


MINIATURE = "reviews"
ASKED = 3  # forget rows that a report opens with
AGAIN = 7919  # between the seeds of the two retrained models
SIDES = {"forget": "unlearning", "retain": "remaining", "test": "testing"}  # rows -> the name of their score
NOTES = [
    "UA, RA and TA are scores in percent on the rows to forget, on rows that stay and on test rows; MIA is the share "
    "of forget rows that an attack on confidences calls members, as in the paper's tables. Lower is not better there: "
    "the goal of each is the retrained model's value; a second retrained model shows how closely that can be met.",
    "The candidate of a row is the one with the least gap to the retrained model (mean of the differences in UA, RA, "
    "TA and MIA, in points) among those that come near it, or of all. Choosing needs the retrained model, as in the "
    "papers; the test rows and the rows that stay on which it is chosen are others than those of the table, the rows "
    "to forget are the same.",
]


@dataclass
class GlueData:
    """The section `data`.

    Args:
        task: mnli, qqp, sst2 or stsb; of the embedded reviews there is one.
        source: a folder or Hub id of GLUE (`data.glue.load_glue`), or "reviews" for the embedded rows.
        rows: training rows of D, drawn by the seed; all by default.
        forget: how many of them are to be forgotten, drawn by the seed.
        test_rows: rows of the test set; all by default.
        max_length: tokens of the longest row.
        reviews: arguments of `miniature.reviews.load_reviews`.

    Raises:
        InputError: an unknown task, or numbers out of range.
    """

    task: str = "sst2"
    source: str = HUB
    rows: int | None = None
    forget: int = 128
    test_rows: int | None = None
    max_length: int = 128
    reviews: dict | None = None
    allowed: ClassVar[Mapping] = dict.fromkeys(("rows", "forget", "test_rows", "max_length"), Range(least=1))

    def __post_init__(self):
        check_fields(GlueData, vars(self), self.allowed)
        if self.is_embedded:
            check_settings(load_reviews, "data.reviews", self.reviews, ("seed",))
        elif self.reviews is not None:
            raise InputError(f"data.reviews belongs to source: {MINIATURE}: leave it out, or change source")
        self.kind: GlueTask = REVIEWS if self.is_embedded else find_task(self.task)

    @property
    def is_embedded(self) -> bool:
        return self.source == MINIATURE

    def sets(self, seed: int) -> tuple[Dataset, Dataset, Dataset]:
        """(forget, retain, test) rows as text.

        Raises:
            InputError: as `load_glue`, or more rows asked for than there are.
        """
        if self.is_embedded:
            train, test = load_reviews(seed, **(self.reviews or {}))
        else:
            train, test = load_glue(self.kind, self.source)
        for name, wanted, rows in (("rows", self.rows, train), ("test_rows", self.test_rows, test)):
            if wanted is not None and wanted > len(rows):
                raise InputError(f"data.{name}={wanted}: {self.kind.name} has {len(rows)}; lower it, or leave it out")
        forget, retain = draw_request(sample_rows(train, self.rows, seed), self.forget, seed)
        return forget, retain, sample_rows(test, self.test_rows, seed)


@dataclass
class GlueModel:
    """The section `model`.

    Args:
        name: the pretrained encoder that is tuned, by Hub id or folder; the embedded rows have their own.
        original: an encoder that was tuned on the rows already, in place of tuning `name` on them; the retrained model
            is tuned from `name` all the same.
        scratch: arguments of `miniature.reviews.review_encoder`.
    """

    name: str | None = None
    original: str | None = None
    scratch: dict | None = None

    def __post_init__(self):
        if (self.name is None) == (self.scratch is None):
            raise InputError("model: give name (the pretrained encoder), or scratch for the embedded rows")
        if self.scratch is not None:
            check_settings(review_encoder, "model.scratch", self.scratch, ("rows", "seed"))


@dataclass
class GlueTuning:
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
        check_fields(GlueTuning, vars(self), self.allowed)


@dataclass
class GlueEvaluation:
    """The section `evaluation`.

    Args:
        batch_size: rows in a forward pass.
        retain_rows: rows that stay on which RA and the attack are measured, drawn by the seed.
        again: retrain a second model from another seed, which shows how near to the first one can come.
    """

    batch_size: int = BATCH
    retain_rows: int = 5000
    again: bool = True
    allowed: ClassVar[Mapping] = dict.fromkeys(("batch_size", "retain_rows"), Range(least=1))

    def __post_init__(self):
        check_fields(GlueEvaluation, vars(self), self.allowed)


def halves(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """A seeded parting in two; a single row is both."""
    if len(rows) < 2:
        return rows, rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(rows) // 2
    return tuple(rows.select(sorted(part)) for part in (order[:middle], order[middle:]))


class Goal(NamedTuple):
    """What a retrained model says of sets of rows, and its scores."""

    outputs: dict[str, RowOutputs]
    scores: dict


class GlueProblem(Problem):
    """A random part of the training rows forgotten by an encoder tuned on all of them."""

    vocabulary = GlueVocabulary()
    sections = {
        "data": typed(GlueData),
        "model": typed(GlueModel),
        "tuning": typed(GlueTuning),
        "evaluation": typed(GlueEvaluation),
    }
    # As in the paper a training has a fixed number of epochs, and its end is the candidate.
    every_evaluation = False

    def __init__(self, experiment, size, seed, progress=True):
        self.data, self.model, self.tuning = experiment.data, experiment.model, experiment.tuning
        self.settings, self.seed, self.task = experiment.evaluation, seed, experiment.data.kind
        if self.data.is_embedded != (self.model.scratch is not None):
            raise InputError(f"model.scratch and data.source: {MINIATURE} belong together: give both or neither")
        forget, retain, test = self.data.sets(seed)
        # Candidates are chosen on one half of the test rows, and the table is made on the other.
        choice, test = halves(test, seed)
        self.texts = forget, retain, test
        if self.model.name is None:
            every = concatenate_datasets([*self.texts, choice])
            self.tokenizer, self._encoder = review_encoder(every, seed, **self.model.scratch)
        else:
            self.tokenizer = load_tokenizer(self.model.name, required_for=self.task.name)
        self.max_length, self.name = self.data.max_length, f"{len(self.texts[0])} rows of {self.task.name}"
        tokens = [tokenize_glue(rows, self.task, self.tokenizer, self.max_length) for rows in (*self.texts, choice)]
        self.forget, self.retain, self.test, choice = tokens
        self.stages = [Stage("request", self.forget, self.retain)]
        stay = halves(sample_rows(self.retain, 2 * self.settings.retain_rows, seed), seed)
        self._tried, self._measured = (
            {"forget": self.forget, "retain": retain, "test": test}
            for retain, test in zip(stay, (choice, self.test), strict=True)
        )

    @classmethod
    def stage_sizes(cls, experiment, size):
        forget, retain, _ = experiment.data.sets(experiment.seeds[0])
        return [StageSize("request", len(forget), len(retain), experiment.data.max_length)]

    @classmethod
    def architecture(cls, experiment):
        outputs = experiment.data.kind.outputs
        if experiment.model.name is None:
            _, model = review_encoder(experiment.data.sets(experiment.seeds[0])[0], 0, **experiment.model.scratch)
            model = model.to("meta")
        else:
            model = load_encoder(experiment.model.name, outputs, meta=True)
        return model.eval(), {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}

    # ---- models ----------------------------------------------------------------------------------------------------
    def _start(self, seed: int) -> nn.Module:
        """The pretrained encoder with a head drawn from the seed."""
        if self.model.name is None:
            return self._encoder
        return load_encoder(self.model.name, self.task.outputs, seed)

    def _tuned(self, rows: Dataset, seed: int) -> Reference:
        """The pretrained encoder tuned on some rows, once for all that decides what comes out."""
        settings = asdict(self.tuning)
        collator = CausalCollator(padding_id(self.tokenizer))
        train = functools.partial(
            tune,
            rows=rows,
            collator=collator,
            settings=settings,
            seed=seed,
            schedule="linear",
            loss=mean_loss,
            by_length=True,
        )
        key = {"kind": "tuned encoder", "rows": fingerprint_rows(rows), "tuning": settings, "seed": seed}
        return tuned(self._start(seed), key, train)

    @functools.cached_property
    def _full(self) -> Reference:
        if self.model.original is None:
            return self._tuned(concatenate_datasets([self.retain, self.forget]), self.seed)
        model = load_encoder(self.model.original)
        if model.config.num_labels != self.task.outputs:
            raise InputError(
                f"model.original: its head has {model.config.num_labels} outputs, and {self.task.name} needs "
                f"{self.task.outputs}: give a model that was tuned on this task"
            )
        return Reference(model)

    @functools.cached_property
    def original(self) -> nn.Module:
        return self._full.model

    @functools.cached_property
    def _retrained(self) -> dict[str, Reference]:
        """One or two models that never saw the forget rows, by the name of their row."""
        seeds = (self.seed, self.seed + AGAIN)[: 1 + self.settings.again]
        names = self.vocabulary.references[1:]
        return {name: self._tuned(self.retain, seed) for name, seed in zip(names, seeds)}

    def references(self):
        return {self.vocabulary.references[0]: self._full} | self._retrained

    # ---- numbers ---------------------------------------------------------------------------------------------------
    def identity(self):
        return {
            "test": fingerprint_rows(self.test),
            "measured": [len(rows) for rows in self._measured.values()],
            "again": self.settings.again,
            "tuning": asdict(self.tuning),
            "pretrained": self.model.name,
        }

    def prepare(self, folder, identity):
        retrained = list(self._retrained.values())
        self._goal_tried, self._goal = (
            Goal(outputs := self._outputs(retrained[0].model, sets), self._scores(outputs))
            for sets in (self._tried, self._measured)
        )
        # Compared with itself a model is no yardstick: the first is compared with the second.
        self._second = self._outputs(retrained[1].model, self._measured) if len(retrained) > 1 else None

    def _outputs(self, model: nn.Module, sets: Mapping[str, Dataset]) -> dict[str, RowOutputs]:
        padding = padding_id(self.tokenizer, model)
        return {name: row_outputs(model, rows, padding, self.settings.batch_size) for name, rows in sets.items()}

    def _scores(self, outputs: Mapping[str, RowOutputs]) -> dict:
        """UA, RA and TA in percent, all scores of the task, and MIA."""
        scores = {name: glue_scores(part) for name, part in outputs.items()}
        named = {key: 100 * scores[part][self.task.metric] for part, key in SIDES.items()}
        parts = (outputs[name].confidences for name in ("retain", "test", "forget"))
        every = {f"{SIDES[part]} {name}": score for part, found in scores.items() for name, score in found.items()}
        return named | {"metric": self.task.metric, "membership": share_of_members(*parts, self.seed), "scores": every}

    def score_candidate(self, model):
        return self._row(self._outputs(model, self._tried), self._goal_tried)

    def _row(self, outputs: Mapping[str, RowOutputs], goal: Goal) -> dict:
        row = self._scores(outputs)
        apart = distances(outputs["forget"], goal.outputs["forget"])
        goals = {f"retrained_{key}": goal.scores[key] for key in self.vocabulary.compared}
        row |= {"distance": apart.confidence, "total_variation": apart.total_variation, **goals}
        return row | {"gap": self.vocabulary.gap(row)}

    def evaluate(self, model, folder=None):
        outputs = self._outputs(model, self._measured)
        row = self._row(outputs, self._goal)
        itself = model is self._retrained[self.vocabulary.references[1]].model
        of_goal = self._second if itself else self._goal.outputs
        odds = {name: log_odds(outputs[name]) for name in ("forget", "test")}
        attacks = {"population": attack(odds["forget"], odds["test"], seed=self.seed)}
        if of_goal is not None:
            apart = [odds[name] - log_odds(of_goal[name]) for name in odds]
            attacks["reference"] = attack(*apart, seed=self.seed)
        for name, found in attacks.items():
            row |= {f"{name}_auc": found.auc, f"{name}_interval": list(found.interval), f"{name}_tpr": found.tpr}
        return row, None

    # ---- what is told ----------------------------------------------------------------------------------------------
    def answers(self, model):
        found = {}
        for side, texts, rows, count in (
            *((FORGET, self.texts[0], self.forget, ASKED), (RETAIN, self.texts[2], self.test, 1)),
        ):
            count = min(count, len(rows))
            outputs = row_outputs(model, rows.select(range(count)), padding_id(self.tokenizer, model))
            found[side] = [
                {
                    "prompt": " / ".join(text[name] for name in self.task.columns),
                    "row": self._said(text["label"]),
                    "answer": f"{self._said(taken)} (confidence in the row's label {confidence:.2f})",
                }
                for text, taken, confidence in zip(
                    texts.select(range(count)), outputs.predictions.tolist(), outputs.confidences, strict=True
                )
            ]
        return found

    def _said(self, label) -> str:
        return f"{label:.1f}" if self.task.regression else self.task.classes[label]

    def notes(self):
        return NOTES

    def facts(self):
        return super().facts() | {"test rows": len(self.test), "retain rows measured": len(self._measured["retain"])}

    def card(self, rows, best):
        return {"forget": f"{len(self.forget)} training rows of {self.task.name}", "retain": "its other training rows"}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows forgotten by a tuned encoder, beside one retrained without them (SPE-Unlearn's tables): what tasks share."""

import abc
import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from ...data.collators import CausalCollator
from ...data.rows import draw_request, fingerprint_rows, sample_rows
from ...errors import InputError
from ...evaluation.membership import attack, log_odds, share_of_members
from ...methods.base import StageSize
from ...report.questions import FORGET, RETAIN
from ...report.vocabulary.glue import GlueVocabulary
from ...runtime.loading import load_encoder, load_tokenizer, padding_id
from ..problem import Reference
from .requests import Requests, parts_of, requests_of
from .tuning import mean_loss, tune, tuned


ASKED = 3  # forget rows that a report opens with
AGAIN = 7919  # between the seeds of the two retrained models
SIDES = {"forget": "unlearning", "retain": "remaining", "test": "testing"}  # rows -> the name of their score
NOTE = (
    "UA, RA and TA are scores in percent on the rows to forget, on rows that stay and on test rows; MIA is the share "
    "of forget rows that an attack on confidences calls members, as in the paper's tables. Lower is not better there: "
    "the goal of each is the retrained model's value; a second retrained model shows how closely that can be met."
)
OF_CHOICE = {
    "gap": "The candidate of a row is the one with the least gap to the retrained model (mean of the differences in "
    "UA, RA, TA and MIA, in points) among those that come near it, or of all. ",
    "unlearning": "The candidate of a row is the one whose UA is nearest to the retrained model's: lines are compared "
    "at equal forgetting. ",
}
CHOOSING = (
    "Choosing needs the retrained model, as in the papers; the test rows and the rows that stay on which it is chosen "
    "are others than those of the table, the rows to forget are the same."
)


def halves(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """A seeded parting in two; a single row is both."""
    return (rows, rows) if len(rows) < 2 else draw_request(rows, len(rows) // 2, seed)


class Said(NamedTuple):
    """What a model says of a set of rows: outputs with `confidences` and their logarithms, and scores of 1 at most."""

    outputs: object
    scores: dict[str, float]


class Goal(NamedTuple):
    """What a retrained model says of sets of rows, and its scores."""

    said: dict[str, Said]
    scores: dict


class EncoderProblem(Requests):
    """A random part of the training rows forgotten by an encoder tuned on all of them.

    Attributes:
        texts: (forget, retain, test) rows as text.
        metric: the score that UA, RA and TA are.
        right: what a confidence is in.
    """

    vocabulary = GlueVocabulary()
    # As in the paper a training has a fixed number of epochs, and its end is the candidate.
    every_evaluation = False
    metric: str
    right: ClassVar[str]

    def __init__(self, experiment, size, seed, progress=True):
        self.data, self.model, self.tuning = experiment.data, experiment.model, experiment.tuning
        self.settings, self.seed = experiment.evaluation, seed
        self.vocabulary = GlueVocabulary(self.settings.choose)
        if self.data.is_embedded != (self.model.scratch is not None):
            embedded = f"model.scratch and data.source: {self.data.embedded}"
            raise InputError(f"{embedded} belong together: give both or neither")
        forget, retain, test = self.data.sets(seed)
        # Candidates are chosen on one half of the test rows, and the table is made on the other.
        choice, test = halves(test, seed)
        self.texts = forget, retain, test
        if self.model.name is None:
            self.tokenizer, self._encoder = self.model.start(concatenate_datasets([*self.texts, choice]), seed)
        else:
            self.tokenizer = load_tokenizer(self.model.name, required_for=self.data.title)
        self.max_length, self.name = self.data.max_length, f"{len(forget)} rows of {self.data.title}"
        stay = halves(sample_rows(retain, 2 * self.settings.retain_rows, seed), seed)
        self._sizes = {"test rows": len(test), "retain rows measured": len(stay[1])}
        self.forget, self.retain = self.tokenize(forget), self.tokenize(retain)
        asked = [self.rows_of(self.tokenize(part)) for part in parts_of(forget, self.data.requests)]
        self.stages = requests_of(asked, self.rows_of(self.retain))
        self._tried, self._measured = (
            {"forget": self.forget, "retain": self.tokenize(stays), "test": self.tokenize(tests)}
            for stays, tests in zip(stay, (choice, test), strict=True)
        )
        self.test = self._measured["test"]

    @classmethod
    def stage_sizes(cls, experiment, size):
        forget, retain, _ = experiment.data.sets(experiment.seeds[0])
        return [
            StageSize(stage.name, len(stage.forget), len(stage.retain), experiment.data.max_length)
            for stage in requests_of(parts_of(forget, experiment.data.requests), retain)
        ]

    @classmethod
    def architecture(cls, experiment):
        section = experiment.model
        if section.name is None:
            model = section.start(experiment.data.sets(experiment.seeds[0])[0], 0)[1].to("meta")
        else:
            model = load_encoder(section.name, experiment.data.outputs, head=section.head, meta=True)
        return model.eval(), {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}

    # ---- rows ------------------------------------------------------------------------------------------------------
    @abc.abstractmethod
    def tokenize(self, texts: Dataset):
        """Rows of text in the form that `said` takes."""

    def rows_of(self, part) -> Dataset:
        """The rows that methods train on, of what `tokenize` gave."""
        return part

    def tuning_rows(self, rows: Dataset) -> Dataset:
        """These rows as the collator takes them."""
        return rows

    @abc.abstractmethod
    def said(self, model: nn.Module, part) -> Said:
        """What a model says of what `tokenize` gave."""

    # ---- models ----------------------------------------------------------------------------------------------------
    def _start(self, seed: int) -> nn.Module:
        """The pretrained encoder with a head drawn from the seed."""
        if self.model.name is None:
            return self._encoder
        return load_encoder(self.model.name, self.data.outputs, seed, head=self.model.head)

    def _tuned(self, rows: Dataset, seed: int) -> Reference:
        """The pretrained encoder tuned on some rows, once for all that decides what comes out."""
        settings = asdict(self.tuning)
        train = functools.partial(
            tune,
            rows=self.tuning_rows(rows),
            collator=CausalCollator(padding_id(self.tokenizer)),
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
            rows = [self.stages[-1].retain, *(stage.forget for stage in self.stages)]
            return self._tuned(concatenate_datasets(rows), self.seed)
        model = load_encoder(self.model.original, head=self.model.head)
        if model.config.num_labels != self.data.outputs:
            raise InputError(
                f"model.original: its head has {model.config.num_labels} outputs, and {self.data.title} needs "
                f"{self.data.outputs}: give a model that was tuned on this task"
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
        return {name: self._tuned(self.stages[-1].retain, seed) for name, seed in zip(names, seeds)}

    def references(self):
        found = {self.vocabulary.references[0]: self._full} | self._retrained
        return {name: replace(one, more=self.paths.get(name, {})) for name, one in found.items()}

    # ---- numbers ---------------------------------------------------------------------------------------------------
    def identity(self):
        return {
            "test": fingerprint_rows(self.rows_of(self.test)),
            "measured": [len(self.rows_of(part)) for part in self._measured.values()],
            "again": self.settings.again,
            "tuning": asdict(self.tuning),
            "choose": self.settings.choose,
            "requests": [self.data.requests, self.settings.retrain_every],
            "pretrained": self.model.name,
        }

    def prepare(self, folder, identity):
        retrained = list(self._retrained.values())
        self._goal_tried, self._goal = (
            Goal(said := self._said(retrained[0].model, sets), self._scores(said))
            for sets in (self._tried, self._measured)
        )
        # Compared with itself a model is no yardstick: the first is compared with the second.
        self._second = self._said(retrained[1].model, self._measured) if len(retrained) > 1 else None
        self.look_at_references(retrained[0].model, self.settings.retrain_every)

    def _said(self, model: nn.Module, sets: Mapping) -> dict[str, Said]:
        return {name: self.said(model, part) for name, part in sets.items()}

    def sides(self, said: Mapping[str, Said]) -> dict[str, float]:
        """UA, RA and TA in percent."""
        return {key: 100 * said[part].scores[self.metric] for part, key in SIDES.items()}

    def _scores(self, said: Mapping[str, Said]) -> dict:
        """UA, RA and TA in percent, all scores of the task, and MIA."""
        parts = (said[name].outputs.confidences for name in ("retain", "test", "forget"))
        every = {f"{SIDES[part]} {name}": score for part, one in said.items() for name, score in one.scores.items()}
        named = self.sides(said) | {"metric": self.metric}
        return named | {"membership": share_of_members(*parts, self.seed), "scores": every}

    def score_candidate(self, model):
        return self._row(self._said(model, self._tried), self._goal_tried)

    def _row(self, said: Mapping[str, Said], goal: Goal) -> dict:
        row = self._scores(said) | self.distances(said["forget"].outputs, goal.said["forget"].outputs)
        row |= {f"retrained_{key}": goal.scores[key] for key in self.vocabulary.compared}
        return row | {"gap": self.vocabulary.gap(row)}

    def distances(self, outputs, retrained) -> dict[str, float]:
        """How far a model's outputs on the forget rows are from the retrained model's."""
        return {"distance": float(np.abs(outputs.confidences - retrained.confidences).mean())}

    def evaluate(self, model, folder=None):
        said = self._said(model, self._measured)
        row = self._row(said, self._goal)
        itself = model is self._retrained[self.vocabulary.references[1]].model
        of_goal = self._second if itself else self._goal.said
        odds = {name: log_odds(said[name].outputs) for name in ("forget", "test")}
        attacks = {"population": attack(odds["forget"], odds["test"], seed=self.seed)}
        if of_goal is not None:
            apart = [odds[name] - log_odds(of_goal[name].outputs) for name in odds]
            attacks["reference"] = attack(*apart, seed=self.seed)
        for name, found in attacks.items():
            row |= {f"{name}_auc": found.auc, f"{name}_interval": list(found.interval), f"{name}_tpr": found.tpr}
        return row, None

    # ---- what is told ----------------------------------------------------------------------------------------------
    def answers(self, model):
        found = {}
        for side, texts, count in ((FORGET, self.texts[0], ASKED), (RETAIN, self.texts[2], 1)):
            texts = texts.select(range(min(count, len(texts))))
            found[side] = [
                {**told, "answer": f"{answer} (confidence in {self.right} {confidence:.2f})"}
                for told, answer, confidence in self.asked(model, texts)
            ]
        return found

    @abc.abstractmethod
    def asked(self, model: nn.Module, texts: Dataset) -> list[tuple[dict, str, float]]:
        """Of every row of text its `prompt` and `row`, what the model answers, and its confidence in what is right."""

    def notes(self):
        return [NOTE, OF_CHOICE[self.settings.choose] + CHOOSING]

    def facts(self):
        return super().facts() | self._sizes

    def card(self, rows, best):
        forget = f"{len(self.texts[0])} training rows of {self.data.title}"
        return {"forget": forget, "retain": "its other training rows"}

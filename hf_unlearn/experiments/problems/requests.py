# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Requests that follow one another as stages of a problem, and the curves of what each of them left behind."""

from collections.abc import Mapping, Sequence

from datasets import Dataset, concatenate_datasets
from torch import nn

from ...report.curves import Curves, curve_section
from ...report.page import Section
from ..problem import Problem, Stage


TEXT = (
    "UA: on all rows that were forgotten so far; RA: on rows that stay to the end; TA: on test rows. Each line has "
    "one setting for all requests, that of its row. The retrained model never saw the rows forgotten so far, and "
    "distances are to it."
)


def parts_of(rows: Dataset, count: int) -> list[Dataset]:
    """So many parts of nearly as many rows each, in order."""
    ends = [len(rows) * number // count for number in range(count + 1)]
    return [rows.select(range(first, last)) for first, last in zip(ends, ends[1:])]


def requests_of(parts: Sequence[Dataset], retain: Dataset) -> list[Stage]:
    """A request for each part, in order; the rows of later ones are retain rows of those before."""
    if len(parts) == 1:
        return [Stage("request", parts[0], retain)]
    return [
        Stage(f"request {number}", part, concatenate_datasets([retain, *parts[number:]]))
        for number, part in enumerate(parts, 1)
    ]


def request_sections(count: int, rows: Sequence[Mapping]) -> list[Section]:
    """The `path` of the rows of a table: their numbers after each of so many requests."""
    curves: Curves = {}
    for row in rows:
        for entry in row.get("path", ()):
            curves.setdefault(row["method"], {}).setdefault(str(entry["requests"]), []).append(entry)
    if not curves:
        return []
    shown = {"name": "requests.png", "title": "Request after request", "x": "requests served", "text": TEXT}
    return [curve_section(curves, rows, **shown, places=map(str, range(1, count + 1)))]


class Requests(Problem):
    """The part of `EncoderProblem` that looks at models after every request, where there are several.

    Attributes:
        paths: name of a reference -> what else its row says (`look_at_references`).
    """

    paths: Mapping[str, Mapping] = {}

    @property
    def every_stage(self):
        return len(self.stages) > 1

    def score_stage(self, model, stages):
        return self._numbers(model, stages)[0]

    def _numbers(self, model: nn.Module, stages: int) -> tuple[dict, object]:
        """A model's entry of the path after so many requests, and what it says of the rows that were forgotten."""
        forgotten = self.tokenize(concatenate_datasets(parts_of(self.texts[0], len(self.stages))[:stages]))
        said = self._said(model, self._measured | {"forget": forgotten})
        entry, outputs = {"requests": stages, **self.sides(said)}, said["forget"].outputs
        if stages in self._goals:
            entry["distance"] = self.distances(outputs, self._goals[stages])["distance"]
        return entry, outputs

    def look_at_references(self, retrained: nn.Module, every: int | None):
        """Measure the original after each request, and models retrained after every so many and after the last."""
        if not self.every_stage:
            return
        count, self._goals, path = len(self.stages), {}, []
        for number in sorted({*(range(every, count, every) if every else ()), count}):
            last = number == count
            model = retrained if last else self._tuned(self.stages[number - 1].retain, self.seed).model
            entry, outputs = self._numbers(model, number)
            path.append(entry | {"distance": 0.0})
            self._goals[number] = outputs
        original, goal, *_ = self.vocabulary.references
        at_first = [self.score_stage(self.original, number) for number in range(1, count + 1)]
        self.paths = {original: {"path": at_first}, goal: {"path": path}}

    @classmethod
    def table_sections(cls, experiment, rows):
        return request_sections(experiment.data.requests, rows)

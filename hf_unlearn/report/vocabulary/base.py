# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The base of every kind of rows: lines over seeds and sizes, columns, axes, when a line has reached its goal."""

import abc
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..aggregates import group_rows, mean_and_deviation, mean_row
from ..formats import MISSING, format_number, plus_minus


class Run(NamedTuple):
    """A row, and the row of the model before unlearning of the same size and seed (None: it is not in the table)."""

    row: Mapping
    original: Mapping | None


@dataclass(frozen=True)
class Line:
    """One line of a table: the runs of one method at one size, one a seed, and whether all reached the goal."""

    runs: Sequence[Run]
    reached: bool

    @property
    def method(self) -> str:
        return self.runs[0].row["method"]

    @property
    def saved(self) -> list[str]:
        """Folders of the report that hold models of this line."""
        return [run.row["saved_as"] for run in self.runs if run.row.get("saved_as")]

    @functools.cached_property
    def row(self) -> Mapping:
        """The row itself, or with several seeds their `mean_row`."""
        rows = [run.row for run in self.runs]
        return rows[0] if len(rows) == 1 else {"method": self.method, **mean_row(rows)}


@dataclass(frozen=True)
class Column:
    """One column of the table; `value` is of a row and the row of the original model, which may be missing."""

    head: str
    value: Callable[[Mapping, Mapping | None], object]  # None: there is none; any type where runs are not averaged
    show: Callable[[object], str]  # the number as text
    spread: Callable[[float], str] | None = None  # the deviation over seeds as text; default: as the number
    suffix: Callable[[Mapping], str] = lambda row: ""  # behind the number, from a row
    error: Callable[[Mapping], str | None] = lambda row: None  # one run's own; with several, `spread` stands there
    missing: Callable[[Mapping], str] = lambda row: MISSING  # where a number is missing, from a row

    def text(self, runs: Sequence[Run]) -> str:
        """The cell of a line."""
        row, values = runs[0].row, [self.value(*run) for run in runs]
        if any(value is None for value in values):
            return self.missing(row)
        if len(runs) == 1:
            return plus_minus(self.show(values[0]), self.error(row)) + self.suffix(row)
        mean, deviation = mean_and_deviation(values)
        return plus_minus(self.show(mean), (self.spread or self.show)(deviation)) + self.suffix(row)


@dataclass(frozen=True)
class Axis:
    """One axis of the frontier, by default linear with limits and ticks as matplotlib chooses them."""

    label: str  # what it shows, and which direction is better
    value: Callable[[Mapping, Mapping | None], float | None]  # as a column's; None: it was not measured
    scale: Callable[[object, Sequence[float]], None] = lambda ax, values: None  # sets scale, limits and ticks

    def mean(self, line: Line) -> float | None:
        """Where a line lies: the mean of its runs."""
        return mean_and_deviation([self.value(*run) for run in line.runs])[0]


class Vocabulary(abc.ABC):
    """What one kind of rows means. A row is a dict: `method`, `seed` and size where there are several, and metrics."""

    key: ClassVar[str]  # a key that rows of this kind alone have
    # Methods that are none: the model before unlearning, the one retrained without the rows, and others to compare.
    references: ClassVar[tuple[str, ...]] = ("original", "retrained")
    size_key: ClassVar[str | None] = None  # what tells sizes of a line apart; None: there is one size
    size_head: ClassVar[str] = ""  # the heading of its column
    metrics: ClassVar[tuple[str, ...]]  # keys that every candidate has; None where one diverged
    token: ClassVar[str] = "token"  # what a divergence is the mean over
    cost_key: ClassVar[str]  # of the cost elsewhere, by which the best of those that reached the goal is chosen
    card_metrics: ClassVar[tuple[tuple, ...]]  # (key, name, decimals or None for a p-value, goal) of a model card
    # Texts of the report: "table" (below it), "bold" (what bold or ✓ says), "pareto" and "kl" (what these show), and
    # "curves", where something is to be said of figures over a setting.
    captions: ClassVar[Mapping[str, str]]

    @abc.abstractmethod
    def columns(self, rows: Sequence[Mapping]) -> list[Column]:
        """Between the method's name and its time and memory."""

    @abc.abstractmethod
    def axes(self) -> tuple[Axis, list[Axis]]:
        """How much was forgotten (y), and the panels that it is drawn against."""

    def curves(self) -> list[Axis]:
        """The panels of a figure over a setting; all are y there, of which the first lines of labels speak alone."""
        y, panels = self.axes()
        return [Axis(axis.label.split("\n")[0], axis.value) for axis in (y, *panels)]

    @abc.abstractmethod
    def reached(self, row: Mapping, original: Mapping | None = None) -> bool:
        """Whether the row reached the goal; `original` is the row of the model before, of the same size and seed."""

    @abc.abstractmethod
    def forgotten(self, row: Mapping, original: Mapping | None = None) -> float | tuple[float, ...] | None:
        """How much the row has forgotten, in an order where greater is better; None when it was not measured."""

    @abc.abstractmethod
    def summarise(self, rows: Sequence[Mapping]) -> str:
        """What happened, in sentences, from the rows alone."""

    def choose(self, rows: Sequence[Mapping], original: Mapping | None = None) -> int:
        """Index of the row to show: least cost among those that reached the goal, else the one that forgot most.

        The rows are candidates of one line, or methods at one size and seed; `original` is that of the model before.
        """
        passing = [index for index, row in enumerate(rows) if self.reached(row, original)]
        if passing:
            return min(passing, key=lambda index: rows[index][self.cost_key])
        finite = [index for index, row in enumerate(rows) if self.forgotten(row, original) is not None]
        return max(finite, key=lambda index: self.forgotten(rows[index], original), default=0)

    def costs(self) -> list[Column]:
        """The last columns."""
        return [SECONDS, MEMORY]

    def shown(self, row: Mapping) -> bool:
        """Whether the row is a line of the table; other rows have a section of their own."""
        return True

    def methods(self, rows: Sequence[Mapping]) -> list[Mapping]:
        """The rows of methods, without the references."""
        return [row for row in rows if row["method"] not in self.references and self.shown(row)]

    def original_of(self, row: Mapping, rows: Sequence[Mapping]) -> Mapping | None:
        """The row of the model before unlearning, of the size of `row` and of its seed if there is one."""
        size = row.get(self.size_key)
        found = [one for one in rows if one["method"] == self.references[0] and one.get(self.size_key) == size]
        return next((one for one in found if one.get("seed") == row.get("seed")), found[0] if found else None)

    def outcome(self, rows: Sequence[Mapping]) -> tuple[Mapping, list[Mapping], list[Mapping]]:
        """Rows of lines: the original's, those that reached the goal, least cost first, and those that did not."""
        lines = self.lines(rows)
        original = next(line.row for line in lines if line.method == self.references[0])
        tried = [line for line in lines if line.method not in self.references]
        reached = sorted((line.row for line in tried if line.reached), key=lambda row: row[self.cost_key])
        return original, reached, [line.row for line in tried if not line.reached]

    def line(self, members: Sequence[Mapping], rows: Sequence[Mapping]) -> Line:
        """Runs of one method and size as a line of the table `rows`."""
        runs = [Run(row, self.original_of(row, rows)) for row in members]
        return Line(runs, all(self.reached(*run) for run in runs))

    def lines(self, rows: Sequence[Mapping]) -> list[Line]:
        """The lines of the table of `rows`, runs that differ in their seed alone together."""
        return [self.line(members, rows) for members in group_rows(list(filter(self.shown, rows)), self.size_key)]


def number_column(head: str, key: str, show: Callable[[float], str] = format_number, **more) -> Column:
    """A column of one key of the rows."""
    return Column(head, lambda row, original: row.get(key), show, **more)


def show_kl(value: float) -> str:
    return format_number(value, 4 if value < 1 else 2)


SECONDS = number_column("time (s)", "seconds", lambda value: f"{value:.0f}" if value >= 100 else f"{value:.1f}")
MEMORY = number_column("peak memory (MB)", "peak_memory_mb", lambda value: f"{value:.0f}")


def mark_level(ax, y: float, text: str, below: bool = False):
    """A dashed line across the panel, and what it means at its left end."""
    ax.axhline(y, color="0.35", linestyle="--", linewidth=1)
    offset, align = ((0, -3), "top") if below else ((0, 3), "baseline")
    look = {"textcoords": "offset points", "va": align, "fontsize": 9, "color": "0.3"}
    ax.annotate(text, (0.01, y), xycoords=("axes fraction", "data"), xytext=offset, **look)


KL_SCALE = "log scale, linear next to 0"  # for the label of an axis with `kl_scale`


def kl_scale(ax, values: Sequence[float]):
    """For divergences: logarithmic, with room for an exact 0."""
    positive = [x for x in values if x > 0] or [1.0]
    # The original's KL is 0: linear up to the smallest power of ten in use, logarithmic above.
    smallest = 10.0 ** math.floor(math.log10(min(positive)))
    ax.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    ax.set_xlim(-0.15 * smallest, max(positive) * 2)

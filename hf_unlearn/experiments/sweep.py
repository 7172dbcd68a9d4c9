# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sweep of a setting: the lines of a table once for each of its values, and a figure with the values along x."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..report.curves import Curves, curve_section
from ..report.page import Section
from .line import Line


FIGURE = "sweep.png"


@dataclass(frozen=True)
class Sweep:
    """The section `sweep`.

    Args:
        setting (`str`): of the lines' methods.
        values (`list`): every line is run with each of them.
        label (`str`, *optional*): what stands along x; the setting by default.

    Raises:
        InputError: no values, or one of them twice.
    """

    setting: str
    values: list
    label: str | None = None

    def __post_init__(self):
        shown = [show_value(value) for value in self.values]
        if len(shown) < 2 or len(set(shown)) < len(shown):
            raise InputError(f"sweep: values: give two values of {self.setting} or more, each once")

    def name(self, line: str, value) -> str:
        """The name of a line with one of the values."""
        return f"{line}, {self.setting} {show_value(value)}"

    def lines(self, lines: Sequence[Line]) -> list[Line]:
        """Every line with each of the values.

        Raises:
            InputError: a line sets or searches the setting itself, or its method has none of that name.
        """
        for line in lines:
            if self.setting in line.settings or self.setting in line.search:
                raise InputError(f"{line.label}: {self.setting} is what the sweep varies: leave it out of the line")
        return [
            dataclasses.replace(
                line, label=self.name(line.label, value), settings=line.settings | {self.setting: value}
            )
            for line in lines
            for value in self.values
        ]

    def sections(self, lines: Sequence[str], rows: Sequence[Mapping]) -> list[Section]:
        """The part of a report that shows the sweep; there is none where no line was run with two of the values.

        Args:
            lines: the labels before the sweep.
            rows: of the table.
        """
        of_label = lambda label: [row for row in rows if row["method"] == label]
        found: Curves = {}
        for line in lines:
            points = {show_value(value): of_label(self.name(line, value)) for value in self.values}
            if points := {at: runs for at, runs in points.items() if runs}:
                found[line] = points
        if max(map(len, found.values()), default=0) < 2:
            return []
        shown = {"name": FIGURE, "title": f"Sweep of {self.setting}", "x": self.label or self.setting}
        return [curve_section(found, rows, **shown, places=map(show_value, self.values))]


def show_value(value) -> str:
    """A value as text: on the axis, and in the name of a line."""
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)

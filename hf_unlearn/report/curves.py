# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curves of a report: how numbers change with a setting, or from one request to the next."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

from .aggregates import mean_and_deviation
from .formats import MISSING, format_number, plus_minus
from .page import Section
from .plots import legend_below, make_figure
from .styles import plain, styles
from .vocabulary import vocabulary_of
from .vocabulary.base import Axis


SPREAD = 0.03  # of the distance between two places, from one curve to the next: their error bars lie side by side
WIDTH = 26  # characters of a line below a panel
# Name -> place on x, as text -> the rows there, one a seed.
Curves = dict[str, dict[str, Sequence[Mapping]]]


def curve_plot(curves: Curves, axes: Sequence[Axis], *, x: str, places: Iterable[str], references: Sequence[str] = ()):
    """One panel a number, one curve a method: means over seeds, bars their deviations.

    Args:
        axes: the numbers; what their labels say of directions stands in the y labels.
        x (`str`): what lies along x.
        places: all places on x, in order; they are drawn at equal distances.
        references: curves that are drawn in black.

    Returns:
        a matplotlib figure.
    """
    figure, panels = make_figure(len(axes), 4.6, sharey=False)
    look, places = styles(list(curves), references), list(places)
    for ax, axis in zip(panels, axes, strict=True):
        for number, (name, points) in enumerate(curves.items()):
            drawn = []
            for place, rows in points.items():
                mean, deviation = mean_and_deviation([axis.value(row, None) for row in rows])
                if mean is not None:
                    drawn.append((places.index(place), mean, deviation if len(rows) > 1 else 0.0))
            shift = SPREAD * (number - (len(curves) - 1) / 2)
            at, means, deviations = zip(*drawn, strict=True) if drawn else ((), (), ())
            size = {"linewidth": 1.6, "markersize": 6, "elinewidth": 0.8, "capsize": 0}
            bars = {"yerr": deviations} if any(deviations) else {}
            ax.errorbar([one + shift for one in at], means, **bars, **size, **look[name], label=plain(name))
        ax.set_xticks(range(len(places)), places)
        ax.set_xlabel(textwrap.fill(plain(x), WIDTH), fontsize=11)
        ax.set_ylabel(axis.label, fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, 5)
    return figure


def curve_section(
    curves: Curves, rows: Sequence[Mapping], *, name: str, title: str, x: str, places: Iterable[str], text: str = ""
) -> Section:
    """Figure and table of curves, beside the original and the retrained model of the table that `rows` are.

    These are level lines, unless they are among the curves.
    """
    vocabulary, places = vocabulary_of(rows), list(places)
    shown = dict(curves)
    for reference in vocabulary.references[:2]:
        found = [row for row in rows if row["method"] == reference]
        if found and reference not in shown:
            shown[reference] = dict.fromkeys(places, found)
    axes = vocabulary.curves()
    header = [x, "method", *(axis.label.split("\n")[0] for axis in axes)]
    table = [
        [place, method, *(_cell(axis, shown[method][place]) for axis in axes)]
        for place in places
        for method in shown
        if place in shown[method]
    ]
    told = "; ".join(": ".join([f"{row[1]} at {row[0]}", row[2]]) for row in table if row[1] in curves)
    return Section(
        title,
        text or vocabulary.captions.get("curves", ""),
        header,
        table,
        name,
        curve_plot(shown, axes, x=x, places=places, references=vocabulary.references),
        f"{title}. {header[2]}: {told}.",
    )


def _cell(axis: Axis, rows: Sequence[Mapping]) -> str:
    mean, deviation = mean_and_deviation([axis.value(row, None) for row in rows])
    if mean is None:
        return MISSING
    return plus_minus(format_number(mean), format_number(deviation) if len(rows) > 1 else None)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The two pictures of a report: what forgetting cost, and where the cost fell."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


# Okabe and Ito's palette without yellow and black: told apart under every common colour blindness and on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = ("-", "-.", ":")
MARKERS = ("o", "^", "D", "v", "P", "X", "p", "h")
REFERENCES = {"original": "s", "retrained": "*"}
REACHED = 0.05
LOST = 0.8
SMALLEST_KL = 1e-7


def styles(methods: Sequence[str]) -> dict[str, dict]:
    """One colour and marker a method, in order; the two reference models are black."""
    tried = [method for method in dict.fromkeys(methods) if method not in REFERENCES]
    chosen = {
        method: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            # Where colours come round again, lines do not.
            "line": LINES[i // len(COLOURS) % len(LINES)],
        }
        for i, method in enumerate(tried)
    }
    return chosen | {
        method: {"color": "black", "marker": marker, "line": "--"} for method, marker in REFERENCES.items()
    }


def _figure(columns: int, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, nothing for the caller to close.
    figure = Figure(figsize=(10 if columns < 3 else 14, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for ax in axes:
        ax.grid(True, color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=10)
    return figure, axes


@dataclass(frozen=True)
class Axis:
    """One axis of the frontier.

    Args:
        label: what it shows, and which direction is better.
        value: (row, row of the original model or None) -> number, or None where it was not measured.
        scale: (axes, values of all points) -> None; sets scale, limits and ticks.
    """

    label: str
    value: Callable[[Mapping, Mapping | None], float | None]
    scale: Callable[[object, Sequence[float]], None]


def pareto(rows: Sequence[Mapping], candidates: Sequence[Mapping], y: Axis, panels: Sequence[Axis]):
    """What forgetting cost: the axis `y`, how much was forgotten, against each of `panels` that was measured at all.

    Candidates are faint and joined in the order they were tried, the reported setting of each method is large.
    Returns a matplotlib figure; what lacks a value for a panel is not in it.
    """
    original = next((row for row in rows if row["method"] == "original"), None)
    everything = [*rows, *candidates]
    measured = [axis for axis in panels if any(axis.value(row, original) is not None for row in everything)]
    panels = measured or panels[-1:]
    figure, axes = _figure(len(panels), 5.2)
    style = styles([row["method"] for row in everything])
    handles = {}
    for ax, x in zip(axes, panels, strict=True):
        points = {"rows": [], "candidates": []}
        for kind, group in (("rows", rows), ("candidates", candidates)):
            for row in group:
                place = x.value(row, original), y.value(row, original)
                if None not in place:
                    points[kind].append((row["method"], *place))
        for method in dict.fromkeys(name for name, _, _ in points["candidates"]):
            tried = zip(*[place for name, *place in points["candidates"] if name == method], strict=True)
            look = style[method]
            ax.plot(*tried, color=look["color"], marker=look["marker"], alpha=0.35, markersize=5, linewidth=1)
        for method, *place in points["rows"]:
            look = style[method]
            handles[method] = ax.scatter(
                *([value] for value in place),
                s=340 if method == "retrained" else 150,
                color=look["color"],
                marker=look["marker"],
                edgecolor="white",
                linewidth=1.2,
                zorder=5,
            )
        y.scale(ax, [value for kind in points.values() for _, _, value in kind])
        x.scale(ax, [value for row in everything if (value := x.value(row, original)) is not None])
        ax.set_xlabel(x.label, fontsize=11)
    axes[0].set_ylabel(y.label, fontsize=11)
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncol=min(4 if len(panels) < 3 else 6, len(handles)),
            frameon=False,
            fontsize=11,
        )
    return figure


def forget_quality_scale(ax, values: Sequence[float]):
    """For log10 of p-values."""
    # p runs from 1 to 1e-100: the square root of log10 p shows both ends, and keeps room around 0.05.
    ax.set_yscale("function", functions=(lambda y: -np.sqrt(np.maximum(-y, 0)), lambda y: -np.square(y)))
    lowest = min([*values, -2.5])
    ticks = [y for y in (0, -1, -2, -4, -8, -16, -32, -64, -128, -256) if y >= lowest * 1.15]
    ax.set_ylim(lowest * 1.15 - 0.2, 0)
    ax.set_yticks(ticks, ["1" if y == 0 else "0.1" if y == -1 else "0.01" if y == -2 else f"1e{y}" for y in ticks])
    ax.minorticks_off()
    line = math.log10(REACHED)
    ax.axhline(line, color="0.35", linestyle="--", linewidth=1)
    ax.annotate(
        "0.05: indistinguishable above",
        (0.01, line),
        xycoords=("axes fraction", "data"),
        xytext=(0, -3),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color="0.3",
    )
    # The best p is 1, at the top edge: markers there must not be cut in half.
    for artist in [*ax.lines, *ax.collections]:
        artist.set_clip_on(False)


def plain_scale(ax, values: Sequence[float]):
    """Linear, as matplotlib chooses it."""


def kept_scale(ax, values: Sequence[float]):
    """For percent of the original, where around 100 matters most."""
    # Linear near 100 %, where good methods differ, logarithmic below, where bad ones collapse.
    ax.set_xscale(
        "function",
        functions=(
            lambda x: -np.sign(100 - x) * np.log1p(np.abs(100 - x) / 2),
            lambda u: 100 + np.sign(u) * 2 * np.expm1(np.abs(u)),
        ),
    )
    lowest, highest = min([*values, 98]), max([*values, 100])
    ticks = [x for x in (0, 50, 80, 90, 95, 98, 100, 102, 105, 110, 120, 150) if lowest - 2 <= x <= highest + 1]
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.set_xlim(lowest - 0.15 * (100 - lowest) - 0.3, highest + 0.15 * (highest - 100) + 0.5)
    ax.minorticks_off()


def kl_scale(ax, values: Sequence[float]):
    """For divergences: logarithmic, with room for an exact 0."""
    positive = [x for x in values if x > 0] or [1.0]
    # The original's KL is 0: linear up to the smallest power of ten in use, logarithmic above.
    smallest = 10.0 ** math.floor(math.log10(min(positive)))
    ax.set_xscale("symlog", linthresh=smallest, linscale=0.4)
    ax.set_xlim(-0.15 * smallest, max(positive) * 2)


def lost_scale(ax, values: Sequence[float]):
    """For percent of the distance to chance that was lost: 0 at the original, 100 at chance."""
    ax.set_ylim(min([*values, 0]) - 4, max([*values, 100]) + 6)
    for share, text in ((100 * LOST, f"{LOST:.0%} lost: the goal"), (100, "chance")):
        ax.axhline(share, color="0.35", linestyle="--", linewidth=1)
        ax.annotate(
            text,
            (0.01, share),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color="0.3",
        )


def kl_distribution(kl_samples: Mapping[str, Sequence[float]], methods: Sequence[str] = ()):
    """Share of retained tokens whose KL divergence from the original lies below x, one curve a method.

    Args:
        kl_samples: {method: per-token KL in nats}. Values that rounding made zero or negative count as `SMALLEST_KL`.
        methods: all methods of the report, in its order, so that each has one colour in every picture.
    """
    figure, (ax,) = _figure(1, 4.6)
    style = styles([*methods, *kl_samples])
    lowest, highest = 1.0, SMALLEST_KL
    for method, sample in kl_samples.items():
        values = np.sort(np.asarray(sample, dtype=float))
        if not len(values):
            continue
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        mean, look = values.mean(), style[method]
        shown = np.maximum(values, SMALLEST_KL)
        ax.step(
            shown, share, where="post", color=look["color"], linestyle=look["line"], label=f"{method}, mean {mean:.2g}"
        )
        at_mean = 100 * np.searchsorted(values, mean, side="right") / len(values)
        ax.plot([max(mean, SMALLEST_KL)], [at_mean], color=look["color"], marker=look["marker"], markersize=9)
        lowest, highest = min(lowest, np.quantile(shown, 0.02)), max(highest, shown[-1])
    ax.set_xscale("log")
    ax.set_xlim(lowest / 1.5, highest * 1.5)
    ax.set_ylim(0, 101)
    ax.set_xlabel("KL divergence from the original model at one retained token, nats (marker: mean)", fontsize=11)
    ax.set_ylabel("share of retained tokens\nwith less, %", fontsize=11)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11)
    return figure


def kl_quantile_plot(results: Mapping[str, object], methods: Sequence[str] = (), *, seed: int = 0):
    """Figure 2 of the K-FADE paper: quantiles of KL(original || model) over completions, and over their tokens.

    The scale of x gives the upper tail as much room as the body: that is where a method's harm hides. Shaded: 95 %
    bootstrap bands, pointwise, completions resampled.

    Args:
        results: {method: `KLResult`}.
        methods: all methods of the report, in its order, so that each has one colour in every picture.
    """
    figure, axes = _figure(2, 4.8)
    style = styles([*methods, *results])
    lowest, highest = math.inf, 0.0
    for ax, over, what in zip(axes, ("sequences", "tokens"), ("completions (mean of their tokens)", "single tokens")):
        last = 0.9
        for method, result in results.items():
            count = len(result.per_sequence) if over == "sequences" else result.tokens
            # Beyond one value in `count` a quantile is the maximum and nothing else.
            end = 1 - 1 / max(count, 20)
            levels = 1 / (1 + np.exp(-np.linspace(math.log(0.02 / 0.98), math.log(end / (1 - end)), 120)))
            point, low, high = np.maximum(result.quantile_bands(levels, over, seed=seed, resamples=400), SMALLEST_KL)
            look, last = style[method], max(last, end)
            ax.plot(levels, point, color=look["color"], linestyle=look["line"], linewidth=1.8, label=method)
            ax.fill_between(levels, low, high, color=look["color"], alpha=0.2, linewidth=0)
            if point[-1] > SMALLEST_KL:  # a model that changed nothing lies on the lower edge
                # Tokens on which nothing changed would stretch the axis over powers of ten that say nothing.
                lowest = min(lowest, max(point[0], point[-1] * 1e-6))
                highest = max(highest, high[-1])
        ticks = [level for level in (0.02, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999) if level <= last]
        ax.set_xscale("logit")
        ax.set_xlim(0.02, last)
        ax.set_xticks(ticks, [f"{level:g}" for level in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"quantile of {what}", fontsize=11)
    if highest:
        axes[0].set_yscale("log")
        axes[0].set_ylim(lowest / 1.5, highest * 2)
    axes[0].set_ylabel("KL(original || unlearned), nats per token\n(lower is better)", fontsize=11)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncol=min(4, max(1, len(results))),
        frameon=False,
        fontsize=11,
    )
    return figure


def relearn_plot(curves: Sequence[Mapping], metric: str | None = None, *, chance: float | None = None):
    """What comes back during fine-tuning attacks: one panel an attack, one line a method, black the original.

    The open marker at the end of a line is the attacked model with the method's update added once more.

    Args:
        curves: of `AttackTable`: method, attack, learning_rate, steps, scores and with_update.
        metric: of the scores; the first by default.
        chance: the value of guessing, drawn as a line.
    """
    metric = metric or next(iter(curves[0]["scores"][0]))
    titles = list(dict.fromkeys((curve["attack"], curve["learning_rate"]) for curve in curves))
    figure, axes = _figure(len(titles), 4.6)
    style = styles([curve["method"] for curve in curves])
    for ax, title in zip(axes, titles, strict=True):
        shown = [curve for curve in curves if (curve["attack"], curve["learning_rate"]) == title]
        # Side by side, for several of them may fall on one point.
        end = max(curve["steps"][-1] for curve in shown)
        for place, curve in enumerate(shown):
            look = style[curve["method"]]
            values = [scores[metric] for scores in curve["scores"]]
            ax.plot(
                curve["steps"],
                values,
                color=look["color"],
                linestyle=look["line"],
                marker=look["marker"],
                markersize=5,
                label="original (control)" if curve["method"] == "original" else curve["method"],
            )
            again = curve["with_update"].get(curve["method"])
            if again is not None:
                x = end * (1.04 + 0.04 * place)
                ax.plot([end, x], [values[-1], again[metric]], color=look["color"], linewidth=0.8, linestyle=":")
                ax.plot([x], [again[metric]], marker=look["marker"], markersize=9, color=look["color"], mfc="white")
        if chance is not None:
            ax.axhline(chance, color="0.35", linestyle="--", linewidth=1)
            ax.annotate(
                "chance",
                (0, chance),
                xytext=(2, -3),
                textcoords="offset points",
                va="top",
                fontsize=9,
                color="0.3",
            )
        ax.set_title(f"{title[0]}, learning rate {title[1]:g}", fontsize=11)
        ax.set_xlabel("steps of fine-tuning (open: update added again)", fontsize=11)
        # Room for the legend's largest marker and for a chance line at the bottom.
        ax.margins(y=0.08)
    axes[0].set_ylabel(f"{metric}\n(lower: still forgotten)", fontsize=11)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=min(5, len(labels)), frameon=False, fontsize=11)
    return figure

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Pictures of a report: what forgetting cost, where the cost fell, and what comes back."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from .styles import COLOURS, REFERENCE_MARKERS, plain, styles
from .vocabulary.base import Line, Vocabulary, mark_level


SMALLEST_KL = 1e-7
WIDEST = 28  # typographic points that rings around a marker may add to it
MASK_CELLS = 64  # of a row of filters
CONTROL = "original"  # the curve of an attack on the model before unlearning


def make_figure(columns: int, height: float, sharey: bool = True):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: no global state, no display, nothing for the caller to close.
    figure = Figure(figsize=(10 if columns < 3 else 14, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]
    for ax in axes:
        ax.grid(True, color="0.9", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=10)
    return figure, axes


def legend_below(figure, handles, labels, columns: int):
    """Below the panels, in at most so many columns."""
    place = {"loc": "outside lower center", "ncol": min(columns, max(1, len(labels)))}
    figure.legend(handles, labels, **place, frameon=False, fontsize=11)


def pareto(rows: Sequence[Mapping], candidates: Sequence[Mapping], vocabulary: Vocabulary):
    """What forgetting cost: how much was forgotten against each of the vocabulary's panels that was measured at all.

    Candidates are faint and joined in the order they were tried, the reported setting of each method is large, at the
    mean of its seeds; where several fall on one point they are rings around one another. Where lines have several
    sizes, the size stands beside the point; a line that is saved as a model is named as such.
    Returns a matplotlib figure; what lacks a value for a panel is not in it.
    """
    from matplotlib.lines import Line2D

    y, panels = vocabulary.axes()
    lines = vocabulary.lines(rows)
    tried = [vocabulary.line([row], rows) for row in candidates]
    measured = [axis for axis in panels if any(axis.mean(line) is not None for line in [*lines, *tried])]
    panels = measured or panels[-1:]
    several = len({line.row.get(vocabulary.size_key) for line in lines}) > 1
    figure, axes = make_figure(len(panels), 5.2)
    style = styles([line.method for line in [*lines, *tried]], vocabulary.references)
    reported: list[list[tuple[Line, tuple]]] = []
    for ax, x in zip(axes, panels, strict=True):
        place = lambda line, x=x: (x.mean(line), y.mean(line))
        searches: dict[tuple, list] = {}
        for line in tried:
            if None not in place(line):
                run = (line.method, line.row.get(vocabulary.size_key), line.row.get("seed"))
                searches.setdefault(run, []).append(place(line))
        for (method, *_), points in searches.items():
            look = style[method]
            faint = {"alpha": 0.35, "markersize": 5, "linewidth": 1, "clip_on": False}
            ax.plot(*zip(*points, strict=True), color=look["color"], marker=look["marker"], **faint)
        reported.append([(line, place(line)) for line in lines if None not in place(line)])
        points = [*itertools.chain(*searches.values()), *(point for _, point in reported[-1])]
        if points:
            ax.update_datalim(points)
            ax.margins(0.1)  # room for the marks of points at the border
            ax.autoscale_view()
        y.scale(ax, [value for _, value in points])
        x.scale(ax, [value for line in [*lines, *tried] if (value := x.mean(line)) is not None])
        ax.set_xlabel(x.label, fontsize=11)
    axes[0].set_ylabel(y.label, fontsize=11)
    shown = dict.fromkeys(line.method for line, _ in itertools.chain(*reported))
    saved = {line.method for line in lines if line.saved}
    labels = [plain(method) + (": saved" if method in saved else "") for method in shown]
    handles = [Line2D([], [], ls="", ms=10, mec="white", **_marker(style[method])) for method in shown]
    if handles:
        legend_below(figure, handles, labels, 4 if len(panels) < 3 else 6)
    # With scales and legend in their places it is known which points fall together.
    figure.draw_without_rendering()
    for ax, found in zip(axes, reported, strict=True):
        lined, points = [line for line, _ in found], [point for _, point in found]
        places = _draw_marks(ax, points, [style[line.method] for line in lined])
        groups = _groups(places)
        for number, (line, point) in enumerate(found):
            note = {"textcoords": "offset points", "fontsize": 8, "color": "0.3"}
            members = [one for one, group in zip(lined, groups, strict=True) if group == groups[number]]
            if several and line is members[0]:
                sizes = dict.fromkeys(f"{one.row[vocabulary.size_key]}" for one in members)
                ax.annotate(", ".join(sizes), point, xytext=(8 + min(14, 3 * (len(members) - 1)), 4), **note)
            elif line.saved and not several:
                arrow = {"arrowstyle": "-", "color": "0.3", "linewidth": 0.8}
                ax.annotate("saved", point, _free_side(places, number), ha="center", arrowprops=arrow, **note)
    return figure


def _draw_marks(ax, points: Sequence[tuple[float, float]], looks: Sequence[Mapping], size: float = 12) -> np.ndarray:
    """A marker of a diameter on every point; where several fall together, one is filled and the others rings around.

    Returns where the points (n, 2) lie on paper, in typographic points.
    """
    places = ax.transData.transform(np.asarray(points, dtype=float).reshape(-1, 2)) * 72 / ax.figure.dpi
    ranks: list[int] = []
    for place in places:
        taken = {rank for rank, other in zip(ranks, places) if np.hypot(*(place - other)) < size + 1}
        ranks.append(next(rank for rank in itertools.count() if rank not in taken))
    wider = min(7, WIDEST / (1 + max(ranks, default=0)))
    for place, point, look, rank in zip(places, points, looks, ranks, strict=True):
        diameter = size + rank * wider
        alone = (np.hypot(*(places - place).T) < 1.5 * size).sum() == 1
        if alone and look["marker"] == REFERENCE_MARKERS[1]:
            diameter *= 1.5  # a star is slender
        if rank == 0:
            drawn = {"color": look["color"], "edgecolor": "white", "linewidth": 1.2}
        else:
            drawn = {"facecolor": "none", "edgecolor": look["color"], "linewidth": 1.8}
        drawn |= {"marker": look["marker"], "s": diameter**2, "zorder": 5 - 0.01 * rank, "clip_on": False}
        ax.scatter(*([value] for value in point), **drawn)
    return places


def _marker(look: Mapping) -> dict:
    return {"marker": look["marker"], "color": look["color"]}


def _groups(places: np.ndarray, near: float = 13.0) -> list[int]:
    """For each place the number of its group: those nearer than `near` to one another, or by way of others."""
    group = list(range(len(places)))
    for i, j in itertools.combinations(range(len(places)), 2):
        if np.hypot(*(places[i] - places[j])) < near:
            group = [group[i] if one == group[j] else one for one in group]
    return group


def _free_side(places: np.ndarray, number: int) -> tuple[int, int]:
    """The offset of a note on a place, on the side where others are furthest."""
    others = np.delete(places, number, axis=0)
    room = lambda offset: np.hypot(*(others - places[number] - offset).T).min(initial=math.inf)
    return max([(0, -26), (0, 20), (-36, -3), (36, -3)], key=room)


def kl_distribution(kl_samples: Mapping[str, Sequence[float]], methods: Sequence[str], vocabulary: Vocabulary):
    """Share of tokens whose KL divergence (nats) from the original lies below x, one curve a method.

    Values that rounding made zero or negative count as `SMALLEST_KL`. `methods` are all of the report, in its order,
    so that each has one colour in every picture; the vocabulary's references are drawn in black.
    """
    from matplotlib.lines import Line2D

    figure, (ax,) = make_figure(1, 4.6)
    style = styles([*methods, *kl_samples], vocabulary.references)
    lowest, highest, means, looks, handles = 1.0, SMALLEST_KL, [], [], []
    for method, sample in kl_samples.items():
        values = np.sort(np.asarray(sample, dtype=float))
        if not len(values):
            continue
        share = 100 * np.arange(1, len(values) + 1) / len(values)
        mean, look = values.mean(), style[method]
        shown = np.maximum(values, SMALLEST_KL)
        line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.6}
        ax.step(shown, share, where="post", **line)
        at_mean = 100 * np.searchsorted(values, mean, side="right") / len(values)
        means.append((max(mean, SMALLEST_KL), at_mean))
        looks.append(look)
        label = {"label": f"{plain(method)}: mean {mean:.2g}"}
        handles.append(Line2D([], [], **look, linewidth=1.6, markersize=9, markeredgecolor="white", **label))
        lowest, highest = min(lowest, np.quantile(shown, 0.02)), max(highest, shown[-1])
    ax.set_xscale("log")
    ax.set_xlim(lowest / 1.5, highest * 1.5)
    ax.set_ylim(0, 101)
    token = vocabulary.token
    ax.set_xlabel(f"KL from the original at one {token}, nats\n(log scale; marker: mean)", fontsize=11)
    ax.set_ylabel(f"share of {token}s\nwith less, %", fontsize=11)
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=11)
    figure.draw_without_rendering()
    _draw_marks(ax, means, looks, size=9)
    return figure


def kl_quantile_plot(results: Mapping[str, object], methods: Sequence[str] = (), references: Sequence[str] = ()):
    """Figure 2 of the K-FADE paper: quantiles of KL(original || model) over completions, and over their tokens.

    `results` are `KLResult`s by method; `methods` and `references` as for `kl_distribution`. The scale of x gives the
    upper tail as much room as the body: that is where a method's harm hides. Shaded: 95 % bootstrap bands, pointwise,
    completions resampled.
    """
    figure, axes = make_figure(2, 4.8)
    style = styles([*methods, *results], references)
    lowest, highest = math.inf, 0.0
    for ax, over, what in zip(axes, ("sequences", "tokens"), ("completions (mean of their tokens)", "single tokens")):
        last = 0.9
        for method, result in results.items():
            count = len(result.per_sequence) if over == "sequences" else result.tokens
            # Beyond one value in `count` a quantile is the maximum and nothing else.
            end = 1 - 1 / max(count, 20)
            levels = 1 / (1 + np.exp(-np.linspace(math.log(0.02 / 0.98), math.log(end / (1 - end)), 120)))
            point, low, high = np.maximum(result.quantile_bands(levels, over, resamples=400), SMALLEST_KL)
            look, last = style[method], max(last, end)
            line = {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.8}
            ax.plot(levels, point, **line, label=plain(method))
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
        ax.set_xlabel(f"quantile of {what} (logit scale)", fontsize=11)
    if highest:
        axes[0].set_yscale("log")
        axes[0].set_ylim(lowest / 1.5, highest * 2)
    axes[0].set_ylabel("KL(original || unlearned), nats per token\n(log scale; lower is better)", fontsize=11)
    legend_below(figure, *axes[0].get_legend_handles_labels(), 4)
    return figure


def relearn_plot(curves: Sequence[Mapping], chance: float | None = None, methods: Sequence[str] = ()):
    """The first metric during fine-tuning attacks: one panel an attack, one line a method, black the original.

    `curves` are those of `AttackTable`, `chance` is the value of guessing, drawn as a line. The open marker at the end
    of a line is the attacked model with the method's update added once more. `methods` are all of the report, in its
    order.
    """
    metric = next(iter(curves[0]["scores"][0]))
    titles = list(dict.fromkeys((curve["attack"], curve["learning_rate"]) for curve in curves))
    figure, axes = make_figure(len(titles), 4.6)
    style = styles([*methods, *(curve["method"] for curve in curves)], [CONTROL])
    for ax, title in zip(axes, titles, strict=True):
        shown = [curve for curve in curves if (curve["attack"], curve["learning_rate"]) == title]
        # Side by side, for several of them may fall on one point.
        end = max(curve["steps"][-1] for curve in shown)
        for place, curve in enumerate(shown):
            look = style[curve["method"]]
            values = [scores[metric] for scores in curve["scores"]]
            label = f"{CONTROL} (control)" if curve["method"] == CONTROL else plain(curve["method"])
            # The control is wide and hollow: what falls on it is seen within.
            size = {"markersize": 9, "markerfacecolor": "none"} if curve["method"] == CONTROL else {"markersize": 5}
            ax.plot(curve["steps"], values, **look, **size, label=label)
            again = curve["with_update"].get(curve["method"])
            if again is not None:
                x = end * (1.04 + 0.04 * place)
                ax.plot([end, x], [values[-1], again[metric]], color=look["color"], linewidth=0.8, linestyle=":")
                ax.plot([x], [again[metric]], marker=look["marker"], markersize=9, color=look["color"], mfc="white")
        if chance is not None:
            mark_level(ax, chance, "chance", below=True)
        ax.set_title(f"{plain(title[0])}, learning rate {title[1]:g}", fontsize=11)
        ax.set_xlabel("steps of fine-tuning\n(single open marker: update added again)", fontsize=11)
        # Room for the legend's largest marker and for a chance line at the bottom.
        ax.margins(y=0.08)
    axes[0].set_ylabel(f"{plain(metric)}\n(lower: still forgotten)", fontsize=11)
    legend_below(figure, *axes[0].get_legend_handles_labels(), 5)
    return figure


def class_bars(
    lines: Sequence[Line], metrics: Mapping[str, str], references: Sequence[str], paper: Mapping | None = None
):
    """Class forgetting: a panel for each of `metrics` (titles by key), a group of bars a number of images per class.

    Error bars are standard deviations over seeds, hatched is what has no number as relearning did not end in time,
    diamonds are the paper's figures. The first of `references` relearns nothing.
    """
    from matplotlib.lines import Line2D

    sizes = sorted({line.row["per_class"] for line in lines})
    methods = list(dict.fromkeys(line.method for line in lines))
    style = styles(methods, references)
    style[references[0]]["color"] = "0.55"
    figure, axes = make_figure(len(metrics), 4.2, sharey=False)
    width, handles = 0.8 / len(methods), {}
    for ax, (metric, title) in zip(axes, metrics.items(), strict=True):
        for line in lines:
            if metric == "relearning_epochs" and line.method == references[0]:
                continue
            size, value = line.row["per_class"], line.row.get(metric)
            x = sizes.index(size) + (methods.index(line.method) - (len(methods) - 1) / 2) * width
            if value is None:
                bar = ax.bar(x, 100, width, color=style[line.method]["color"], hatch="//", edgecolor="white")
            else:
                error = {"yerr": line.row.get(f"{metric}_std"), "error_kw": {"lw": 0.8, "ecolor": "0.3"}}
                bar = ax.bar(x, value, width, color=style[line.method]["color"], **error)
            handles.setdefault(line.method, bar)
            if paper and size in paper["columns"] and line.method in paper[metric]:
                figure_value = paper[metric][line.method][paper["columns"].index(size)]
                ax.plot(x, figure_value, "D", ms=4, mfc="white", mec="black", zorder=5)
        ax.set_xticks(range(len(sizes)), [f"{size}" for size in sizes])
        ax.set_xlabel("images per class", fontsize=11)
        ax.set_title(title, fontsize=11)
        ax.set_ylim(0, None if metric == "relearning_epochs" else 105)
    if paper:
        handles[f"paper ({paper['name']})"] = Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec="black")
    legend_below(figure, handles.values(), list(map(plain, handles)), 6)
    return figure


def mask_plot(sites: Sequence[Mapping]):
    """The structures that a mask keeps, layer by layer: each head a cell, filters in cells of neighbours.

    A cell's colour is the stronger the more of its filters are kept, in shares of the fullest; grey is frozen. At the
    end of each row stands how many are kept.

    Args:
        sites (`Sequence[Mapping]`): the heads or the filters of a layer each: `layer`, `kind`, `count`, and as `kept`
            the numbers of those that are.
    """
    from matplotlib.colors import to_rgb

    kinds = [kind for kind in ("heads", "filters") if any(site["kind"] == kind for site in sites)]
    layers = sorted({site["layer"] for site in sites})
    figure, axes = make_figure(len(kinds), 1.6 + 0.24 * len(layers))
    for ax, kind in zip(axes, kinds, strict=True):
        rows = {site["layer"]: np.zeros(site["count"]) for site in sites if site["kind"] == kind}
        for site in sites:
            if site["kind"] == kind:
                rows[site["layer"]][list(site["kept"])] = 1
        widest = max(map(len, rows.values()))
        size = 1 if kind == "heads" else math.ceil(widest / MASK_CELLS)
        columns = math.ceil(widest / size)
        shares = {
            layer: [row[at : at + size].mean() for at in range(0, len(row), size)] for layer, row in rows.items()
        }
        fullest = max(map(max, shares.values())) or 1.0
        for layer, cells in shares.items():
            # Rows of their own: layers of other widths end where they end.
            ends = np.arange(len(cells) + 1)
            mesh = ax.pcolormesh(ends, [layer - 0.5, layer + 0.5], np.zeros((1, len(cells))), edgecolor="white")
            mesh.set_array(None)
            level = 0.15 + 0.85 * np.asarray(cells) / fullest
            kept = np.asarray(cells) > 0
            mesh.set_facecolor(
                [(*to_rgb(COLOURS[0]), alpha) if any_kept else "0.9" for alpha, any_kept in zip(level, kept)]
            )
            number = {"va": "center", "fontsize": 8, "color": "0.3"}
            ax.text(columns * 1.01, layer, f"{int(rows[layer].sum())} of {len(rows[layer])}", **number)
        ax.grid(False)
        ax.spines[["left", "bottom"]].set_visible(False)
        ax.set_xlim(0, columns * 1.12)
        ax.set_ylim(layers[-1] + 0.5, layers[0] - 0.5)
        ax.set_yticks(layers[:: math.ceil(len(layers) / 24)])
        if kind == "heads":
            ax.set_xticks(np.arange(0, columns, math.ceil(columns / 16)) + 0.5)
            ax.set_xticklabels([f"{int(at)}" for at in ax.get_xticks()])
            ax.set_xlabel("head (blue: kept)", fontsize=11)
        else:
            ax.set_xticks([0, columns])
            ax.set_xticklabels(["0", f"{widest}"])
            ax.set_xlabel(f"filter ({size} a cell; fullest: {100 * fullest:.3g} % of them kept)", fontsize=11)
    axes[0].set_ylabel("layer", fontsize=11)
    return figure

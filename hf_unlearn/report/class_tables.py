# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The tables and the picture of class forgetting, in the layout of Fast-NTK's tables, beside the paper's own figures."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence

from ..errors import InputError
from .formats import MISSING


METRICS = {
    "retain": "Accuracy on D_r (%)",
    "forget": "Accuracy on D_f (%)",
    "holdout": "Accuracy on the hold-out set (%)",
    "relearning_epochs": "Epochs to relearn D_f",
}
PROBE = "probe: "
COLOURS = {
    "Full": "0.55",
    "Max Loss": "#d95f02",
    "Random Label": "#e6ab02",
    "Fast-NTK": "#1b6ca8",
    "Fast-NTK, at w0": "#7fb2d9",
    "Retrain": "black",
}


def paper_figures(name: str | None) -> dict | None:
    """The paper's figures for a network and dataset ("ResNet-110, CIFAR-10").

    Raises:
        InputError: the paper has none of that name.
    """
    if name is None:
        return None
    text = (importlib.resources.files("hf_unlearn") / "templates" / "fast_ntk_paper.json").read_text(encoding="utf-8")
    figures = json.loads(text)
    if name not in figures or name == "source":
        raise InputError(
            f"paper: no figures of {name!r}; there are {', '.join(key for key in figures if key != 'source')}"
        )
    return figures[name] | {"name": name}


def format_tables(table: Sequence[Mapping], paper: Mapping | None = None) -> str:
    """Markdown: one block a metric, methods below one another, images per class beside one another, the paper's after them."""
    columns = sorted({entry["per_class"] for entry in table})
    methods = [entry["method"] for entry in table if entry["per_class"] == columns[0]]
    by_key = {(entry["method"], entry["per_class"]): entry for entry in table}
    theirs = [f"paper: {column}" for column in paper["columns"]] if paper else []
    seeds = max(entry["seeds"] for entry in table)
    lines = [f"Mean ± standard deviation over {seeds} seeds; columns are images per class."]
    if paper:
        lines[0] += f" The paper's columns are its {paper['name']}."
    for metric, title in METRICS.items():
        shown = [method for method in methods if not method.startswith(PROBE)]
        if metric == "relearning_epochs":
            shown = [method for method in shown if method != "Full"]
        lines += ["", f"**{title}**", "", "| method | " + " | ".join([*map(str, columns), *theirs]) + " |"]
        lines.append("|---|" + "---:|" * (len(columns) + len(theirs)))
        for method in shown:
            cells = [cell(by_key.get((method, column)), metric) for column in columns]
            if paper:
                values = paper[metric].get(method)
                cells += [f"{value:.2f}" for value in values] if values else [MISSING] * len(theirs)
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    if probes := [method for method in methods if method.startswith(PROBE)]:
        heads = [f"{side}, {column}" for column in columns for side in ("D_r", "D_f", "hold-out of the class")]
        lines += ["", "**Linear probing: accuracy of a new head on frozen features (%)**", ""]
        lines += ["| features | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for method in probes:
            cells = [
                cell(by_key.get((method, column)), metric)
                for column in columns
                for metric in ("retain", "forget", "holdout")
            ]
            lines.append(f"| {method.removeprefix(PROBE)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(entry: Mapping | None, metric: str) -> str:
    """ "84.1 ± 0.3"; ">100" where relearning did not end in time."""
    if entry is None:
        return MISSING
    if entry[metric] is None:
        return ">100" if metric == "relearning_epochs" else MISSING
    return f"{entry[metric]:.1f} ± {entry[f'{metric}_std']:.1f}"


def plot_tables(table: Sequence[Mapping], paper: Mapping | None = None):
    """Figure: one panel a metric, a group of bars for every number of images per class; diamonds are the paper's figures."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = sorted({entry["per_class"] for entry in table})
    methods = [m for m in dict.fromkeys(entry["method"] for entry in table) if not m.startswith(PROBE)]
    by_key = {(entry["method"], entry["per_class"]): entry for entry in table}
    figure, axes = plt.subplots(1, len(METRICS), figsize=(4 * len(METRICS), 3.6), constrained_layout=True)
    width = 0.8 / len(methods)
    for ax, (metric, title) in zip(axes, METRICS.items()):
        for number, method in enumerate(methods):
            for place, column in enumerate(columns):
                entry, x = by_key.get((method, column)), place + (number - (len(methods) - 1) / 2) * width
                if entry is None or (metric == "relearning_epochs" and method == "Full"):
                    continue
                value = entry[metric]
                ax.bar(
                    x, 100 if value is None else value, width, color=COLOURS.get(method, "0.8"),
                    hatch="//" if value is None else None, yerr=None if value is None else entry[f"{metric}_std"],
                    label=method if place == 0 else None, error_kw={"lw": 0.8},
                )  # fmt: skip
                if paper and column in paper["columns"] and method in paper[metric]:
                    figure_value = paper[metric][method][paper["columns"].index(column)]
                    ax.plot(x, figure_value, "D", ms=4, mfc="white", mec="black", zorder=5)
        ax.set_xticks(range(len(columns)), [f"{column}" for column in columns])
        ax.set_xlabel("images per class")
        ax.set_title(title, fontsize=10)
        ax.set_ylim(0, None if metric == "relearning_epochs" else 105)
    handles, labels = axes[0].get_legend_handles_labels()
    if paper:
        handles.append(plt.Line2D([], [], ls="", marker="D", ms=4, mfc="white", mec="black"))
        labels.append(f"paper ({paper['name']})")
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    return figure

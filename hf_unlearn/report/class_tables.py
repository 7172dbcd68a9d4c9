# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sections on class forgetting: a table a metric as in the Fast-NTK paper, beside the paper's own figures."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence

from ..errors import InputError
from .formats import MISSING
from .page import Section
from .plots import class_bars
from .vocabulary.base import Column, Line
from .vocabulary.classes import PROBE, ClassVocabulary


METRICS = {
    "retain": "Accuracy on D_r (%)",
    "forget": "Accuracy on D_f (%)",
    "holdout": "Accuracy on the hold-out set (%)",
    "relearning_epochs": "Epochs to relearn D_f",
}


def paper_figures(name: str | None) -> dict | None:
    """The paper's figures for a network and dataset ("ResNet-110, CIFAR-10").

    Raises:
        InputError: the paper has none of that name.
    """
    if name is None:
        return None
    text = (importlib.resources.files("hf_unlearn") / "templates" / "fast_ntk_paper.json").read_text(encoding="utf-8")
    figures = {key: value for key, value in json.loads(text).items() if key != "source"}
    if name not in figures:
        raise InputError(f"paper: no figures of {name!r}; there are {', '.join(figures)}")
    return figures[name] | {"name": name}


def class_sections(rows: Sequence[Mapping], paper: Mapping | None = None) -> list[Section]:
    """Sections of the report of class forgetting: one table a metric, bars of all of them, and linear probing.

    Rows of linear probing (`PROBE`) are among the others. Methods stand below one another, images per class beside one
    another, the paper's columns (of `paper_figures`) after them.
    """
    vocabulary = ClassVocabulary()
    lines = vocabulary.lines(rows)
    methods = list(dict.fromkeys(line.method for line in lines))
    sizes = sorted({line.row["per_class"] for line in lines})
    seeds = max(len(line.runs) for line in lines)
    text = "Columns are images per class."
    if seeds > 1:
        text = f"Mean ± standard deviation over {seeds} seeds; columns are images per class."
    if paper:
        text += f" The paper's columns are its {paper['name']}."
    theirs = [f"paper: {size}" for size in paper["columns"]] if paper else []
    sections = []
    for (metric, title), column in zip(METRICS.items(), vocabulary.columns(rows), strict=True):
        body = []
        for method in methods:
            if metric == "relearning_epochs" and method == vocabulary.references[0]:
                continue
            values = paper[metric].get(method) if paper else None
            figures = [f"{value:.2f}" for value in values] if values else [MISSING] * len(theirs)
            body.append([method, *_cells(lines, method, sizes, [column]), *figures])
        sections.append(
            Section(title, text if not sections else "", header=["method", *map(str, sizes), *theirs], table=body)
        )
    sections.append(
        Section(
            "All methods, all sizes",
            name="classes.png",
            figure=class_bars(lines, METRICS, vocabulary.references, paper),
            alt="Accuracies and epochs to relearn, a group of bars for every number of images per class",
        )
    )
    probes = [row | {"method": row["method"].removeprefix(PROBE)} for row in rows if row["method"].startswith(PROBE)]
    if probes:
        sections.append(_probing(vocabulary, probes, sizes))
    return sections


def _probing(vocabulary: ClassVocabulary, rows: Sequence[Mapping], sizes: Sequence[int]) -> Section:
    """Accuracy of a new head on frozen features, of the models that the rows name."""
    lines, columns = vocabulary.lines(rows), vocabulary.columns(rows)[:3]
    heads = [f"{side}, {size}" for size in sizes for side in ("D_r", "D_f", "hold-out of the class")]
    methods = dict.fromkeys(line.method for line in lines)
    return Section(
        "Linear probing: accuracy of a new head on frozen features (%)",
        "What the features still tell; the hold-out is that of the forgotten class. Columns are images per class.",
        header=["features", *heads],
        table=[[method, *_cells(lines, method, sizes, columns)] for method in methods],
    )


def _cells(lines: Sequence[Line], method: str, sizes: Sequence[int], columns: Sequence[Column]) -> list[str]:
    """The columns' texts of one method, size after size."""
    by_size = {line.row["per_class"]: line for line in lines if line.method == method}
    return [column.text(by_size[size].runs) if size in by_size else MISSING for size in sizes for column in columns]

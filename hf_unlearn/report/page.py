# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A comparison of methods as files a person reads (HTML, Markdown, pictures) and files a program reads (JSON)."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ..runtime.files import atomic_write, write_json, write_text
from ..runtime.provenance import environment
from .formats import format_settings, visible
from .plots import kl_distribution, pareto
from .questions import Question
from .rendering import render
from .styles import turn_dark
from .tables import format_table, marked_column, table_cells
from .vocabulary import vocabulary_of


QUANTILES = (0.5, 0.9, 0.99, 1.0)
TOLD = ("title", "text", "header", "table")  # what report.json holds of a section


@dataclass(frozen=True)
class Section:
    """A further part of the report, after the table and the pictures that every comparison has."""

    title: str
    text: str = ""  # sentences below the title
    header: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()  # of texts
    name: str = ""  # file name of the figure ("relearn.png")
    figure: object = None  # of matplotlib
    alt: str = ""  # what the figure shows
    examples: Sequence[tuple[str, str]] = ()  # (what it is, the text itself)


def finite(row: Mapping) -> dict:
    """The row with numbers JSON can hold: NaN and infinity become None and are named in the row's note."""
    broken = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    result = {key: None if key in broken else value for key, value in row.items()}
    if broken:
        notes = [row["note"]] if row.get("note") else []
        result["note"] = "; ".join([*notes, f"not finite: {', '.join(broken)}"])
    return result


def kl_quantiles(sample: Sequence[float]) -> dict[str, float]:
    values = torch.as_tensor(sample, dtype=torch.float64)
    points = torch.quantile(values, torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
    named = {f"quantile_{q}": point for q, point in zip(QUANTILES, points, strict=True)}
    return {"tokens": len(values), "mean": float(values.mean()), **named}


def _both(light: Path, figure) -> tuple[str, str]:
    """A picture for a light page and for a dark one, as base64; the figure is a dark one from now on."""
    turn_dark(figure)
    dark = io.BytesIO()
    figure.savefig(dark, format="png")
    encode = lambda data: base64.b64encode(data).decode()
    return encode(light.read_bytes()), encode(dark.getvalue())


def write_report(
    output_dir: str | Path,
    *,
    title: str,
    rows: Sequence[Mapping],
    candidates: Sequence[Mapping] = (),
    questions: Sequence[Question] = (),
    kl_samples: Mapping[str, Sequence[float]] | None = None,
    sections: Sequence[Section] = (),
    settings: Mapping | None = None,
    summary: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Path]:
    """Write results.json, report.json, report.md, pareto.png, kl.png and report.html (one file, works offline).

    Args:
        rows (`Sequence[Mapping]`): one dict a method, size and seed, all of one kind (`vocabulary_of`): method, what
            the kind measures, seconds, peak_memory_mb, settings, and note where something needs saying; the kind's
            references among them. A value may be None: not measured. Rows that differ in their seed alone are one line
            of the table, mean ± standard deviation. `saved_as` is the folder of the report that holds its model.
        candidates (`Sequence[Mapping]`, *optional*): the same for every setting that was tried.
        questions (`Sequence[Question]`, *optional*): first thing on the page: what the models say.
        kl_samples (`Mapping[str, Sequence[float]]`, *optional*): {method: KL of every token, nats}.
        sections (`Sequence[Section]`, *optional*): further parts of the report; their figures are written too.
        settings (`Mapping`, *optional*): of the whole run.
        summary (`str`, *optional*): plain sentences on what happened.
        notes (`Sequence[str]`, *optional*): what the reader should know before trusting the numbers.

    Returns:
        {file name: path}; kl.png only when there are KL samples.
    """
    folder = Path(output_dir)
    rows, candidates = [finite(row) for row in rows], [finite(row) for row in candidates]
    vocabulary = vocabulary_of(rows)
    samples = {method: sample for method, sample in (kl_samples or {}).items() if len(sample)}
    facts = environment()
    paths = {"results.json": write_json(folder / "results.json", rows)}
    report = {
        "title": title,
        "summary": summary,
        "notes": list(notes),
        "questions": [asdict(question) for question in questions],
        "settings": dict(settings or {}),
        "environment": facts,
        "rows": rows,
        "candidates": candidates,
        "kl_per_token": {method: kl_quantiles(sample) for method, sample in samples.items()},
        "sections": [{key: getattr(section, key) for key in TOLD} for section in sections],
    }
    paths["report.json"] = write_json(folder / "report.json", report)
    figures = {"pareto.png": pareto(rows, candidates, vocabulary)}
    (folder / "kl.png").unlink(missing_ok=True)
    if samples:
        methods = [row["method"] for row in [*rows, *candidates]]
        figures["kl.png"] = kl_distribution(samples, methods, vocabulary)
    figures |= {section.name: section.figure for section in sections if section.figure is not None}
    for name, figure in figures.items():
        paths[name] = atomic_write(folder / name, lambda path, figure=figure: figure.savefig(path, format="png"))
    header, lines = table_cells(rows)
    tried, marked = table_cells(rows, candidates)[1], marked_column(rows)
    told = "; ".join(f"{line.method} {cells[marked]}" for line, cells in lines)
    means = "; ".join(f"{method} {found['mean']:.2g}" for method, found in report["kl_per_token"].items())
    context = {
        **report,
        "sections": sections,
        "questions": questions,
        "alt": {
            "pareto.png": visible(f"{vocabulary.captions['pareto']}. {header[marked]}: {told}."),
            "kl.png": visible(f"{vocabulary.captions.get('kl', '')}. Means: {means}."),
            **{section.name: section.alt for section in sections},
        },
        "captions": vocabulary.captions,
        "references": vocabulary.references,
        "header": header,
        "marked": marked,
        "lines": lines,
        "seeds": max(len(line.runs) for line, _ in lines),
        "candidate_lines": tried,
        "candidate_cells": [[*cells, format_settings(line.row.get("settings"))] for line, cells in tried],
        "saved": any(line.saved for line, _ in lines),
        "images": {name: _both(paths[name], figure) for name, figure in figures.items()},
        "table": format_table(rows),
    }
    for name in ("report.md", "report.html"):
        paths[name] = write_text(folder / name, render(name, context))
    return paths

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A comparison of methods as files a person reads (HTML, Markdown, pictures) and files a program reads (JSON)."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..runtime.files import atomic_write, write_json, write_text
from ..runtime.provenance import environment
from .formats import MISSING, format_settings, format_value
from .plots import kl_distribution, pareto
from .vocabulary import results_of


QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True)
class Section:
    """A further part of the report, after the table and the pictures that every comparison has.

    Args:
        title, text: heading, and sentences below it.
        header, table: a table of texts.
        name, figure: a matplotlib figure and its file name ("relearn.png"); `alt` says what it shows.
        examples: (what it is, the text itself).
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    name: str = ""
    figure: object = None
    alt: str = ""
    examples: Sequence[tuple[str, str]] = ()

    @property
    def markdown_table(self) -> str:
        return markdown_table(self.header, self.table)


def table_cells(rows: Sequence[Mapping], shown: Sequence[Mapping] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and text of the table of `shown` (default: all `rows`); what was not measured is a dash."""
    original = next((row for row in rows if row["method"] == "original"), None)
    columns = results_of(rows).columns(rows)
    header = ["method", *(column.head for column in columns), "time (s)", "peak memory (MB)"]
    body = []
    for row in rows if shown is None else shown:
        seconds, memory = row.get("seconds"), row.get("peak_memory_mb")
        body.append(
            [
                row["method"],
                *(column.text(row, original) for column in columns),
                MISSING if seconds is None else f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}",
                MISSING if memory is None else f"{memory:.0f}",
            ]
        )
    return header, body


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in body])


def format_table(rows: Sequence[Mapping]) -> str:
    """The table of methods in Markdown, the mark of rows that reached the goal in bold, notes of rows below it."""
    kind = results_of(rows)
    header, body = table_cells(rows)
    for row, cells in zip(rows, body, strict=True):
        if kind.reached(row):
            cells[1] = f"**{cells[1]}**"
    notes = [f"- {row['method']}: {row['note']}" for row in rows if row.get("note")]
    return "\n".join([markdown_table(header, body), *([""] + notes if notes else [])])


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


def write_report(
    output_dir: str | Path,
    *,
    title: str,
    rows: Sequence[Mapping],
    candidates: Sequence[Mapping] = (),
    kl_samples: Mapping[str, Sequence[float]] | None = None,
    sections: Sequence[Section] = (),
    settings: Mapping | None = None,
    summary: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Path]:
    """Write results.json, report.json, report.md, pareto.png, kl.png and report.html (one file, works offline).

    Args:
        rows: one dict a method, all of one kind (`results.results_of`): method, what the kind measures, seconds,
            peak_memory_mb, settings, and note where something needs saying; "original" among them. A value may be None:
            not measured.
        candidates: the same for every setting that was tried.
        kl_samples: {method: KL of every token, nats}.
        sections: further parts of the report; their figures are written too.
        settings: of the whole run.
        summary: plain sentences on what happened, first thing on the page.
        notes: what the reader should know before trusting the numbers.

    Returns:
        {file name: path}; kl.png only when there are KL samples.
    """
    import jinja2

    folder = Path(output_dir)
    rows, candidates = [finite(row) for row in rows], [finite(row) for row in candidates]
    kind = results_of(rows)
    samples = {method: sample for method, sample in (kl_samples or {}).items() if len(sample)}
    facts = environment()
    paths = {"results.json": write_json(folder / "results.json", rows)}
    report = {
        "title": title,
        "summary": summary,
        "notes": list(notes),
        "settings": dict(settings or {}),
        "environment": facts,
        "rows": rows,
        "candidates": candidates,
        "kl_per_token": {method: kl_quantiles(sample) for method, sample in samples.items()},
        "sections": [
            {"title": section.title, "text": section.text, "header": section.header, "table": section.table}
            for section in sections
        ],
    }
    paths["report.json"] = write_json(folder / "report.json", report)
    figures = {"pareto.png": pareto(rows, candidates, *kind.axes())}
    (folder / "kl.png").unlink(missing_ok=True)
    if samples:
        figures["kl.png"] = kl_distribution(samples, [row["method"] for row in [*rows, *candidates]])
    figures |= {section.name: section.figure for section in sections if section.figure is not None}
    for name, figure in figures.items():
        paths[name] = atomic_write(folder / name, lambda path, figure=figure: figure.savefig(path, format="png"))
    header, body = table_cells(rows)
    context = {
        **report,
        "sections": sections,
        "captions": kind.captions,
        "header": header,
        "table": list(zip(rows, body, strict=True)),
        "candidate_table": list(zip(candidates, table_cells(rows, candidates)[1], strict=True)),
        "images": {name: base64.b64encode(paths[name].read_bytes()).decode() for name in figures},
        "markdown_table": format_table(rows),
    }
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_unlearn", "templates"),
        autoescape=lambda name: name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters |= {"settings": format_settings, "value": format_value}
    templates.tests["reached"] = kind.reached
    for name in ("report.md", "report.html"):
        paths[name] = write_text(folder / name, templates.get_template(name).render(context))
    return paths

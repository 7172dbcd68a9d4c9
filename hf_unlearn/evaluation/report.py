# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A comparison of methods as files a person reads (HTML, Markdown, pictures) and files a program reads (JSON)."""

import base64
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..deltas import library_versions
from ..files import atomic_write, write_json, write_text
from .plots import REACHED, kept_percent, kl_distribution, pareto


QUANTILES = (0.5, 0.9, 0.99, 1.0)
MISSING = "–"


def environment() -> dict[str, str]:
    """Where numbers came from: library versions, system, processors and accelerator."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "accelerators": ", ".join(devices) or "none",
    }


def format_p(p: float | None) -> str:
    """A p-value at two digits; below 1e-12 only that, for the exact figure then tells the sample size and no more."""
    if p is None:
        return MISSING
    return "<1e-12" if p < 1e-12 else f"{p:.1e}" if p < 1e-3 else f"{p:.2g}" if p < 0.995 else "1.0"


def format_number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}" if abs(value) < 10**-digits else f"{value:.{digits}f}"


def format_value(value) -> str:
    """A setting in plain words: mappings in brackets, sequences with commas, floats without padding."""
    if isinstance(value, Mapping):
        return f"({format_settings(value)})"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_settings(settings: Mapping | None) -> str:
    """{"steps": 4, "step_norm": 0.004} as "steps 4, step_norm 0.004"; what is None was not set, and is left out."""
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    return ", ".join(f"{key} {format_value(value)}" for key, value in given.items()) or MISSING


def table_cells(rows: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """Header and text of the table of methods; what was not measured is a dash."""
    original = next((row for row in rows if row["method"] == "original"), None)
    header = [
        "method",
        "forget quality (p)",
        "KS distance (n)",
        "model utility",
        "forget prob.",
        "retain prob.",
        "kept",
        "retain KL (nats/token)",
        "time (s)",
        "peak memory (MB)",
    ]
    body = []
    for row in rows:
        ks, n, kept = row.get("ks_statistic"), row.get("n"), kept_percent(row, original)
        seconds, memory = row.get("seconds"), row.get("peak_memory_mb")
        body.append(
            [
                row["method"],
                format_p(row.get("forget_quality")),
                MISSING if ks is None else f"{ks:.3f}" + (f" ({n})" if n is not None else ""),
                format_number(row.get("model_utility")),
                format_number(row.get("forget_probability")),
                format_number(row.get("retain_probability")),
                MISSING if kept is None else f"{kept:.1f} %",
                format_number(row.get("retain_kl"), 4 if (row.get("retain_kl") or 0) < 1 else 2),
                MISSING if seconds is None else f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}",
                MISSING if memory is None else f"{memory:.0f}",
            ]
        )
    return header, body


def format_table(rows: Sequence[Mapping]) -> str:
    """The table of methods in Markdown, forget qualities of 0.05 and more in bold, notes of rows below it."""
    header, body = table_cells(rows)
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row, cells in zip(rows, body, strict=True):
        cells = [cell.replace("|", "\\|") for cell in cells]
        if reached(row):
            cells[1] = f"**{cells[1]}**"
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"- {row['method']}: {row['note']}" for row in rows if row.get("note")]
    return "\n".join(lines + ([""] + notes if notes else []))


def reached(row: Mapping) -> bool:
    """Whether the KS test cannot tell the model from the retrained one at the 5 % level."""
    return row.get("forget_quality") is not None and row["forget_quality"] >= REACHED


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
    settings: Mapping | None = None,
    summary: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Path]:
    """Write results.json, report.json, report.md, pareto.png, kl.png and report.html (one file, works offline).

    Args:
        rows: one dict a method: method, forget_quality (p-value), ks_statistic, n, model_utility, forget_probability,
            retain_probability, retain_kl (nats per token), seconds, peak_memory_mb, settings, and note where something
            needs saying; "original" and "retrained" among them. A value may be None: not measured.
        candidates: the same for every setting that was tried.
        kl_samples: {method: KL of every retained token, nats}.
        settings: of the whole run.
        summary: plain sentences on what happened, first thing on the page.
        notes: what the reader should know before trusting the numbers.

    Returns:
        {file name: path}; kl.png only when there are KL samples.
    """
    import jinja2

    folder = Path(output_dir)
    rows, candidates = [finite(row) for row in rows], [finite(row) for row in candidates]
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
    }
    paths["report.json"] = write_json(folder / "report.json", report)
    figures = {"pareto.png": pareto(rows, candidates)}
    (folder / "kl.png").unlink(missing_ok=True)
    if samples:
        figures["kl.png"] = kl_distribution(samples, [row["method"] for row in [*rows, *candidates]])
    for name, figure in figures.items():
        paths[name] = atomic_write(folder / name, lambda path, figure=figure: figure.savefig(path, format="png"))
    header, body = table_cells(rows)
    context = {
        **report,
        "header": header,
        "table": list(zip(rows, body, strict=True)),
        "candidate_table": list(zip(candidates, table_cells([*candidates, *rows])[1][: len(candidates)], strict=True)),
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
    templates.tests["reached"] = reached
    for name in ("report.md", "report.html"):
        paths[name] = write_text(folder / name, templates.get_template(name).render(context))
    return paths

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The page of one request: what the model said before and after, what changed elsewhere, what was not shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..runtime.files import write_text
from ..runtime.provenance import environment
from .card import NOT_SHOWN, measured_text, metric_table
from .questions import Question
from .rendering import render


REPORTS = ("report.md", "report.html")


def write_request_report(
    folder: str | Path,
    *,
    title: str,
    summary: str,
    measured: Mapping,
    questions: Sequence[Question] = (),
    counts: Mapping | None = None,
    settings: Mapping | None = None,
    cost: Mapping | None = None,
    warnings: Sequence[str] = (),
    tested: Sequence[str] = (),
) -> dict[str, Path]:
    """Write report.html (one file, works offline) and report.md; both quote rows, and are never published.

    Args:
        title, summary (`str`): of the page, and what happened, in a sentence or two.
        measured (`Mapping`): what `trainer.measures.before_and_after` returns: `original` and `unlearned` (numbers by
            key, see `report.card.RUN_METRICS`), `measured_on` and `limits`, all optional.
        questions (`Sequence[Question]`, *optional*): with answers from before and after; `compare_answers` makes them.
        counts (`Mapping`, *optional*): of rows, by what they are: given, dropped, tokens that were cut.
        settings (`Mapping`, *optional*): of the method, and what else decides the result.
        cost (`Mapping`, *optional*): by what it is ("seconds", "peak memory").
        warnings (`Sequence[str]`, *optional*): what the reader must know first: a limit passed, no rows to keep.
        tested (`Sequence[str]`, *optional*): keys of `report.card.NOT_SHOWN` that were tested after all.

    Returns:
        {file name: path}.
    """
    not_shown = [line for key, line in NOT_SHOWN.items() if key not in tested]
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    context = {
        "title": title,
        "summary": summary,
        "warnings": warnings,
        "questions": questions,
        "header": ["measure", "before", "after", "goal"],
        "table": metric_table(measured.get("original", {}), measured.get("unlearned", {}), {}),
        "measured_text": measured_text(measured.get("measured_on", {})),
        "lists": {"Rows": counts or {}, "Settings": given, "Cost": cost or {}, "Environment": environment()},
        "not_shown": [*measured.get("limits", ()), *not_shown],
    }
    return {name: write_text(Path(folder) / name, render(f"request_{name}", context)) for name in REPORTS}

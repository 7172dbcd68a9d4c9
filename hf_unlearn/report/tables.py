# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Markdown tables: of a comparison, of benchmark scores, and of any texts."""

from collections.abc import Mapping, Sequence

from .formats import MISSING, Markdown, escape_markdown, plus_minus
from .vocabulary import vocabulary_of
from .vocabulary.base import Line


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]], align: str = "") -> Markdown:
    """A table of texts, escaped unless they are `Markdown`.

    `align` has one letter a column, "l" or "r"; columns without one are to the right, the first to the left.
    """
    rule = ["---" if side == "l" else "---:" for side in (align or "l").ljust(len(header), "r")]
    lines = [header, *body]
    texts = ["| " + " | ".join(escape_markdown(cell, within=True) for cell in cells) + " |" for cells in lines]
    return Markdown("\n".join([texts[0], f"|{'|'.join(rule)}|", *texts[1:]]))


def table_cells(
    rows: Sequence[Mapping], candidates: Sequence[Mapping] | None = None
) -> tuple[list[str], list[tuple[Line, list[str]]]]:
    """Header and lines with their cells: of all `rows`, those of several seeds as mean ± standard deviation.

    With `candidates` they are shown instead, each as a line of its own. What was not measured is a dash.
    """
    vocabulary = vocabulary_of(rows)
    columns = [*vocabulary.columns(rows), *vocabulary.costs()]
    lines = vocabulary.lines(rows) if candidates is None else [vocabulary.line([row], rows) for row in candidates]
    sized = vocabulary.size_key is not None
    header = ["method", *([vocabulary.size_head] if sized else []), *(column.head for column in columns)]
    size = lambda line: [f"{line.row[vocabulary.size_key]}"] if sized else []
    cells = lambda line: [line.method, *size(line), *(column.text(line.runs) for column in columns)]
    return header, [(line, cells(line)) for line in lines]


def marked_column(rows: Sequence[Mapping]) -> int:
    """Place of the column that is emphasised in lines that reached the goal: the vocabulary's first."""
    return 1 if vocabulary_of(rows).size_key is None else 2


def format_table(rows: Sequence[Mapping]) -> Markdown:
    """The table of methods in Markdown, the mark of lines that reached the goal in bold, notes of lines below it.

    A line whose model the report's folder holds is "(saved)".
    """
    header, lines = table_cells(rows)
    marked = marked_column(rows)
    for line, cells in lines:
        if line.saved:
            cells[0] += " (saved)"
        if line.reached:
            cells[marked] = Markdown(f"**{escape_markdown(cells[marked], within=True)}**")
    notes = [
        f"- {escape_markdown(line.method)}: {escape_markdown(line.row['note'])}"
        for line, _ in lines
        if line.row.get("note")
    ]
    parts = [markdown_table(header, [cells for _, cells in lines]), *([""] + notes if notes else [])]
    return Markdown("\n".join(parts))


def score_table(scores: Mapping[str, Mapping], tasks: Sequence[str]) -> str:
    """Benchmark scores in Markdown: a row a task, accuracies in percent with standard errors, last label minus first.

    `scores` are `evaluation.harness_scores.Score`s by label and task.
    """
    labels = list(scores)
    header = ["task", "questions", "chance", *labels, *(["change"] if len(labels) > 1 else [])]
    body = []
    for task in tasks:
        first, last = scores[labels[0]][task], scores[labels[-1]][task]
        name = task if first.metric == "acc" else f"{task} ({first.metric})"
        cells = [name, f"{first.n}", MISSING if first.chance is None else f"{100 * first.chance:.1f} %"]
        cells += [_accuracy(scores[label][task]) for label in labels]
        if len(labels) > 1:
            known = None not in (last.accuracy, first.accuracy)
            cells.append(_in_unit(first, last.accuracy - first.accuracy, "+") if known else MISSING)
        body.append(cells)
    return markdown_table(header, body)


def _accuracy(score) -> str:
    if score.accuracy is None:
        return MISSING
    return plus_minus(_in_unit(score, score.accuracy), None if score.stderr is None else _in_unit(score, score.stderr))


def _in_unit(score, value: float, sign: str = "") -> str:
    share = score.metric.startswith(("acc", "exact_match"))
    return f"{100 * value:{sign}.1f} %" if share else f"{value:{sign}.4g}"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The vocabulary of rows forgotten by encoders (GLUE, SQuAD): scores, attacks, distances to a retrained model."""

from collections.abc import Mapping
from dataclasses import dataclass

from .base import Axis, Column, Vocabulary, number_column


NEAR = 5.0  # points that UA may differ from the retrained model's
NEAR_SHARE = 0.08  # that MIA may
CHOICES = ("gap", "unlearning")
TOLERANCE = 3.0  # points of TA that may be lost against the retrained model


@dataclass(frozen=True)
class GlueVocabulary(Vocabulary):
    """Some training rows forgotten: scores in percent, the share of forget rows that an attack calls members.

    Rows have `unlearning`, `remaining` and `testing` (UA, RA, TA: percent of the score named in `metric`; of SQuAD
    also `unlearning_exact` and so on, percent of exact matches), `membership` (MIA) and beside them `distance` and
    `total_variation` to the retrained model, `gap`, and the retrained model's own numbers as `retrained_unlearning`
    and so on; those of a table also `population_auc` and `reference_auc`, each with `_interval` and `_tpr` (see
    `evaluation.membership`).

    Attributes:
        by: of `CHOICES`, by which the candidate of a line is chosen: "gap", the one with the least gap, those that
            reached the goal before others; or "unlearning", the one whose UA is nearest to the retrained model's, so
            that lines are compared at equal forgetting.
    """

    by: str = CHOICES[0]

    key = "membership"
    references = ("original", "retrained", "retrained again")
    compared = ("unlearning", "remaining", "testing", "membership")  # with the retrained model
    metrics = (*compared, "distance", "gap")
    cost_key = "gap"
    card_metrics = (
        ("unlearning", "score on the forget rows (%)", 1, "as retrained"),
        ("remaining", "score on the other training rows (%)", 1, "as retrained"),
        ("testing", "score on test rows (%)", 1, "as retrained"),
        ("membership", "share of forget rows that an attack calls members", 2, "as retrained"),
        ("distance", "distance of the forget rows' confidences from the retrained model's", 3, "as retrained again"),
        ("reference_auc", "AUC of the attack that knows a retrained model", 3, "0.5"),
    )
    captions = {
        "table": "UA, RA and TA: score in percent on the rows to forget, on rows that stay and on test rows. MIA: "
        "share of forget rows that a classifier of confidences calls members. Gap: mean of the differences to the "
        "retrained model in these four, in points. Distance: mean absolute difference of the forget rows' confidences "
        "to the retrained model's; a second retrained model shows the floor. AUC: of telling forget rows from test "
        "rows, by their confidence alone and by how it differs from the retrained model's, with 95 % intervals; 0.5 "
        "is chance.",
        "bold": f"UA within {NEAR:g} points of the retrained model, MIA within {NEAR_SHARE:g}, and at most "
        f"{TOLERANCE:g} points of TA lost against it",
        "curves": "UA, RA and TA are scores in percent on the rows to forget, on rows that stay and on test rows; the "
        "retrained model's values are the goal. Bars: standard deviations over seeds.",
        "pareto": "Distance to the retrained model on the forget rows against the scores on test rows and on those "
        "that stay",
    }

    def columns(self, rows):
        percent, share = lambda value: f"{value:.1f}", lambda value: f"{value:.2f}"
        metric = next((row["metric"] for row in rows if row.get("metric")), "score")
        sides = {"UA": "unlearning", "RA": "remaining", "TA": "testing"}
        columns = [
            number_column(f"{head} ({metric}, %)" if head == "UA" else f"{head} (%)", side, percent)
            for head, side in sides.items()
        ]
        if any(row.get("unlearning_exact") is not None for row in rows):
            columns += [number_column(f"{head}, exact (%)", f"{side}_exact", percent) for head, side in sides.items()]
        columns += [
            number_column("MIA", "membership", share),
            number_column("gap", "gap", percent),
            number_column("distance", "distance", lambda value: f"{value:.3f}"),
            number_column("AUC", "population_auc", share, suffix=interval_of("population_interval")),
        ]
        if any(row.get("reference_auc") is not None for row in rows):
            suffix = interval_of("reference_interval")
            columns.append(number_column("AUC beside retrained", "reference_auc", share, suffix=suffix))
        return [_alone(column) for column in columns] if len({row.get("seed") for row in rows}) > 1 else columns

    def axes(self):
        right = "\n(further right is better)"
        distance = "distance to the retrained model on the\nforget rows (lower is better)"
        return Axis(distance, lambda row, original: row.get("distance")), [
            Axis(f"TA: score on test rows, %{right}", lambda row, original: row.get("testing")),
            Axis(f"RA: score on rows that stay, %{right}", lambda row, original: row.get("remaining")),
        ]

    def curves(self):
        goal = "(the goal: as retrained)"
        return [
            Axis(f"UA: score on the forget rows, %\n{goal}", lambda row, original: row.get("unlearning")),
            Axis(f"RA: score on rows that stay, %\n{goal}", lambda row, original: row.get("remaining")),
            Axis(f"TA: score on test rows, %\n{goal}", lambda row, original: row.get("testing")),
            Axis("distance to the retrained model\n(lower is better)", lambda row, original: row.get("distance")),
        ]

    def choose(self, rows, original=None):
        if self.by == CHOICES[0]:
            return super().choose(rows, original)
        apart = lambda row: abs(row["unlearning"] - row["retrained_unlearning"])
        finite = [index for index, row in enumerate(rows) if row.get("gap") is not None]
        return min(finite, key=lambda index: (apart(rows[index]), rows[index]["gap"]), default=0)

    def gap(self, row: Mapping) -> float:
        """Mean absolute difference to the retrained model in UA, RA, TA and MIA, in points (Liu et al. 2024)."""
        scales = {"membership": 100}
        apart = (abs(row[key] - row[f"retrained_{key}"]) * scales.get(key, 1) for key in self.compared)
        return sum(apart) / len(self.compared)

    def reached(self, row, original=None):
        if row.get("gap") is None:
            return False
        return (
            abs(row["unlearning"] - row["retrained_unlearning"]) <= NEAR
            and round(abs(row["membership"] - row["retrained_membership"]), 6) <= NEAR_SHARE
            and row["testing"] >= row["retrained_testing"] - TOLERANCE
        )

    def forgotten(self, row, original=None):
        return None if row["gap"] is None else -row["gap"]

    def summarise(self, rows):
        original, passing, missed = self.outcome(rows)
        retrained = next(line.row for line in self.lines(rows) if line.method == self.references[1])
        told = lambda row: (
            f"UA {row['unlearning']:.1f} %, RA {row['remaining']:.1f} %, TA {row['testing']:.1f} %, MIA "
            f"{row['membership']:.2f}"
        )
        sentences = [
            f"The original model has {told(original)}; retrained without the rows it has {told(retrained)}, which is "
            "the goal."
        ]
        if passing:
            best = passing[0]
            sentences.append(f"{best['method']} comes nearest: {told(best)}{_speed(best, retrained)}.")
            if others := [f"{row['method']} (gap {row['gap']:.1f})" for row in passing[1:]]:
                sentences.append(f"It is also reached by {'; '.join(others)}.")
        else:
            sentences.append("No method reached it.")
        if missed:
            short = "; ".join(
                f"{row['method']} (gap {row['gap']:.1f})" for row in missed if row.get("gap") is not None
            )
            sentences.append(f"It is not reached by {short}." if passing else f"Gaps: {short}.")
        return " ".join(sentences)


def interval_of(key: str):
    """The suffix of a column: a run's interval in brackets."""

    def suffix(row: Mapping) -> str:
        return f" [{row[key][0]:.2f}, {row[key][1]:.2f}]" if row.get(key) else ""

    return suffix


def _alone(column: Column) -> Column:
    """Without the interval of one run, where several are averaged."""
    return Column(column.head, column.value, column.show)


def _speed(row: Mapping, retrained: Mapping) -> str:
    """How long it took beside retraining, where both are known."""
    if not row.get("seconds") or not retrained.get("seconds"):
        return ""
    return f", in {row['seconds']:.0f} s against {retrained['seconds']:.0f} s of retraining"

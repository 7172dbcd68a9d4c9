# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the rows of a comparison mean: their columns and axes, when a row has reached the goal, and which one is best."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from .formats import MISSING, format_number, format_p, format_percent
from .plots import LOST, REACHED, Axis, forget_quality_scale, kept_scale, kl_scale, lost_scale, plain_scale


REFERENCES = ("original", "retrained")
POINTS = 3.0  # percentage points of general accuracy that a row may lose


@dataclass(frozen=True)
class Column:
    """One column of the table: its head, and the text of a cell from (row, row of the original model or None)."""

    head: str
    text: Callable[[Mapping, Mapping | None], str]


class Results(abc.ABC):
    """One kind of rows. `rows` of a table have the original model's among them, `candidates` are any rows.

    Attributes:
        metrics: keys that every candidate has; None where one diverged.
        cost_key: the key of a row's cost elsewhere, in nats per token.
        mark: index of the column that is emphasised in rows that reached the goal.
        captions: texts of the report: "table" (below it), "bold" (what bold says), "pareto" (what the frontier shows),
            "kl" (what the distribution shows).
    """

    metrics: ClassVar[tuple[str, ...]]
    cost_key: ClassVar[str]
    mark: ClassVar[int] = 1
    captions: ClassVar[Mapping[str, str]]

    @abc.abstractmethod
    def columns(self, rows: Sequence[Mapping]) -> list[Column]:
        """Between the method's name and its time and memory."""

    @abc.abstractmethod
    def axes(self) -> tuple[Axis, list[Axis]]:
        """How much was forgotten (y), and the panels that it is drawn against."""

    @abc.abstractmethod
    def reached(self, row: Mapping) -> bool:
        """Whether the row reached the goal."""

    @abc.abstractmethod
    def forgotten(self, row: Mapping) -> float | tuple[float, ...] | None:
        """How much the row has forgotten, in an order where greater is better; None when it was not measured."""

    @abc.abstractmethod
    def summarise(self, rows: Sequence[Mapping]) -> str:
        """What happened, in sentences, from the rows alone."""

    def choose(self, rows: Sequence[Mapping]) -> int:
        """Index of the row to show: least cost among those that reached the goal, else the one that forgot most."""
        passing = [index for index, row in enumerate(rows) if self.reached(row)]
        if passing:
            return min(passing, key=lambda index: rows[index][self.cost_key])
        finite = [index for index, row in enumerate(rows) if self.forgotten(row) is not None]
        if not finite:
            return 0
        return max(finite, key=lambda index: self.forgotten(rows[index]))


def results_of(rows: Sequence[Mapping]) -> Results:
    """The kind that rows of results.json are."""
    return TaskResults() if any("accuracy" in row for row in rows) else TofuResults()


def methods_of(rows: Sequence[Mapping]) -> list[Mapping]:
    return [row for row in rows if row["method"] not in REFERENCES]


# ---- TOFU ------------------------------------------------------------------------------------------------------------
class TofuResults(Results):
    """Truth ratios against a retrained model, probabilities of answers, KL on retained answers."""

    metrics = (
        *("forget_quality", "log10_forget_quality", "ks_statistic", "n", "model_utility"),
        *("forget_probability", "retain_probability", "retain_kl"),
    )
    cost_key = "retain_kl"
    captions = {
        "table": "Forget quality: p-value of a two-sample Kolmogorov-Smirnov test between the truth ratios of the unlearned "
        "and of the retrained model on the forget set; ✓ marks 0.05 or more: the test cannot tell them apart. Kept: "
        "retained-answer probability in percent of the original's. Retain KL: mean divergence from the original model per "
        "token of the retained answers.",
        "bold": "the Kolmogorov-Smirnov test cannot tell the model from the retrained one (p >= 0.05)",
        "pareto": "Forget quality of every method against what it kept of the retained answers",
        "kl": "Cumulative distribution of the KL divergence per retained token, one curve a method",
    }

    def columns(self, rows):
        def distance(row, original):
            ks, n = row.get("ks_statistic"), row.get("n")
            return MISSING if ks is None else f"{ks:.3f}" + (f" ({n})" if n is not None else "")

        number = lambda key: lambda row, original: format_number(row.get(key))
        return [
            Column("forget quality (p)", lambda row, original: format_p(row.get("forget_quality"))),
            Column("KS distance (n)", distance),
            Column("model utility", number("model_utility")),
            Column("forget prob.", number("forget_probability")),
            Column("retain prob.", number("retain_probability")),
            Column("kept", lambda row, original: format_percent(kept_percent(row, original))),
            Column("retain KL (nats/token)", kl_cell("retain_kl")),
        ]

    def axes(self):
        def log_p(row, original):
            p = row.get("forget_quality")
            return None if p is None else row.get("log10_forget_quality") or math.log10(max(p, 1e-300))

        quality = "forget quality: p-value against\nthe retrained model (higher is better)"
        kept = "retained probability kept, % of original\n(further right is better)"
        kl = "KL from the original, nats per retained token\n(further left is better)"
        # Utility of the reported settings alone: a search does not measure it, for it needs generations.
        return Axis(quality, log_p, forget_quality_scale), [
            Axis(kept, kept_percent, kept_scale),
            Axis(kl, lambda row, original: row.get("retain_kl"), kl_scale),
            Axis(
                "model utility\n(further right is better)",
                lambda row, original: row.get("model_utility"),
                plain_scale,
            ),
        ]

    def reached(self, row):
        """TOFU's line: truth ratios that the test cannot tell from the retrained model's at 5 %."""
        return row.get("forget_quality") is not None and row["forget_quality"] >= REACHED

    def forgotten(self, row):
        return row["log10_forget_quality"]

    def summarise(self, rows):
        original = next(row for row in rows if row["method"] == "original")
        passing = sorted(filter(self.reached, methods_of(rows)), key=lambda row: row["retain_kl"])
        opening = (
            f"{original['n']} rows were to be forgotten. The original model gives their answers a mean probability of "
            f"{original['forget_probability']:.0%}; its forget quality is {original['forget_quality']:.1e}."
        )
        if not passing:
            return f"{opening} No method reached a forget quality of 0.05."
        best = passing[0]
        kept = best["retain_probability"] / original["retain_probability"]
        sentences = [
            opening,
            f"{best['method']} reaches {best['forget_quality']:.2g} with the least change elsewhere: KL {best['retain_kl']:.3f} "
            f"nats per retained token, {kept:.1%} of the retained answers' probability kept.",
        ]
        if others := [f"{row['method']} (KL {row['retain_kl']:.3f})" for row in passing[1:]]:
            sentences.append(f"At a greater cost, 0.05 is also reached by {', '.join(others)}.")
        if missed := [row["method"] for row in methods_of(rows) if not self.reached(row)]:
            sentences.append(f"It is not reached by {', '.join(missed)}.")
        return " ".join(sentences)


def kept_percent(row: Mapping, original: Mapping | None) -> float | None:
    """Retained-answer probability in percent of the original model's."""
    before = original and original.get("retain_probability")
    after = row.get("retain_probability")
    return 100 * after / before if before and after is not None else None


# ---- multiple-choice tasks -------------------------------------------------------------------------------------------
class TaskResults(Results):
    """Accuracy on tasks to forget and on general tasks (WMDP, MMLU), KL on completions of unrelated instructions.

    A row's `accuracy`, `stderr` and `n` map task names to numbers; `lost` maps the tasks to forget to the share of the
    original's distance to chance that is gone; `general_loss` is in percentage points; `kl` in nats per token.
    """

    metrics = ("accuracy", "lost", "general_loss", "kl")
    cost_key = "kl"
    captions = {
        "table": "Accuracy in percent with its standard error. Lost: how much of the original's distance to chance is gone, "
        f"in the domain that lost least; ✓ marks rows with {LOST:.0%} or more in every domain that lost at most {POINTS:g} points "
        "of general accuracy. KL: mean divergence from the original model per token of completions that the original wrote "
        "to unrelated instructions, with its 95 % interval.",
        "bold": f"{LOST:.0%} or more of the distance to chance is gone in every domain, and at most {POINTS:g} points of general "
        "accuracy",
        "pareto": "Share of the distance to chance lost against general accuracy and KL divergence",
        "kl": "Cumulative distribution of the KL divergence per token of unrelated completions, one curve a method",
    }

    def columns(self, rows):
        tasks = list(dict.fromkeys(task for row in rows for task in row.get("accuracy") or ()))

        def accuracy(task):
            def text(row, original):
                value = (row.get("accuracy") or {}).get(task)
                error = (row.get("stderr") or {}).get(task)
                return MISSING if value is None else f"{100 * value:.1f}" + (f" ± {100 * error:.1f}" if error else "")

            return Column(f"{task} (%)", text)

        def lost(row, original):
            return format_percent(None if not row.get("lost") else 100 * min(row["lost"].values()), 0)

        def interval(row, original):
            low, high = row.get("kl_interval") or (None, None)
            return MISSING if low is None else f"{format_number(low, 4)} to {format_number(high, 4)}"

        return [
            Column("lost (least)", lost),
            *map(accuracy, tasks),
            Column("KL (nats/token)", kl_cell("kl")),
            Column("95 % interval", interval),
        ]

    def axes(self):
        def lost(row, original):
            return 100 * min(row["lost"].values()) if row.get("lost") else None

        def general(row, original):
            return None if row.get("general_loss") is None else -row["general_loss"]

        return Axis("distance to chance lost, % (the domain\nthat lost least; higher is better)", lost, lost_scale), [
            Axis("general accuracy, points from the original\n(further right is better)", general, plain_scale),
            Axis(
                "KL from the original, nats per unrelated token\n(further left is better)",
                lambda row, original: row.get("kl"),
                kl_scale,
            ),
        ]

    def reached(self, row):
        lost = row.get("lost")
        return bool(lost) and min(lost.values()) >= LOST and row["general_loss"] <= POINTS

    def forgotten(self, row):
        # Beyond the goal nothing more is asked for: of two candidates past it the one that cost less is better.
        return (min(*row["lost"].values(), LOST), -row["kl"]) if row["lost"] else None

    def summarise(self, rows):
        original = next(row for row in rows if row["method"] == "original")
        domains = list(methods_of(rows)[0]["lost"]) if methods_of(rows) else []
        before = ", ".join(f"{task} {original['accuracy'][task]:.1%}" for task in domains)
        passing = sorted(filter(self.reached, methods_of(rows)), key=lambda row: row["kl"])
        goal = f"the goal ({LOST:.0%} of the distance to chance gone in every domain, at most {POINTS:g} points of general accuracy)"
        opening = f"The original model answers {before} of the questions on what was to be forgotten."
        if not passing:
            return f"{opening} No method reached {goal}."
        best = passing[0]
        after = ", ".join(f"{task} {best['accuracy'][task]:.1%}" for task in domains)
        sentences = [
            opening,
            f"{best['method']} reaches {goal} with the least change elsewhere: {after}; general accuracy "
            f"{-best['general_loss']:+.1f} points, KL {format_number(best['kl'], 4)} nats per token of unrelated text.",
        ]
        if others := [f"{row['method']} (KL {format_number(row['kl'], 4)})" for row in passing[1:]]:
            sentences.append(f"At a greater cost it is also reached by {', '.join(others)}.")
        missed = [
            f"{row['method']} (lost {min(row['lost'].values()):.0%}, general {-row['general_loss']:+.1f}, KL {format_number(row['kl'], 4)})"
            for row in methods_of(rows)
            if not self.reached(row)
        ]
        if missed:
            sentences.append(f"It is not reached by {', '.join(missed)}.")
        return " ".join(sentences)


def kl_cell(key: str) -> Callable[[Mapping, Mapping | None], str]:
    return lambda row, original: format_number(row.get(key), 4 if (row.get(key) or 0) < 1 else 2)

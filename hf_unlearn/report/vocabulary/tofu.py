# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The vocabulary of TOFU: truth ratios against a retrained model, probabilities of answers, KL on retained answers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..formats import format_p, format_percent
from .base import KL_SCALE, Axis, Column, Vocabulary, kl_scale, mark_level, number_column, show_kl


REACHED = 0.05


class TofuVocabulary(Vocabulary):
    """Truth ratios against a retrained model, probabilities of answers, KL on retained answers."""

    key = "forget_quality"
    metrics = (
        *("forget_quality", "log10_forget_quality", "ks_statistic", "n", "model_utility"),
        *("forget_probability", "retain_probability", "retain_kl"),
    )
    token = "retained token"
    cost_key = "retain_kl"
    card_metrics = (
        ("forget_quality", "forget quality (p-value of the KS test)", None, "0.05 or more"),
        ("ks_statistic", "KS distance from the retrained model", 3, "lower"),
        ("forget_probability", "probability of the forgotten answers", 3, "as retrained"),
        ("retain_probability", "probability of the retained answers", 3, "as original"),
        ("model_utility", "model utility", 3, "as original"),
        ("retain_kl", "KL from the original on retained answers, nats per token", 4, "lower"),
    )
    captions = {
        "table": "Forget quality: p-value of a two-sample Kolmogorov-Smirnov test between the truth ratios of the "
        "unlearned and of the retrained model on the forget set. Kept: retained-answer probability in percent of the "
        "original's. Retain KL: mean divergence from the original model per token of the retained answers.",
        "bold": "the Kolmogorov-Smirnov test cannot tell the model from the retrained one (p >= 0.05)",
        "pareto": "Forget quality of every method against what it kept of the retained answers",
        "kl": "Cumulative distribution of the KL divergence per retained token, one curve a method",
    }

    def columns(self, rows):
        sample = lambda row: "" if row.get("n") is None else f" ({row['n']})"
        distance = lambda value: f"{value:.3f}"
        return [
            number_column("forget quality (p)", "forget_quality", format_p, spread=lambda value: f"{value:.2g}"),
            number_column("KS distance (n)", "ks_statistic", distance, suffix=sample),
            number_column("model utility", "model_utility"),
            number_column("forget prob.", "forget_probability"),
            number_column("retain prob.", "retain_probability"),
            Column("kept", kept_percent, format_percent),
            number_column("retain KL (nats/token)", "retain_kl", show_kl),
        ]

    def axes(self):
        def log_p(row, original):
            p = row.get("forget_quality")
            return None if p is None else row.get("log10_forget_quality") or math.log10(max(p, 1e-300))

        quality = "forget quality: p-value against the retrained\nmodel (scale: root of log p; higher is better)"
        kept = "retained probability kept, % of original\n(log scale away from 100; further right is better)"
        kl = f"KL from the original, nats per {self.token}\n({KL_SCALE}; further left is better)"
        # Utility of the reported settings alone: a search does not measure it, for it needs generations.
        return Axis(quality, log_p, forget_quality_scale), [
            Axis(kept, kept_percent, kept_scale),
            Axis(kl, lambda row, original: row.get("retain_kl"), kl_scale),
            Axis("model utility\n(further right is better)", lambda row, original: row.get("model_utility")),
        ]

    def reached(self, row, original=None):
        """TOFU's line: truth ratios that the test cannot tell from the retrained model's at 5 %."""
        return row.get("forget_quality") is not None and row["forget_quality"] >= REACHED

    def forgotten(self, row, original=None):
        return row["log10_forget_quality"]

    def summarise(self, rows):
        original, passing, missed = self.outcome(rows)
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
            f"{best['method']} reaches {best['forget_quality']:.2g} with the least change elsewhere: KL "
            f"{best['retain_kl']:.3f} nats per retained token, {kept:.1%} of the retained answers' probability kept.",
        ]
        if others := [f"{row['method']} at {row['retain_kl']:.3f} nats" for row in passing[1:]]:
            sentences.append(f"At a greater cost, 0.05 is also reached by {', '.join(others)}.")
        if missed:
            sentences.append(f"It is not reached by {', '.join(row['method'] for row in missed)}.")
        return " ".join(sentences)


def kept_percent(row: Mapping, original: Mapping | None) -> float | None:
    """Retained-answer probability in percent of the original model's."""
    before = original and original.get("retain_probability")
    after = row.get("retain_probability")
    return 100 * after / before if before and after is not None else None


def forget_quality_scale(ax, values: Sequence[float]):
    """For log10 of p-values."""
    # p runs from 1 to 1e-100: the square root of log10 p shows both ends, and keeps room around 0.05.
    root = lambda y: np.sign(y) * np.sqrt(np.abs(y))
    ax.set_yscale("function", functions=(root, lambda u: np.sign(u) * np.square(u)))
    lowest = min([*values, -2.5])
    ticks = [y for y in (0, -1, -2, -4, -8, -16, -32, -64, -128, -256) if y >= lowest * 1.15]
    # The best p is 1: room above it, so that no marker is cut.
    ax.set_ylim(lowest * 1.15 - 0.2, 0.02)
    ax.set_yticks(ticks, ["1" if y == 0 else "0.1" if y == -1 else "0.01" if y == -2 else f"1e{y}" for y in ticks])
    ax.minorticks_off()
    mark_level(ax, math.log10(REACHED), "0.05: indistinguishable above", below=True)


def kept_scale(ax, values: Sequence[float]):
    """For percent of the original, where around 100 matters most."""
    # Linear near 100 %, where good methods differ, logarithmic below, where bad ones collapse.
    ax.set_xscale(
        "function",
        functions=(
            lambda x: -np.sign(100 - x) * np.log1p(np.abs(100 - x) / 2),
            lambda u: 100 + np.sign(u) * 2 * np.expm1(np.abs(u)),
        ),
    )
    lowest, highest = min([*values, 98]), max([*values, 100])
    ticks = [x for x in (0, 50, 80, 90, 95, 98, 100, 102, 105, 110, 120, 150) if lowest - 2 <= x <= highest + 1]
    ax.set_xticks(ticks, [str(x) for x in ticks])
    ax.set_xlim(lowest - 0.15 * (100 - lowest) - 0.3, highest + 0.15 * (highest - 100) + 0.5)
    ax.minorticks_off()

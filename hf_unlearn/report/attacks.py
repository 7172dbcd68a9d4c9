# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The section of a report on fine-tuning attacks: what comes back of what was removed."""

from collections.abc import Mapping, Sequence

from .page import Section
from .plots import relearn_plot


def attack_section(
    rows: Sequence[Mapping], curves: Sequence[Mapping], chance: float | None = None, methods: Sequence[str] = ()
) -> Section:
    """The table of attacks, shares of what was lost that is back in brackets, and its picture of the first metric.

    Rows and curves are those of `evaluation.relearn.AttackTable`, of accuracies; `chance` is that of guessing,
    `methods` are all of the report, in its order, for their colours.
    """
    percent = lambda value: f"{100 * value:.1f}"
    back = lambda value, share: percent(value) + ("" if share is None else f" ({100 * share:.0f} % back)")
    header = ["method", "attack", "learning rate", "task", "original", "unlearned", "attacked"]
    header += ["attacked, update added again", "original, attacked", "original, attacked, then update"]
    body = [
        [
            *(row["method"], row["attack"], f"{row['learning_rate']:g}", row["metric"]),
            *(percent(row["original"]), percent(row["unlearned"])),
            back(row["relearned"], row["recovery"]),
            back(row["relearned_with_update"], row["recovery_with_update"]),
            percent(row["control"]),
            back(row["control_with_update"], row["control_recovery_with_update"]),
        ]
        for row in rows
    ]
    settings = curves[0]["settings"]
    return Section(
        "Does it come back? Relearning attacks",
        f"All weights are fine-tuned for {settings['steps']} steps of {settings['batch_size']} sequences "
        f"({settings['optimizer']}). Accuracy in percent; in brackets the share of what was lost that is back. The "
        "last columns are the paper's defence: the update is added again after the fine-tuning.",
        header=header,
        table=body,
        name="relearn.png",
        figure=relearn_plot(curves, chance, methods),
        alt="Accuracy during fine-tuning attacks, one panel an attack, one line a method",
    )

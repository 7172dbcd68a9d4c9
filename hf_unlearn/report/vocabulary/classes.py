# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The vocabulary of class forgetting: accuracies on D_r, D_f and the hold-out set, and epochs to relearn D_f."""

import math
from collections.abc import Mapping, Sequence

from ..formats import MISSING
from .base import SECONDS, Axis, Line, Vocabulary, number_column


FORGOTTEN = 1.0  # % of D_f that a model which forgot the class may still classify rightly
TOLERANCE = 3.0  # points of accuracy on D_r that it may lose
PROBE = "probe: "  # begins the method of a row of linear probing, which is no line of the table


class ClassVocabulary(Vocabulary):
    """One class forgotten: accuracies in percent, and the epochs until D_f is learnt again, None beyond the limit.

    Rows have `per_class` (images per class), `seed`, `retain`, `forget`, `holdout`, `relearning_epochs` and `seconds`;
    those of candidates `full_retain` too, the accuracy of the tuned model on D_r, which rows of a table take from
    their row "Full".
    """

    key = "per_class"
    references = ("Full", "Retrain")
    size_key, size_head = "per_class", "images per class"
    metrics = ("retain", "forget", "holdout", "relearning_epochs")
    card_metrics = (
        ("retain", "accuracy on D_r (%)", 1, "as original"),
        ("forget", "accuracy on D_f (%)", 1, "0"),
        ("holdout", "accuracy on the hold-out set of all classes (%)", 1, "as retrained"),
        ("relearning_epochs", "epochs to relearn D_f", 1, "as retrained"),
    )
    captions = {
        "table": "Accuracy in percent on D_r, the training images that stay, on D_f, those of the forgotten class, "
        "and on the hold-out set, which has all classes, the forgotten one too. Epochs to relearn: of training on D_f "
        "alone until its loss is low again.",
        "bold": f"at most {FORGOTTEN:g} % on D_f, and D_r within {TOLERANCE:g} points of Full",
        "pareto": "How much of the class was forgotten against the accuracy on what stays",
    }

    def columns(self, rows):
        percent = lambda value: f"{value:.1f}"
        beyond = lambda row: MISSING if row["method"] == self.references[0] else ">100"
        return [
            number_column("D_r (%)", "retain", percent),
            number_column("D_f (%)", "forget", percent),
            number_column("hold-out (%)", "holdout", percent),
            number_column("epochs to relearn D_f", "relearning_epochs", percent, missing=beyond),
        ]

    def costs(self):
        return [SECONDS]

    def axes(self):
        def forgotten(row, original):
            return None if row.get("forget") is None else 100 - row["forget"]

        right = "\n(further right is better)"
        return Axis("forgotten: 100 - accuracy on D_f, %\n(higher is better)", forgotten), [
            Axis(f"accuracy on D_r, %{right}", lambda row, original: row.get("retain")),
            Axis(f"accuracy on the hold-out set, %{right}", lambda row, original: row.get("holdout")),
        ]

    def shown(self, row):
        return not row["method"].startswith(PROBE)

    def reached(self, row, original=None):
        enough = self._enough(row, original)
        if None in (enough, row.get("forget"), row.get("retain")):
            return False
        return row["forget"] <= FORGOTTEN and row["retain"] >= enough

    def forgotten(self, row, original=None):
        if None in (row["forget"], row["retain"]):
            return None
        # Beyond what counts as forgotten, and as kept, nothing more is asked for.
        enough = self._enough(row, original)
        return -max(row["forget"], FORGOTTEN), row["retain"] if enough is None else min(row["retain"], enough)

    def _enough(self, row: Mapping, original: Mapping | None) -> float | None:
        """The accuracy on D_r that counts as kept; None where nobody knows the full model's."""
        full = row.get("full_retain", original and original["retain"])
        return None if full is None else full - TOLERANCE

    def alike(self, rows: Sequence[Mapping], original: Mapping | None = None) -> list[int]:
        """Indices of the rows that forgot and kept most: among them the epochs to relearn, and then D_r, decide."""
        scores = [self.forgotten(row, original) or (-math.inf, -math.inf) for row in rows]
        return [index for index, score in enumerate(scores) if score == max(scores)]

    def choose(self, rows, original=None):
        """Index of the row to show, by training rows alone and without the retrained model.

        At most `FORGOTTEN` % right on D_f counts as forgotten, and `TOLERANCE` points of D_r less than the tuned model
        as kept; of those alike in both the one that takes longest to relearn D_f, then the one that keeps most of D_r.
        Relearning is expensive: only the rows that are `alike` need its number.
        """

        def order(index):
            epochs = rows[index].get("relearning_epochs")
            retain = rows[index]["retain"]
            return math.inf if epochs is None else epochs, -math.inf if retain is None else retain

        return max(self.alike(rows, original), key=order)

    def summarise(self, rows):
        lines = self.lines(rows)
        sizes = list(dict.fromkeys(line.row[self.size_key] for line in lines))
        full = self.references[0]
        goal = f"The goal is at most {FORGOTTEN:g} % on D_f, with D_r within {TOLERANCE:g} points of {full}."
        return " ".join([goal, *(self._of_size(lines, size) for size in sizes)])

    def _of_size(self, lines: Sequence[Line], size: int) -> str:
        """Sentences on one number of images."""
        known = {line.method: line for line in lines if line.row[self.size_key] == size}
        tried = [line for name, line in known.items() if name not in self.references]
        # Labels hold commas: they are told apart by semicolons.
        names = lambda reached: "; ".join(line.method for line in tried if line.reached is reached)
        opening = f"With {size} {self.size_head}"
        if not names(True):
            return f"{opening} no method reached it."
        missed = f", and not by {names(False)}" if names(False) else ""
        sentence = f"{opening} it is reached by {names(True)}{missed}."
        retrained = known.get(self.references[1])
        if retrained is None or not (epochs := retrained.row.get("relearning_epochs")):
            return sentence
        back = []
        for line in (line for line in tried if line.reached):
            own = line.row.get("relearning_epochs")
            share = "not within the limit" if own is None else f"in {own:.1f}, {own / epochs:.2f} of that"
            back.append(f"after {line.method} {share}")
        return f"{sentence} The class comes back in {epochs:.1f} epochs after {retrained.method}; {'; '.join(back)}."

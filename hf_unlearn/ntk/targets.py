# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Targets of the linear model, made to look like the outputs that cross-entropy makes."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor, nn

from ..data.rows import sample_rows
from ..errors import InputError
from ..runtime.modules import evaluation_mode, model_inputs
from ..runtime.processes import Processes, share_of
from .grams import check_labels


logger = logging.getLogger(__name__)

# In logits. How far training takes an absent class down depends on its optimiser and steps. Chosen on CIFAR-10 between
# ResNet-20 with 100 images a class, which then relearns the class sooner than after retraining, and ResNet-32 with
# 500, which relearns it later.
ABSENT_MARGIN = 2.8
# Share of retain rows classified rightly, below which margins of all signs make the mean of them small.
FITTED = 0.9
# Their mean margin is known to a per cent: more would cost a forward pass over all rows at every request.
MARGIN_ROWS = 1000


@dataclass
class Targets:
    """Centred targets of one request: scale * (one-hot - 1/C) + shift.

    Training on all rows and retraining on those that stay differ in the classes that have none: cross-entropy pushes
    such a class down on every row and never up.
    """

    scale: float  # distance of the right class from the mean of the others
    everything: Tensor  # (C,) fp64, centred: the shift of training on all rows
    retained: Tensor  # likewise, of retraining

    def residuals(self, unit: Tensor, outputs: Tensor, retained: int | None = None) -> tuple[Tensor, Tensor]:
        """Residuals (n, C) of training on all rows, and those of the first `retained` (all by default) in retraining.

        `unit` (one-hot - 1/C) and `outputs` (at the origin) are (n, C) and centred.
        """
        plain = self.scale * unit - outputs
        return plain + self.everything, plain[:retained] + self.retained


def make_targets(
    settings,
    model: nn.Module,
    loader: Callable,
    sets: tuple[Dataset, Dataset, Dataset],
    processes: Processes,
    seed: int = 0,
) -> tuple[Targets, dict]:
    """From the tuned model and the labels; and what a report says of them.

    `settings` are a `FastNTK`, `sets` all retain rows, those of them that are taken, and the forget rows; `seed` picks
    the rows whose margin is measured.

    Raises:
        InputError: labels out of range, or a model that was never tuned on the rows.
    """
    everything, retain, forget = sets
    classes, scale, right = mean_margin(model, loader(sample_rows(retain, MARGIN_ROWS, seed)), processes)
    if settings.target_scale != "auto":
        scale = settings.target_scale
    elif settings.outputs == "probabilities":
        scale = 1.0
    elif right < FITTED and processes.rank == 0:
        logger.warning(
            f"the tuned model classifies {100 * right:.0f} % of the retain rows rightly: its mean margin, "
            f"{scale:.3g}, says little of how far logits may be off; try a larger target_scale on training rows"
        )
    margin = settings.absent_margin
    if margin == "auto":
        plain = settings.target_scale != "auto" or settings.outputs == "probabilities"
        margin = 0.0 if plain else ABSENT_MARGIN
    device = next(model.parameters()).device
    counts = [_counts(classes, rows) for rows in (everything, forget)]
    absent = [(count == 0).to(device) for count in (counts[0] + counts[1], counts[0])]
    shifts = [centred(-margin * mask[None])[0] for mask in absent]
    report = {"classes": classes, "target_scale": scale, "absent_margin": margin}
    return Targets(scale, *shifts), report | {"absent_classes": absent[1].nonzero()[:, 0].tolist()}


def _counts(classes: int, rows: Dataset) -> Tensor:
    """(C,) fp64: rows of each class."""
    return torch.bincount(check_labels(torch.as_tensor(rows["labels"][:]), classes), minlength=classes).double()


def centred(z: Tensor) -> Tensor:
    """(n, C) fp64, without the mean over classes."""
    z = z.double()
    return z - z.mean(1, keepdim=True)


@torch.no_grad()
def mean_margin(model: nn.Module, batches: Iterable[Mapping], processes: Processes) -> tuple[int, float, float]:
    """(C, mean over samples of z_y - mean of the other logits, share with z_y the largest) of the tuned model.

    Raises:
        InputError: the margin is not above 0, or labels are out of range.
    """
    device = next(model.parameters()).device
    sums = torch.zeros(3, dtype=torch.float64, device=device)

    def sum_up() -> int:
        classes = 0
        for batch in share_of(batches, processes):
            outputs = model(**model_inputs(model, batch))
            logits = (outputs if isinstance(outputs, Tensor) else outputs.logits).double()
            classes = logits.shape[1]
            right = logits.gather(1, check_labels(batch["labels"].to(device), classes)[:, None])[:, 0]
            margins = right - (logits.sum(1) - right) / (classes - 1)
            hits = (right >= logits.amax(1)).sum()
            sums.add_(torch.stack([margins.sum(), hits, margins.new_tensor(len(margins))]))
        return classes

    with evaluation_mode(model):
        classes = max(processes.share(sum_up))
    processes.add(sums)
    margin, hits = (sums[:2] / sums[2]).tolist()
    if not margin > 0:
        raise InputError(
            f"the model gives retain rows a mean margin of {margin:.3g}: it was never tuned on them; tune it first"
        )
    return classes, margin, hits

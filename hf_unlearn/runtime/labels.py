# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Labels of a dataloader's dict: classes, values, tokens and the ends of spans, and the rows that have one to predict.

One reading for all that measures a model row by row: the statistics of heads and filters, and the curvature.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..objectives import IGNORE, scored_labels


POSITIONS = ("start_positions", "end_positions")
NO_LABELS = (
    "the dataloader yields no labels, and no start_positions and end_positions: add a labels column (classes, "
    "numbers for a regression, or tokens with -100 where none is predicted)"
)


@dataclass
class Labelled:
    """A batch of B rows as it was read; all on the CPU.

    Attributes:
        labels: (B,) classes or values, (B, T) tokens, or (B, 2, 1) the ends of spans, as `objectives` takes them; -100
            where nothing is predicted.
        mask: (B, T), the real tokens; ones, (B, T) or (B,), where the batch does not say.
        real: (B,), rows with a real token.
        kept: (B,), those of them that have something to predict.
    """

    labels: Tensor
    mask: Tensor
    real: Tensor
    kept: Tensor

    def take(self, batch: Mapping, device: torch.device) -> dict:
        """What the model takes of the kept rows, on its device."""
        size, every = len(self.kept), bool(self.kept.all())

        def part(value):
            if not isinstance(value, Tensor):
                return value
            rows = value.shape[:1] == (size,) and not every
            return (value[self.kept.to(value.device)] if rows else value).to(device)

        return {name: part(value) for name, value in batch.items() if name not in ("labels", *POSITIONS)}


def find_labels(batch: Mapping) -> Tensor | None:
    """The labels of a dataloader's dict, those of spans (B, 2, 1) also from `start_positions` and `end_positions`."""
    labels = batch.get("labels")
    if isinstance(labels, Tensor):
        return labels
    places = [batch[name] for name in POSITIONS if isinstance(batch.get(name), Tensor)]
    return torch.stack([place.reshape(-1) for place in places], 1)[:, :, None] if len(places) == 2 else None


def read_labels(batch: Mapping, causal: bool) -> Labelled:
    """Read a dataloader's dict.

    Labels of tokens (B, T) count where a real token predicts a real one (shifted for causal models as transformers
    does), the end of a span where it is a real token of its row: then padding changes nothing.

    Raises:
        InputError: no labels; a label that is no finite number; an attention mask that is not (B, T).
    """
    labels, mask = find_labels(batch), batch.get("attention_mask")
    if labels is None:
        raise InputError(NO_LABELS)
    labels, size = labels.cpu(), len(labels)
    if isinstance(mask, Tensor) and mask.dim() != 2:
        raise InputError(f"attention_mask must be of shape (batch, tokens), not {tuple(mask.shape)}")
    if labels.is_floating_point() and not bool(labels.isfinite().all()):
        raise InputError("a label of the data is no finite number: leave rows without labels out")
    if isinstance(mask, Tensor):
        mask = mask.cpu().bool()
        if labels.dim() == 2 and labels.shape == mask.shape:
            labels = scored_labels(labels, mask) if causal else labels.masked_fill(~mask, IGNORE)
    else:
        mask = torch.ones(labels.shape if labels.dim() == 2 else (size,), dtype=torch.bool)
    if labels.dim() == 3:
        labels = _at_real_tokens(labels, batch, mask)
    elif labels.dim() == 2 and labels.shape[1] == 1 and not causal and labels.shape != mask.shape:
        labels = labels.reshape(-1)  # one label a row
    predicted = labels[:, 1:] if labels.dim() == 2 and causal else labels
    real = mask.reshape(size, -1).any(1)
    return Labelled(labels, mask, real, real & predicted.reshape(size, -1).ne(IGNORE).any(1))


def _at_real_tokens(labels: Tensor, batch: Mapping, mask: Tensor) -> Tensor:
    """Ends of spans, -100 where they are no real token of the row."""
    if mask.dim() == 1 and isinstance(batch.get("input_ids"), Tensor):
        mask = torch.ones(batch["input_ids"].shape, dtype=torch.bool)
    if mask.dim() == 1:
        return labels
    places = labels.flatten(1)
    inside = (places >= 0) & (places < mask.shape[1])
    real = inside & mask.gather(1, places.clamp(0, mask.shape[1] - 1))
    return labels.masked_fill(~real.view_as(labels), IGNORE)


def is_regression(outputs: Tensor) -> bool:
    """Whether outputs are one value a row, (B, 1)."""
    return outputs.dim() == 2 and outputs.shape[1] == 1


def check_classes(labels: Tensor, classes: int):
    """Refuse labels that are no classes of the model.

    Raises:
        InputError: values, or a class that the model does not have; -100 may stand.
    """
    if labels.is_floating_point():
        raise InputError(
            f"labels are values and the model has {classes} classes: give classes, or load it with num_labels=1 for a "
            "regression"
        )
    known = labels[labels != IGNORE]
    if len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes:
        raise InputError(
            f"a label of the data is {int(known.max() if known.max() >= classes else known.min())}, which is none of "
            f"the model's {classes} classes: check the label column"
        )

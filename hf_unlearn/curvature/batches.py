# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a batch that carry curvature: padding, last tokens and ignored labels are removed once per batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..objectives import IGNORE
from ..runtime.labels import read_labels
from ..runtime.limits import check_tokens


@dataclass
class Batch:
    """A batch without the samples that predict nothing, and the rows of it that count."""

    inputs: dict  # what the model takes, labels removed
    sequences: list[int]  # for each of the B samples its place in the whole dataset; seeds its label draws
    shape: tuple[int, ...]  # (B, T), or (B,) where there is no token grid
    index: Tensor | None  # flat rows of the (B, T) grid that enter the factors, in order; None for all rows
    lengths: list[int]  # rows of each sample in `index`
    fronts: list[int]  # padding in front of each sample
    padded: bool  # whether the grid has padding
    predicted: Tensor  # flat rows of the outputs (grid or samples) that a label is compared with, in order
    counts: list[int]  # predicted rows of each sample
    labels: Tensor  # the label of each predicted row: a class, or the value of a regression
    label_shape: tuple[int, ...]  # (B, T), (B,) or (B, 2, 1), which the outputs must have too

    def rows(self, name: str, tensor: Tensor, in_products: bool = False) -> tuple[Tensor, list[int]]:
        """The rows (n, d) of an activation or its gradient that count, sample after sample, and n for each sample.

        Gathering costs the same copy that zeroing would, makes every later product smaller, and leaves out whatever
        the model computes at padding (NaN in a fully masked row). With `in_products` the rows only enter sums of
        g a^T, to which a last token adds nothing (its g is 0): a batch without padding then gives all rows, uncopied.

        Raises:
            InputError: the tensor does not have one row per token (routed experts).
        """
        flat, samples = tensor.detach().reshape(-1, tensor.shape[-1]), len(self.sequences)
        if self.index is not None and len(flat) == self.shape.numel() and (self.padded or not in_products):
            return flat.index_select(0, self.index.to(flat.device)), self.lengths
        if len(flat) % samples == 0 and (self.index is None or len(flat) in (samples, self.shape.numel())):
            return flat, [len(flat) // samples] * samples
        raise InputError(
            f"{name}: its module sees {len(flat)} rows for a batch of shape {tuple(self.shape)}, so rows cannot be "
            "told apart as tokens; leave it out of target_modules"
        )

    def sample(self) -> dict:
        """Inputs of the first sequence, at most 8 of its real tokens: enough to see how a model is wired."""
        tokens = self.index[: min(8, self.lengths[0])] if self.index is not None and self.lengths[0] else None
        one = {}
        for key, value in self.inputs.items():
            if isinstance(value, Tensor) and tokens is not None and value.shape[:2] == self.shape:
                value = value[:1, tokens]
            elif isinstance(value, Tensor) and value.shape[:1] == self.shape[:1]:
                value = value[:1]
            one[key] = value
        return one


def read_batch(batch: Mapping, first: int, causal: bool, device: torch.device) -> Batch | None:
    """Read a dataloader's dict, whose first sample is the `first` of the data; None when no label in it is predicted.

    For causal models `labels` (B, T) are shifted as transformers does (position t predicts label t + 1); the rows that
    enter the factors are the real tokens (`attention_mask`) but each sequence's last, which reaches no label. A label
    at padding, or predicted from padding, is ignored: then left and right padding mean the same. Otherwise labels are
    (B,) for classifiers and regressions, (B, T) unshifted, or (B, 2, 1) for the ends of spans, and all real positions
    enter.

    Raises:
        InputError: as `runtime.labels.read_labels`.
    """
    found = read_labels(batch, causal)
    kept, labels, mask = found.kept, found.labels, found.mask
    if not bool(kept.any()):
        return None
    predicted, rows = labels != IGNORE, mask
    if labels.dim() == 2 and causal:
        predicted = torch.zeros_like(labels, dtype=torch.bool)
        predicted[:, :-1] = labels[:, 1:] != IGNORE
        labels = torch.roll(labels, -1, dims=1)
        # A real token is the last one of its sequence when no real token follows.
        following = mask.flip(1).cumsum(1).flip(1) - mask.long()
        rows = mask & (following > 0)
    inputs = found.take(batch, device)
    if causal and labels.dim() == 2:
        inputs["use_cache"] = False
    predicted, labels, rows, mask = predicted[kept], labels[kept], rows[kept], mask[kept]
    grid = rows.dim() == 2
    return Batch(
        inputs=inputs,
        sequences=[first + place for place in kept.nonzero().flatten().tolist()],
        shape=rows.shape,
        index=rows.flatten().nonzero().flatten().to(device) if grid else None,
        lengths=rows.sum(1).tolist() if grid else [1] * len(rows),
        fronts=mask.long().argmax(1).tolist() if grid else [0] * len(rows),
        padded=not bool(mask.all()),
        predicted=predicted.flatten().nonzero().flatten().to(device),
        counts=predicted.reshape(len(rows), -1).sum(1).tolist(),
        labels=labels[predicted].to(device),
        label_shape=predicted.shape,
    )


def check_readable(model: torch.nn.Module, batch: Batch):
    """Refuse token ids and lengths that the model does not have.

    Raises:
        InputError: as `runtime.limits.check_tokens`.
    """
    ids = batch.inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.dim() == 2:
        check_tokens(model, ids.shape[1], int(ids.max()), "the data of the curvature")

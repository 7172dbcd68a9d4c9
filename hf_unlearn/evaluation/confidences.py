# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Confidences of an encoder: how likely it holds the label of each row, from one pass over rows of like lengths."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from ..data.collators import CausalCollator
from ..errors import InputError, NumericalError
from ..objectives import cross_entropy, logits_of
from ..runtime.modules import evaluation_mode, model_inputs


BATCH = 64  # rows in a forward pass


@dataclass(frozen=True)
class RowOutputs:
    """What a model says of N rows with one label each, in their order.

    The confidence of a row is the probability of its label. Of a regression, whose output stands for a normal
    distribution of variance 1, it is the density of the label relative to the highest, exp(-(output - label)^2 / 2):
    1 where the output is the label.
    """

    outputs: np.ndarray  # (N, C) logits, or (N, 1) values of a regression
    labels: np.ndarray  # (N,) classes, or values
    log_confidences: np.ndarray  # (N,) natural logarithms, at most 0

    @property
    def confidences(self) -> np.ndarray:
        """(N,) in [0, 1]."""
        return np.exp(self.log_confidences)

    @property
    def is_regression(self) -> bool:
        return self.labels.dtype.kind == "f"

    @property
    def predictions(self) -> np.ndarray:
        """(N,) classes, the first of equals, or values."""
        return self.outputs[:, 0] if self.is_regression else self.outputs.argmax(1)

    @property
    def probabilities(self) -> np.ndarray:
        """(N, C) of classes."""
        exponentials = np.exp(self.outputs - self.outputs.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)


def row_outputs(model, rows: Dataset, padding: int, batch_size: int = BATCH) -> RowOutputs:
    """What a classifier or a regression says of tokenised rows (`labels` one a row).

    Args:
        padding: the id that fills short rows.

    Raises:
        InputError: labels that are not one a row.
        NumericalError: outputs that are not finite.
    """
    if not isinstance(rows["labels"][0], int | float):
        raise InputError("these rows have no class or value each as labels: tokenise them with their task")
    outputs, losses = [None] * len(rows), np.empty(len(rows))
    for places, logits, labels in encoder_outputs(model, rows, padding, batch_size):
        losses[places] = cross_entropy(logits, labels).numpy()
        for place, output in zip(places, logits.numpy(), strict=True):
            outputs[place] = output
    return RowOutputs(np.stack(outputs), np.asarray(rows["labels"]), -losses)


def encoder_outputs(model, rows: Dataset, padding: int, batch_size: int = BATCH) -> Iterator[tuple]:
    """Yields (places of rows, logits as `objectives.logits_of`, labels) of every batch, shortest rows first.

    Logits are fp64 on the CPU: of a row that is known by heart the confidence differs from 1 by less than fp32 tells.

    Raises:
        NumericalError: outputs that are not finite.
    """
    collate = CausalCollator(padding)
    order = np.argsort([len(ids) for ids in rows["input_ids"]], kind="stable").tolist()
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = collate(rows.select(places).to_list())
            logits = logits_of(model(**model_inputs(model, batch)), batch["attention_mask"].to(model.device))
            if not torch.isfinite(logits).all():
                raise NumericalError("the model gives logits that are not finite: it diverged; use a smaller step")
            labels = batch["labels"]
            yield places, logits.cpu().double(), labels.double() if labels.is_floating_point() else labels

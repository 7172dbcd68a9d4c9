# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""KL divergence from the original model where outputs are few: classes, a regression, the two ends of a span."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ..errors import InputError, NumericalError
from ..objectives import cross_entropy, kl_divergence, logits_of
from ..runtime.modules import evaluation_mode, model_inputs


class SampleKLResult(NamedTuple):
    """Means over predictions: one a row of a classifier or a regression, two a row of a span."""

    mean: float  # KL(original || model), nats
    nll: float  # of the labels, under the model
    reference_nll: float  # under the original
    predictions: int


class SampleKL:
    """Measures KL(original || model) on labelled rows, as `TokenKL` does for tokens.

    A regression counts as a normal distribution of variance 1 about its output. What the original says is remembered
    on the CPU, so it may be changed in place afterwards; a model against itself gives exactly 0.

    Args:
        reference_model: the original model.
        dataloader (`Iterable`): dicts of what the model takes, and `labels` as in `objectives`. Kept on the CPU.

    Raises:
        InputError: no label in the data.
        NumericalError: logits are not finite.
    """

    cached = True

    def __init__(self, reference_model, dataloader: Iterable):
        self.batches = [{name: value.cpu() for name, value in batch.items()} for batch in dataloader]
        self._reference = list(self._logits(reference_model))
        losses = [cross_entropy(logits, batch["labels"]) for logits, batch in zip(self._reference, self.batches)]
        if not sum(map(len, losses)):
            raise InputError("no prediction to measure KL on: the data is empty, or all of its labels are -100")
        self._loss = torch.cat(losses).mean().item()

    def __call__(self, model) -> SampleKLResult:
        divergences, losses = [], []
        for reference, logits, batch in zip(self._reference, self._logits(model), self.batches, strict=True):
            divergences.append(kl_divergence(logits, reference, batch["labels"]))
            losses.append(cross_entropy(logits, batch["labels"]))
        found, losses = torch.cat(divergences), torch.cat(losses)
        return SampleKLResult(found.mean().item(), losses.mean().item(), self._loss, len(found))

    @torch.no_grad()
    def _logits(self, model):
        with evaluation_mode(model):
            for batch in self.batches:
                inputs = model_inputs(model, batch)
                logits = logits_of(model(**inputs), inputs.get("attention_mask")).cpu().double()
                if not torch.isfinite(logits).all():
                    raise NumericalError("the model's logits are not finite: it diverged; use a smaller step")
                yield logits

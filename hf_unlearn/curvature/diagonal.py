# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Diagonal Fisher: squares of per-sequence gradients."""

from torch import Tensor

from .base import Curvature
from .sums import SquareSums


class Diagonal(Curvature):
    """diag(G) = (1 / N) sum over sequences of the squared gradient of the sequence, N predicted tokens.

    The squares are of per-sequence (per-sample) gradients; the square of a batch gradient would be another thing.
    """

    kind = "diagonal"

    passes = ("diagonal",)

    def make_sums(self, description, targets, leaders):
        return SquareSums(targets)

    def _eigenvalues(self, name: str) -> Tensor:
        return self.tensors[f"eigenvalues.{name}"]

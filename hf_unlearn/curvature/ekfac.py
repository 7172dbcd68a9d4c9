# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""EK-FAC: the bases of K-FAC with eigenvalues measured in them."""

from torch import Tensor

from .base import Curvature
from .kfac import KFAC
from .sums import SquareSums


class EKFAC(KFAC):
    """G = (Q_S (x) Q_A) diag(L) (Q_S (x) Q_A)^T, L = (1 / N) sum over sequences of (Q_S^T D Q_A)^2.

    D is the gradient (d_out, d_in) of one sequence, so L is the exact diagonal of the per-sequence Fisher in the
    eigenbasis (George et al. 2018, arXiv 1806.03884). A second pass over the same data draws the same labels.
    """

    kind = "ekfac"

    passes = ("factors", "correction")

    def make_sums(self, description, targets, leaders):
        if description == "factors":
            return super().make_sums(description, targets, leaders)
        return SquareSums(targets, {name: self._bases(name) for name in targets})

    def take(self, sums, tokens, show):
        # Squares in the eigenbasis are eigenvalues as they are.
        (Curvature if isinstance(sums, SquareSums) else KFAC).take(self, sums, tokens, show)

    def _eigenvalues(self, name: str) -> Tensor:
        return self.tensors[f"eigenvalues.{name}"]

    def _largest(self, name: str) -> Tensor:
        return self._eigenvalues(name).max()

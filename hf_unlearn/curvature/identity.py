# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""G = I: natural gradient becomes plain gradient."""

import torch
from torch import Tensor

from .base import Curvature
from .targets import factor_dtype


class Identity(Curvature):
    """The identity over the targets. Fitting reads no data; it fixes which weights are meant."""

    kind = "identity"

    def fill(self, targets):
        self.tensors = {
            f"eigenvalues.{name}": torch.ones((), dtype=factor_dtype(module.weight), device=module.weight.device)
            for name, module in targets.items()
        }

    def _eigenvalues(self, name: str) -> Tensor:
        return self.tensors[f"eigenvalues.{name}"]

    def make_sums(self, description, targets, leaders):
        raise TypeError("the identity is not measured")

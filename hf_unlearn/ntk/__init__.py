# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Neural tangent kernels over a few parameters: Jacobians, Grams, and the closed-form update."""

from .grams import Gram, measure_gram
from .jacobians import Jacobians
from .solvers import ntk_update


__all__ = ["Gram", "Jacobians", "measure_gram", "ntk_update"]

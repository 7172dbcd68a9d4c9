# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Neural tangent kernels over a few parameters: Jacobians, Grams, and the closed-form update."""

from .jacobians import Jacobians
from .solvers import ntk_update


__all__ = ["Jacobians", "ntk_update"]

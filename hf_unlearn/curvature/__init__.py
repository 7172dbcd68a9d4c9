# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature of a model's loss: identity, diagonal, K-FAC and EK-FAC Fisher matrices of linear layers."""

from .artifact import KINDS
from .base import Curvature
from .costs import Plan, plan
from .kinds import EKFAC, KFAC, Diagonal, Identity, make_curvature
from .targets import select_targets


__all__ = [
    "KINDS", "Curvature", "Diagonal", "EKFAC", "Identity", "KFAC", "Plan", "make_curvature", "plan", "select_targets"
]  # fmt: skip

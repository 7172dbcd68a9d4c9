# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature of a model's loss: identity, diagonal, K-FAC and EK-FAC Fisher matrices of linear layers."""

from ..errors import InputError
from .base import Curvature
from .diagonal import Diagonal
from .ekfac import EKFAC
from .identity import Identity
from .kfac import KFAC
from .plan import Plan, plan
from .targets import select_targets


KINDS = {kind.kind: kind for kind in (EKFAC, KFAC, Diagonal, Identity)}

__all__ = [
    "KINDS", "Curvature", "Diagonal", "EKFAC", "Identity", "KFAC", "Plan", "make_curvature", "plan", "select_targets"
]  # fmt: skip


def make_curvature(kind: str | Curvature) -> Curvature:
    """A new curvature of a kind ("ekfac", "kfac", "diagonal", "identity"), or the one that is given."""
    if isinstance(kind, Curvature):
        return kind
    if kind not in KINDS:
        raise InputError(
            f"curvature must be one of {', '.join(KINDS)}, a fitted Curvature, or the folder or repository of one, not {kind!r}"
        )
    return KINDS[kind]()

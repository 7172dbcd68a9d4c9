# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Heads and filters of transformers: which matter to a request, and masks that let an update change these alone."""

from .heads import Filters, Heads, Layout, Structures, find_structures
from .mask import StructureMask
from .search import IMPORTANCES, choose_mask
from .statistics import MaskGradients, MaskStatistics, mask_statistics, summed_gradients
from .wanda import refine


__all__ = [
    "Filters", "Heads", "IMPORTANCES", "Layout", "MaskGradients", "MaskStatistics", "StructureMask", "Structures",
    "choose_mask", "find_structures", "mask_statistics", "refine", "summed_gradients",
]  # fmt: skip

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Updates of weights: one in memory, one on disk, and its transfer onto a checkpoint."""

from .reader import describe
from .streaming import transfer
from .update import SAVED_DTYPE, UpdateDelta, delta_config


__all__ = ["SAVED_DTYPE", "UpdateDelta", "delta_config", "describe", "transfer"]

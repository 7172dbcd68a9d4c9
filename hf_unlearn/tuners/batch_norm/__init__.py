# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tuning of the affine parameters of batch normalisation, and nothing else."""

from .config import BatchNormTuningConfig
from .layer import BatchNormTuningLayer
from .model import BatchNormTuningModel, export_as_ln_tuning


__all__ = ["BatchNormTuningConfig", "BatchNormTuningLayer", "BatchNormTuningModel", "export_as_ln_tuning"]

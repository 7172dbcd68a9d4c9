# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Machine unlearning for Hugging Face models."""

import importlib

from .peft_types import add_types_with_peft
from .version import __version__


# Names are loaded on first use: `import hf_unlearn` stays cheap though the trainer brings transformers with it.
_EXPORTS = {
    "UnlearnTrainer": "trainer.trainer",
    "UnlearnConfig": "trainer.config",
    "UpdateDelta": "deltas",
    "KFade": "methods.kfade",
    "FirstOrder": "methods.first_order",
    "FastNTK": "methods.fast_ntk",
    "SPEUnlearn": "methods.spe",
    "BatchNormTuningConfig": "tuners",
    "KeyValuePromptConfig": "tuners",
    "BorderPromptConfig": "tuners",
}

__all__ = ["__version__", *_EXPORTS]

add_types_with_peft()


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__():
    return sorted(__all__)

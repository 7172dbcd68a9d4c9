# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts appended to the keys and values of every attention block."""

from .config import KeyValuePromptConfig
from .layer import KeyValuePromptLayer
from .model import KeyValuePromptModel


__all__ = ["KeyValuePromptConfig", "KeyValuePromptLayer", "KeyValuePromptModel"]

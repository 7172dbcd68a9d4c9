# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A learned border of pixels added to every image."""

from .config import BorderPromptConfig
from .layer import BorderPromptLayer
from .model import BorderPromptModel


__all__ = ["BorderPromptConfig", "BorderPromptLayer", "BorderPromptModel"]

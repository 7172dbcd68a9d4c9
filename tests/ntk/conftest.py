# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Images, and a model before and after tuning, for every test of this room."""

from tests.support.images import digits, full, start


__all__ = ["digits", "full", "start"]

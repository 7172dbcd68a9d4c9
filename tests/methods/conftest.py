# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Images, and a model before and after tuning, for the tests of Fast-NTK."""

from tests.support.images import digits, full, start


__all__ = ["digits", "full", "start"]

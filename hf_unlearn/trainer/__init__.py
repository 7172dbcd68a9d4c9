# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The trainer: one loop, one folder and one identity for every method."""

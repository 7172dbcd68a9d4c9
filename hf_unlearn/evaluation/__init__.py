# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a model still knows, what it leaks, and what an update broke: metrics, their logs and the report."""

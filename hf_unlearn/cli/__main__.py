# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_unlearn.cli`."""

import sys

from .main import main


if __name__ == "__main__":
    sys.exit(main())

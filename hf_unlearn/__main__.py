# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`python -m hf_unlearn`."""

import sys

from .cli.main import main


if __name__ == "__main__":
    sys.exit(main())

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Word lists and sentence templates of the invented data, as JSON: all made up, and none of it could harm anyone."""

import importlib.resources
import json


def read_words(name: str) -> dict:
    """The lists and templates in `<name>.json` beside this module."""
    return json.loads((importlib.resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8"))

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Word lists and sentence templates of the invented data, as JSON: all made up, and none of it could harm anyone."""

import importlib.resources
import json
import random
from collections.abc import Callable

from datasets import Dataset

from ...errors import InputError


def read_words(name: str) -> dict:
    """The lists and templates in `<name>.json` beside this module."""
    return json.loads((importlib.resources.files(__name__) / f"{name}.json").read_text(encoding="utf-8"))


def draw_rows(
    name: str,
    seed: int,
    draw: Callable[[random.Random, int], tuple[str, dict]],
    *,
    train: int,
    test: int,
    disagreement: float,
    against: str,
) -> tuple[Dataset, Dataset]:
    """(training rows, test rows), none twice.

    Args:
        draw: of a source of chance and the number of rows so far, what a row is known by, and the row.
        disagreement: the share of `against`, as messages call it.

    Raises:
        InputError: no rows, or a share outside [0, 0.5].
    """
    if min(train, test) < 2:
        raise InputError(f"{name} need two training rows and two test rows at least")
    if not 0 <= disagreement <= 0.5:
        raise InputError(f"disagreement={disagreement}: the share of {against} lies in [0, 0.5]")
    rng, found = random.Random(f"{name} {seed}"), {}
    while len(found) < train + test:
        key, row = draw(rng, len(found))
        found[key] = row
    rows = list(found.values())
    return Dataset.from_list(rows[:train]), Dataset.from_list(rows[train:])

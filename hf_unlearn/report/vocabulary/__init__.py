# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The meaning of the rows of a comparison: one class for every kind of rows, and which kind given rows are."""

from collections.abc import Mapping, Sequence

from .base import Vocabulary
from .classes import ClassVocabulary
from .glue import GlueVocabulary
from .tasks import TaskVocabulary
from .tofu import TofuVocabulary


# Rows that lack the key of every kind, as those of a run where all diverged, count as the first.
KINDS = (TofuVocabulary, TaskVocabulary, ClassVocabulary, GlueVocabulary)


def vocabulary_of(rows: Sequence[Mapping]) -> Vocabulary:
    """The vocabulary of rows, told by the key that one kind alone has."""
    return next((kind for kind in KINDS if any(kind.key in row for row in rows)), KINDS[0])()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The forget, retain and evaluation rows of a run, made ready and compared with each other."""

import logging
from collections.abc import Mapping

from ..data.preparing import Preparation
from ..data.rows import count_overlap


logger = logging.getLogger(__name__)


def prepare_sets(prepare: Preparation, forget, retain, evaluation, *, needs_retain: bool, evaluated: bool):
    """`(forget, retain, evaluation)`: what was given, ready for the model; retain and evaluation may be None.

    Args:
        forget, retain: rows, as [`Preparation`] takes them.
        evaluation: rows, or a dict of them by name; None stands for the forget and the retain rows where a run is
            `evaluated`.

    Raises:
        InputError: as [`Preparation`].
    """
    forget = prepare(forget, "forget")
    if retain is not None or needs_retain:
        retain = prepare(retain, "retain")
        if shared := count_overlap(forget, retain):
            logger.warning(
                f"{shared} of {len(forget)} forget rows are also retain rows: the retain set will hold the model to "
                "what it should forget; remove them from the retain set"
            )
    if evaluation is None and evaluated:
        evaluation = {"forget": forget} | ({} if retain is None else {"retain": retain})
    elif isinstance(evaluation, Mapping):
        evaluation = {name: prepare(rows, f"{name} evaluation") for name, rows in evaluation.items()}
    elif evaluation is not None:
        evaluation = prepare(evaluation, "evaluation")
    return forget, retain, evaluation

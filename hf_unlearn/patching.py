# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Other forwards for some modules of a model, for a while."""

import contextlib
from collections.abc import Callable, Iterable

from torch import nn


@contextlib.contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable]]):
    """Within the context every module of the pairs runs the given function as its `forward`; one of its own comes back."""
    before = [(module, vars(module).get("forward"), forward) for module, forward in forwards]
    for module, _, forward in before:
        module.forward = forward
    try:
        yield
    finally:
        for module, own, _ in before:
            del module.forward
            if own is not None:
                module.forward = own

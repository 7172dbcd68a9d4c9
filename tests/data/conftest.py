# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of datasets on the Hub."""

import datasets
import pytest


@pytest.fixture
def no_hub(monkeypatch):
    """Fails the test when the Hub is asked."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail(f"asked the Hub for {args}"))


@pytest.fixture
def hub(monkeypatch):
    """`hub(value)`: what `load_dataset` returns, or raises; the calls are in the list it returns."""
    calls = []

    def install(value):
        def load(*args, **kwargs):
            calls.append((*args, kwargs["split"]))
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return install

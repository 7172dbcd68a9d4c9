# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fixtures of the invented data."""

import pytest

from hf_unlearn.miniature.authors import load_synthetic


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def splits():
    return load_synthetic()

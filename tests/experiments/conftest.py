# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A cache of trained models for each file of tests."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Models are trained once for all tests of a file, outside the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A tiny fp64 Llama and rows of unequal length."""

import pytest

from tests.support.curvature import ragged


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(vocab_size=20, hidden_size=8, intermediate_size=12, initializer_range=0.3).double()


@pytest.fixture
def data():
    return ragged(vocab=20)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures. No test reaches the network; tests on real data skip when the data folder is absent."""

import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests.support.models import make_llama


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real datasets (see CONTRIBUTING): $HF_UNLEARN_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("HF_UNLEARN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found: set HF_UNLEARN_DATA to the data folder (not in {folder.name}/)")
    return folder


@pytest.fixture
def tiny_llama():
    return make_llama

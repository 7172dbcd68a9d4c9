# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Shared fixtures. No test reaches the network; tests on real data skip when the data folder is absent."""

import os
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real data sets (see CONTRIBUTING): $HF_UNLEARN_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("HF_UNLEARN_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found: set HF_UNLEARN_DATA to the data folder (looked at {folder.name}/)")
    return folder


def make_llama(
    vocab_size=50, hidden_size=16, intermediate_size=24, layers=2, heads=2, kv_heads=None, seed=0, **kwargs
):
    """A random tiny Llama in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"tie_word_embeddings": False, **kwargs},
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_llama():
    return make_llama

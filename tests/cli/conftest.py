# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A delta and a model on disk for the commands."""

import json

import pytest
import torch

from hf_unlearn.deltas import UpdateDelta, delta_config
from tests.support.commands import SETTINGS, WEIGHT


@pytest.fixture
def delta(tmp_path, tiny_llama):
    base = {WEIGHT: tiny_llama().state_dict()[WEIGHT]}
    config = delta_config(base, base_model="org/base", method="KFade", settings=SETTINGS, seed=7)
    return UpdateDelta({WEIGHT: torch.full(base[WEIGHT].shape, 0.5)}, config).save_pretrained(tmp_path / "delta")


@pytest.fixture
def model_folder(tmp_path, tiny_llama, monkeypatch):
    """A tiny model with its tokenizer, WMDP's chemistry in miniature, and a cache of its own."""
    from hf_unlearn.data.training import train_tokenizer

    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    model = tiny_llama(vocab_size=300)
    model.config.max_position_embeddings = 512
    model.save_pretrained(tmp_path / "model")
    train_tokenizer(["Which one?"], 280).save_pretrained(tmp_path / "model")
    rows = [{"question": f"Which {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(6)]
    (tmp_path / "chem_test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "model"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints on disk, compared without loading a model."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_unlearn.deltas import UpdateDelta
from hf_unlearn.deltas.stored import StoredModel
from hf_unlearn.errors import InputError
from tests.support.deltas import DOWN, GATE, change
from tests.support.models import make_llama


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def saved(model, folder):
    model.save_pretrained(folder, max_shard_size="10KB")
    return folder


@pytest.mark.parametrize("make", [make_llama, mixtral], ids=["llama", "experts"])
def test_between_two_checkpoints_is_that_between_their_models(make, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(saved(make(), tmp_path / "base"))
    unlearned = change(base, [name for name, _ in base.named_parameters() if ".mlp." in name])
    found = UpdateDelta.between(tmp_path / "base", str(saved(unlearned, tmp_path / "unlearned")), seed=3)
    expected = UpdateDelta.between(base, unlearned, seed=3)
    assert found.config == expected.config and found.sha256() == expected.sha256()
    assert list(found.tensors) == list(expected.tensors)


def test_a_tied_weight_that_is_stored_twice_is_one(tmp_path):
    base = make_llama(tie_word_embeddings=True)
    unlearned = change(base, ["model.embed_tokens.weight", DOWN])
    saved(base, tmp_path / "base")
    unlearned.save_pretrained(tmp_path / "twice")
    file = tmp_path / "twice/model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file, {"format": "pt"})
    found = UpdateDelta.between(tmp_path / "base", tmp_path / "twice")
    assert found.sha256() == UpdateDelta.between(base, unlearned).sha256()
    assert found.config["tied"] == [["model.embed_tokens.weight", "lm_head.weight"]]
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file, {"format": "pt"})
    with pytest.raises(InputError, match="one tied weight and differ in the checkpoint"):
        UpdateDelta.between(tmp_path / "base", tmp_path / "twice")


def test_one_tensor_at_a_time_is_held(tmp_path, monkeypatch):
    saved(make_llama(), tmp_path / "base")
    saved(change(make_llama(), [GATE]), tmp_path / "unlearned")
    read = []
    original = StoredModel._read
    monkeypatch.setattr(StoredModel, "_read", lambda self, name: read.append(name) or original(self, name))
    assert set(UpdateDelta.between(tmp_path / "base", tmp_path / "unlearned").tensors) == {GATE}
    # Each of both once, and the base once more for its hash.
    assert len(read) == 2 * len(make_llama().state_dict()) + 1


def test_bad_input_is_one_line(tmp_path):
    saved(make_llama(), tmp_path / "base")
    saved(make_llama(layers=1), tmp_path / "smaller")
    with pytest.raises(InputError, match="differ in their tensors"):
        UpdateDelta.between(tmp_path / "base", tmp_path / "smaller")
    with pytest.raises(InputError, match="two models, two state dicts, or two checkpoints"):
        UpdateDelta.between(tmp_path / "base", make_llama())
    with pytest.raises(InputError, match="nothing-here"):
        UpdateDelta.between(tmp_path / "base", tmp_path / "nothing-here")

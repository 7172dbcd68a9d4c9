# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a model can read, and which tokenizer is its own."""

import pytest

from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.limits import check_tokenizer, check_tokens, most_positions
from tests.support.models import make_llama
from tests.support.rows import TEXTS


def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(caplog):
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    size = len(tokenizer)
    check_tokenizer(tokenizer, make_llama(vocab_size=size))
    check_tokenizer(tokenizer, make_llama(vocab_size=size + 20))  # embeddings are often padded
    assert not caplog.text
    with pytest.raises(InputError, match=f"ids up to {size - 1} but the model's embedding has {size - 1} rows"):
        check_tokenizer(tokenizer, make_llama(vocab_size=size - 1))
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match="use the model's own tokenizer"):
        check_tokenizer(tokenizer, make_llama(vocab_size=size))
    model = make_llama(vocab_size=size + 1)
    model.config.bos_token_id = 5
    check_tokenizer(tokenizer, model)
    assert "begins texts with id 1 and the model's config says 5" in caplog.text


def test_positions_and_ids_at_their_bounds():
    model = make_llama()  # 64 positions, 50 tokens
    check_tokens(model, 64, 49, "the set")
    with pytest.raises(InputError, match="the set has a row of 65 tokens and the model 64 positions: lower"):
        check_tokens(model, 65, 49, "the set")
    with pytest.raises(InputError, match="the set has the token id 50 and the model's embedding 50 rows"):
        check_tokens(model, 64, 50, "the set")


def test_models_without_positions_have_no_limit():
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

    alibi = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=2))
    states = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, state_size=2))
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=32))
    for model in (alibi, states):
        assert most_positions(model) is None
        check_tokens(model, 10**6, 49, "the set")
    assert most_positions(learned) == 32

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Training from nothing: the tokenizer, the batches, the loss, and the key under which a model is kept."""

import itertools
from pathlib import Path

import pytest
import torch

from hf_unlearn.data.prompts import tokenize_qa
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from hf_unlearn.miniature import training
from hf_unlearn.miniature.training import length_batches, train_from_scratch, trained_model
from tests.support.models import answer_loss


def test_length_batches_take_every_row_once():
    lengths = [3, 9, 3, 7, 9, 1, 4]
    batches = length_batches(lengths, 2, torch.Generator().manual_seed(0))
    assert sorted(itertools.chain(*batches)) == list(range(7))
    ordered = sorted(batches, key=lambda rows: lengths[rows[0]])
    assert sorted(lengths) == [lengths[row] for row in itertools.chain(*ordered)]
    assert batches != length_batches(lengths, 2, torch.Generator().manual_seed(1))


def tiny_problem(splits):
    from transformers import LlamaConfig

    rows = [{"question": row["question"], "answer": row["answer"]} for row in splits.world_facts]
    tokenizer = train_tokenizer(["Question: Answer: " + row["question"] for row in rows], 320)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return tokenize_qa(rows, tokenizer), config, tokenizer


def test_training_learns_and_repeats_itself(splits):
    from transformers import LlamaForCausalLM

    rows, config, _ = tiny_problem(splits)
    rows = rows.select(range(0, 48, 2))
    settings = {"learning_rate": 1e-2, "batch_size": 8, "seed": 3, "progress": False}
    state = torch.get_rng_state()
    model = train_from_scratch(rows, config, epochs=4, **settings)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    torch.manual_seed(3)
    before, after = answer_loss(LlamaForCausalLM(config), rows), answer_loss(model, rows)
    assert after < 0.75 * before
    again = train_from_scratch(rows, config, epochs=4, **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_training_step_has_the_gradient_of_transformers_loss(splits):
    """Padding without a mask and a head on labelled positions only must change nothing."""
    from transformers import LlamaForCausalLM

    rows, config, _ = tiny_problem(splits)
    batch = training.CausalCollator(0)([rows[0], rows[20], rows[47]])
    assert batch["attention_mask"].min() == 0
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    reference = model(**batch).loss
    reference.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in wanted.values()]))
    loss = training._step(model, batch, torch.optim.SGD(model.parameters(), lr=0.0))
    assert loss == pytest.approx(reference.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad * max(1.0, norm), wanted[name], rtol=1e-3, atol=1e-6)


def test_nothing_to_learn(splits):
    rows, config, _ = tiny_problem(splits)
    with pytest.raises(InputError, match="nothing to learn"):
        train_from_scratch([], config)
    with pytest.raises(InputError, match="nothing to learn"):
        train_from_scratch([{"input_ids": [1, 2], "labels": [-100, -100]}], config)


def test_trained_model_is_keyed_by_rows_config_and_settings(cache, splits):
    rows, config, tokenizer = tiny_problem(splits)
    rows = rows.select(range(8))
    made = lambda rows, **settings: Path(
        trained_model(rows, config, tokenizer, epochs=1, progress=False, **settings).name_or_path
    )
    folder = made(rows)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert made(rows) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    others = {made(rows, seed=1), made(rows.select(range(7)))}
    config.hidden_size = 48
    others.add(made(rows))
    assert len(others | {folder}) == 4

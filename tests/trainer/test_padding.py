# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Padding: on which side it stands, and how much of it, changes nothing that a run learns or measures."""

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from hf_unlearn import FirstOrder, KFade, UnlearnConfig, UnlearnTrainer
from hf_unlearn.curvature import make_curvature
from hf_unlearn.evaluation.specificity import TokenKL
from tests.support.models import make_llama


EOS = 2
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS}


def make_gpt2():
    return GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **TOKENS)
    )


def make_opt():
    sizes = {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=64, dropout=0, **TOKENS))


MODELS = {"llama": make_llama, "gpt2": make_gpt2, "opt": make_opt}


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    # Labels of a random model say little about positions: weights large enough that they matter.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model


def text_rows(seed, lengths):
    """Whole texts, every token of them a label, each closed by the token that also pads."""
    generator = torch.Generator().manual_seed(seed)
    texts = [[*torch.randint(3, 50, (length - 1,), generator=generator).tolist(), EOS] for length in lengths]
    return Dataset.from_dict({"input_ids": texts, "labels": texts})


def pad(rows, side):
    """What a collator of somebody else's makes: labels on every real token."""
    width = max(len(row["input_ids"]) for row in rows) + 3
    whole = lambda values, fill: [
        [fill] * (width - len(v)) + v if side == "left" else v + [fill] * (width - len(v)) for v in values
    ]
    columns = {"input_ids": EOS, "attention_mask": 0, "labels": -100}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {name: torch.tensor(whole([row[name] for row in rows], fill)) for name, fill in columns.items()}


def left(rows):
    return pad(rows, "left")


def right(rows):
    return pad(rows, "right")


FORGET, RETAIN = text_rows(1, (9, 5, 7, 4)), text_rows(2, (6, 9, 4, 8, 5))


def unlearned(model, method, folder, collator=None, size=4, forget=FORGET):
    args = UnlearnConfig(
        output_dir=str(folder), per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_steps=2,
        learning_rate=1e-3, curvature_batch_size=size, save_strategy="no", report_to=[], use_cpu=True, optim="sgd",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = UnlearnTrainer(build(model), method, args, forget, RETAIN, data_collator=collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", [FirstOrder("npo"), KFade(step_norm=0.01, objective="margin", fisher="probe")])
@pytest.mark.parametrize("model", MODELS)
def test_left_padding_right_padding_and_none_give_the_same_update(model, method, tmp_path):
    want = unlearned(model, method, tmp_path / "one", size=1)
    for collator in (left, right):
        got = unlearned(model, method, tmp_path / collator.__name__, collator)
        assert got.state.log_history[0]["loss"] == pytest.approx(want.state.log_history[0]["loss"], rel=1e-6)
        delta, reference = got.update_delta().tensors, want.update_delta().tensors
        assert delta.keys() == reference.keys()
        gap = sum(float((delta[name] - reference[name]).square().sum()) for name in delta) ** 0.5
        assert gap <= 1e-5 * want.update_delta().norm()


@pytest.mark.parametrize("side", [left, right])
def test_rows_that_arrive_padded_give_the_update_of_rows_without(side, tmp_path):
    method = FirstOrder("ga")
    padded = {name: values.tolist() for name, values in side(FORGET).items()}
    padded["labels"] = padded["input_ids"]  # as a tokenizer with padding and a copy of its ids leave them
    want = unlearned("gpt2", method, tmp_path / "as_they_are")
    got = unlearned("gpt2", method, tmp_path / "padded", forget=Dataset.from_dict(padded))
    assert got.row_counts["forget"].tokens == want.row_counts["forget"].tokens == 9 + 5 + 7 + 4 - 4
    for name, change in want.update_delta().tensors.items():
        torch.testing.assert_close(got.update_delta().tensors[name], change, rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("model", MODELS)
def test_left_padding_and_none_give_the_same_curvature_and_kl(model):
    alone, padded = ([collator([row]) for row in RETAIN] for collator in (right, left))
    alone = [{name: value[:, :-3] for name, value in batch.items()} for batch in alone]
    assert all(bool(batch["attention_mask"].all()) for batch in alone)
    fits = [make_curvature("kfac").fit(build(model), data, progress=False) for data in (alone, padded)]
    assert fits[0].metadata["predicted_tokens"] == fits[1].metadata["predicted_tokens"] == 6 + 9 + 4 + 8 + 5 - 5
    torch.manual_seed(3)
    gradient = {name: torch.randn(target["shape"]).double() for name, target in fits[0].metadata["targets"].items()}
    steps = [fit.solve(gradient, 1e-3) for fit in fits]
    for name in gradient:
        torch.testing.assert_close(steps[0][name], steps[1][name], rtol=1e-6, atol=1e-9)
    other = build(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.1)
    results = [TokenKL(build(model), data)(other) for data in (alone, padded)]
    assert results[0].mean == pytest.approx(results[1].mean, rel=1e-6)


def test_labels_behind_padding_are_no_predictions(tmp_path):
    trainer = unlearned("llama", FirstOrder("ga"), tmp_path, left)
    batch = trainer.single_collator([*FORGET])
    assert int((batch["labels"] != -100).sum()) == 9 + 5 + 7 + 4 - 4

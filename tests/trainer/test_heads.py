# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Encoders with a head for classes, a regression or a span: rows, losses, KL, cards."""

import json

import pytest
import torch
from datasets import Dataset

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.errors import InputError
from tests.support.models import make_bert
from tests.support.trainers import head_rows, logged, make_trainer


HEADS = ["classes", "regression", "span"]


def row_loss(model, row):
    """transformers' own loss of one row: of a regression it is twice ours, of a span half of ours."""
    batch = {name: torch.tensor([value]) for name, value in row.items()}
    return model(**batch).loss.item()


@pytest.mark.parametrize("head", HEADS)
def test_first_order_methods_take_the_loss_of_transformers(head, tmp_path):
    model, forget, retain = make_bert(head), head_rows(head, 6, 1), head_rows(head, 9, 2)
    scale = {"classes": 1, "regression": 0.5, "span": 1}[head]
    expected = sum(row_loss(model, row) for row in forget) / len(forget) * scale
    trainer = make_trainer(
        model, FirstOrder("grad_diff"), tmp_path, forget, retain, max_steps=3, learning_rate=1e-3, logging_steps=1,
        per_device_train_batch_size=6, kl_rows=5,
    )  # fmt: skip
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    losses = logged(trainer, "forget_loss")
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[-1] > losses[0]
    trainer.save_model()
    card = (tmp_path / "README.md").read_text()
    assert "KL" in card and "could not be measured" not in card
    line = json.loads((tmp_path / "unlearning_log.jsonl").read_text())
    assert line["delta_sha256"] and (tmp_path / "delta").is_dir()


@pytest.mark.parametrize("objective", ["npo", "kl", "finetune", "simnpo"])
@pytest.mark.parametrize("head", HEADS)
def test_other_objectives_run_on_every_head(head, objective, tmp_path):
    trainer = make_trainer(
        make_bert(head), FirstOrder(objective), tmp_path, head_rows(head, 4, 1), head_rows(head, 4, 2), max_steps=1
    )
    trainer.train()
    assert len(trainer.update_delta().tensors) > 10


def test_padding_and_batches_do_not_change_what_is_learned(tmp_path):
    """The two ends of a span are chosen among the real tokens, however far a batch is padded."""
    deltas = []
    for size in (1, 4):
        model = make_bert("span", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        arguments = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        trainer = make_trainer(
            model.double(), FirstOrder("ga"), tmp_path / str(size), head_rows("span", 4, 1), None, optim="sgd",
            max_steps=1, max_grad_norm=0.0, **arguments,
        )  # fmt: skip
        trainer.train()
        deltas.append(trainer.update_delta().tensors)
    for name, tensor in deltas[0].items():
        assert torch.allclose(tensor, deltas[1][name], rtol=1e-6, atol=1e-12), name


def test_text_and_label_are_tokenised_in_pairs(tmp_path):
    from hf_unlearn.data.training import train_tokenizer

    tokenizer = train_tokenizer(["a cat sat on a mat", "who is it"], vocab_size=300)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    model = make_bert(vocab_size=400)
    rows = [{"text": "a cat", "text_pair": "who is it", "label": 2}, {"text": "a mat", "text_pair": "", "label": 0}]
    trainer = make_trainer(model, FirstOrder("ga"), tmp_path, rows, None, processing_class=tokenizer, max_steps=1)
    prepared = trainer.forget_dataset
    assert prepared["labels"][:] == [2, 0]
    assert prepared[0]["input_ids"] == tokenizer("a cat", "who is it")["input_ids"]
    trainer.train()


@pytest.mark.parametrize(
    "method", [KFade(step_norm=0.1, objective="margin"), FirstOrder("random_label")], ids=["margin", "random_label"]
)
def test_a_regression_has_no_wrong_classes(method, tmp_path):
    rows = head_rows("regression", 4, 1)
    with pytest.raises(InputError, match="needs wrong classes, which a regression does not have"):
        make_trainer(make_bert("regression"), method, tmp_path, rows, rows, max_steps=1).train()


REFUSED = [
    ("classes", {"labels": 3}, "the label 3 and the model 3 classes"),
    ("classes", {"labels": 1.5}, "labels that are values"),
    ("classes", {"labels": None}, "column labels"),
    ("classes", {"labels": [1, 2, 3]}, "labels of tokens: a classifier needs one label"),
    ("classes", {"labels": float("nan")}, "a class or a finite number"),
    ("classes", {}, "labels of tokens: a classifier needs one label"),
    ("regression", {}, "labels of tokens: a classifier needs one label"),
    ("span", {}, "no spans"),
    ("span", {"start_positions": 1}, "it must be the place of one of the 3 tokens, not nothing"),
    ("span", {"start_positions": 1, "end_positions": 3}, "the place of one of the 3 tokens, not int 3"),
]


@pytest.mark.parametrize("head, labels, message", REFUSED, ids=[message[:40] for *_, message in REFUSED])
def test_labels_that_do_not_fit_the_head(head, labels, message, tmp_path):
    rows = [{"input_ids": [3, 4, 5]} | labels]
    with pytest.raises(InputError, match=message):
        make_trainer(make_bert(head), FirstOrder("ga"), tmp_path, rows, None)
    with pytest.raises(InputError, match=message):
        make_trainer(make_bert(head), FirstOrder("ga"), tmp_path, Dataset.from_list(rows), None)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.trainer.measures import before_and_after
from tests.support.trainers import FORGET, RETAIN, make_trainer, trained_llama
from tests.support.tuners import make_vit


def label_losses(model, rows):
    """Oracle: -log p of every label of rows one at a time, and the log-probabilities there."""
    losses, log_probs = [], []
    for row in rows:
        ids, labels = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        with torch.no_grad():
            said = model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        keep = labels[1:] != -100
        log_probs.append(said[keep])
        losses.append(-said[keep].gather(1, labels[1:][keep, None])[:, 0])
    return torch.cat(losses), torch.cat(log_probs)


@pytest.mark.parametrize(
    ("method", "adapter"),
    [(FirstOrder("npo"), False), (FirstOrder("npo"), True), (KFade(step_norm=0.1, curvature="identity"), True)],
)
def test_numbers_of_a_card_are_those_of_the_model_before_and_after(method, adapter, tmp_path):
    model, original = trained_llama(), trained_llama()
    lora = LoraConfig(r=4, task_type="CAUSAL_LM") if adapter else None
    trainer = make_trainer(model, method, tmp_path, kl_rows=64, max_steps=2, learning_rate=1e-2, peft_config=lora)
    trainer.train()
    found = before_and_after(trainer)
    assert found["measured_on"] == {"forget": (8, 8), "retain": (24, 24)} and found["limits"] == []
    for side, rows in (("forget", FORGET), ("retain", RETAIN)):
        (before, then), (after, now) = label_losses(original, rows), label_losses(trainer.model, rows)
        kl = (then.exp() * (then - now)).sum(1).mean().item()
        for row, losses in ((found["original"], before), (found["unlearned"], after)):
            assert row[f"{side}_rows_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
            assert row[f"{side}_rows_probability"] == pytest.approx(math.exp(-losses.mean().item()), rel=1e-4)
        assert found["unlearned"][f"{side}_rows_kl"] == pytest.approx(kl, rel=1e-3) and kl > 1e-4
        assert found["original"][f"{side}_rows_kl"] == 0


def test_numbers_of_a_classifier(tmp_path):
    model = make_vit()
    original, size = copy.deepcopy(model).eval(), model.config.image_size
    torch.manual_seed(0)
    images = [torch.rand(model.config.num_channels, size, size).tolist() for _ in range(6)]
    rows = Dataset.from_list([{"pixel_values": image, "labels": number % 3} for number, image in enumerate(images)])
    arguments = {"kl_rows": 4, "max_steps": 2, "learning_rate": 1e-2, "data_collator": collate}
    trainer = make_trainer(model, FirstOrder("grad_diff"), tmp_path, rows, rows, **arguments)
    trainer.train()
    found = before_and_after(trainer)
    assert found["measured_on"] == {"forget": (4, 6), "retain": (4, 6)}
    assert found["unlearned"]["forget_rows_kl"] > 0
    assert found["original"]["forget_rows_loss"] != found["unlearned"]["forget_rows_loss"]
    # All rows: the loss is transformers' own.
    trainer.args.kl_rows = 6
    loss = original(**collate(list(rows))).loss.item()
    assert before_and_after(trainer)["original"]["forget_rows_loss"] == pytest.approx(loss, rel=1e-4)


def collate(rows):
    return {
        "pixel_values": torch.stack([torch.as_tensor(row["pixel_values"]) for row in rows]),
        "labels": torch.tensor([int(row["labels"]) for row in rows]),
    }


def test_what_is_not_measured_is_said(tmp_path, monkeypatch, caplog):
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, retain=None, max_steps=1)
    trainer.train()
    assert before_and_after(trainer)["limits"] == ["Loss and KL before and after were not measured (kl_rows is 0)."]
    trainer.args.kl_rows = 4
    found = before_and_after(trainer)
    assert found["measured_on"] == {"forget": (4, 8)} and "No rows to be kept were given" in found["limits"][0]
    # A run that is done is not lost for a number on its card.
    monkeypatch.setattr(trainer.model, "forward", lambda **inputs: 1 / 0)
    assert before_and_after(trainer)["limits"] == ["Loss and KL before and after could not be measured."]
    assert "could not be measured (division by zero)" in caplog.text
    trainer.save_model(str(tmp_path / "model"))
    assert "could not be measured" in (tmp_path / "model/README.md").read_text()


def test_a_model_that_diverged_is_measured_as_that(tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, kl_rows=4, max_steps=1)
    trainer.train()
    with torch.no_grad():
        trainer.model.lm_head.weight.fill_(float("nan"))
    assert before_and_after(trainer)["unlearned"] == {}

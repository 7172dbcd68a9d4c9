# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What is published is what was made: saved, pushed and transferred, by each kind of method and of adapter."""

import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hf_unlearn import BatchNormTuningConfig, FastNTK, FirstOrder, KeyValuePromptConfig, KFade, UpdateDelta
from hf_unlearn.data.images import split_class
from hf_unlearn.deltas import transfer
from hf_unlearn.errors import InputError
from tests.support.cards import assert_same, load
from tests.support.deltas import DOWN
from tests.support.hub_server import hub_server, known_here
from tests.support.images import COLLATOR, digits, make_model  # noqa: F401
from tests.support.trainers import COLLATE, RETAIN, make_trainer, trained_llama
from tests.support.tuners import make_vit


DESCEND = {"learning_rate": 1e-3, "max_steps": 2}
METHODS = {
    "first_order": lambda: FirstOrder("ga"),
    "kfade": lambda: KFade(curvature="identity", step_norm=0.05),
    "fast_ntk": lambda: FastNTK(ridge=0.1, target_scale=5.0),
    "images": lambda: FirstOrder("max_loss"),
}
TEXT = [(method, adapter) for method in ("first_order", "kfade") for adapter in ("full", "lora")]
IMAGES = [("images", adapter) for adapter in ("full", "batch_norm", "prompts")]
IMAGES += [("fast_ntk", adapter) for adapter in ("batch_norm", "prompts")]


def tune(model, batch):
    """A few steps on rows to keep, without which there is no request to serve."""
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=0.05)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(model(batch["pixel_values"]).logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def run(method, adapter, digits, folder):  # noqa: F811
    """(trainer that has unlearned, batch to compare on); the model before any adapter is in `folder / "base"`."""
    if method in ("first_order", "kfade"):
        model, batch = trained_llama(), COLLATE([RETAIN[0], RETAIN[1]])
        model.config._name_or_path = None
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"]) if adapter == "lora" else None
        arguments = DESCEND if method == "first_order" else {}
        rows = {}
    else:
        prompts = {"num_channels": 3, "image_size": 8, "num_labels": 10}
        model = make_vit(**prompts) if adapter == "prompts" else make_model(torch.float32)
        head = "classifier" if adapter == "prompts" else "linear"
        config = {"batch_norm": BatchNormTuningConfig, "prompts": KeyValuePromptConfig}.get(adapter)
        config = config and config(modules_to_save=[head])
        forget, retain = split_class(digits, "2")
        rows = {"forget": forget, "retain": retain, "data_collator": COLLATOR}
        batch, arguments = COLLATOR([digits[0], digits[9]]), {} if method == "fast_ntk" else DESCEND
    model.save_pretrained(folder / "base")
    if config is not None:
        model = get_peft_model(model, config)
        if method == "fast_ntk":
            tune(model, COLLATOR([*retain]))
    trainer = make_trainer(model, METHODS[method](), folder / "run", **rows, **arguments)
    trainer.train()
    return trainer, batch


@pytest.mark.parametrize("method, adapter", TEXT + IMAGES)
def test_every_road_out_gives_the_model_in_memory(method, adapter, digits, tmp_path, monkeypatch, caplog):  # noqa: F811
    trainer, batch = run(method, adapter, digits, tmp_path)
    model = trainer.model.eval()
    trainer.save_model(tmp_path / "saved")
    assert "without delta" not in caplog.text  # base and update were found to be the model
    tolerance = 1e-5 if method == "kfade" and adapter == "lora" else 0.0  # merged weights sum in another order
    assert_same(model, load(tmp_path / "saved", tmp_path / "base"), batch, tolerance)

    with hub_server() as server:
        known_here(server, monkeypatch)
        trainer.args.hub_model_id = "lab/unlearned"
        trainer.push_to_hub()
        (repository,) = server.repos.values()
        for name, content in repository["commits"][-1]["files"].items():
            place = tmp_path / "pushed" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content if isinstance(content, bytes) else server.blobs[content])
    assert_same(model, load(tmp_path / "pushed", tmp_path / "base", "lab/unlearned"), batch, tolerance)

    if adapter == "prompts":
        with pytest.raises(InputError, match="no tensor"):  # prompts are no change of weights
            transfer(tmp_path / "saved", tmp_path / "base", tmp_path / "out")
        return
    trainer.update_delta().save_pretrained(tmp_path / "delta", dtype=torch.float32)
    transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    if method == "fast_ntk":
        # It starts from a tuned adapter, so that the base as it was is another one: the update alone is compared.
        assert "are not the ones this update was made from" in caplog.text
        return
    assert_same(model, load(tmp_path / "out", tmp_path / "base"), batch, 1e-5)


def test_an_update_that_is_not_what_happened_is_not_published(tmp_path, caplog, monkeypatch):
    trainer, batch = run("first_order", "full", None, tmp_path)
    made = trainer.update_delta()
    wrong = UpdateDelta({**made.tensors, DOWN: made.tensors[DOWN] + 0.1}, made.config)
    monkeypatch.setattr(trainer, "update_delta", lambda: wrong)
    with caplog.at_level(logging.WARNING, logger="hf_unlearn"):
        trainer.save_model(tmp_path / "saved")
    assert "differ by" in caplog.text and "without delta/" in caplog.text
    assert not (tmp_path / "saved" / "delta").exists()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "No update is published beside the model" in card and "UpdateDelta" not in card
    assert_same(trainer.model.eval(), load(tmp_path / "saved", tmp_path / "base"), batch)


def test_running_statistics_are_a_part_of_the_update(digits, tmp_path):  # noqa: F811
    trainer, batch = run("images", "full", digits, tmp_path)
    delta = trainer.update_delta()
    assert any(name.endswith("running_mean") for name in delta.tensors)
    assert_same(trainer.model.eval(), delta.apply_to(make_model(torch.float32)).eval(), batch, 1e-5)

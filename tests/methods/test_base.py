# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The seam of a method: its defaults, counts of a step, adapters of any method."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig

from hf_unlearn import FirstOrder
from hf_unlearn.methods.base import Counts, Method
from tests.support.methods import (
    LORA,
)
from tests.support.trainers import logged, make_trainer, trained_llama


def test_fully_trained_modules_of_an_adapter_are_in_the_delta(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    trainer = make_trainer(
        trained_llama(), FirstOrder("ga"), tmp_path, peft_config=config, max_steps=2, learning_rate=1e-2
    )
    trainer.train()
    merged = copy.deepcopy(trainer.model).merge_and_unload()
    update = trainer.update_delta().tensors
    difference = merged.lm_head.weight - trained_llama().lm_head.weight
    assert torch.allclose(update["lm_head.weight"], difference) and difference.abs().max() > 1e-3


def test_an_adapter_is_evaluated_and_its_best_state_kept(tmp_path):
    trainer = make_trainer(
        trained_llama(), FirstOrder("grad_diff"), tmp_path, peft_config=LORA, max_steps=2, learning_rate=1e-2,
        eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1, load_best_model_at_end=True,
        metric_for_best_model="forget_loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = logged(trainer, "eval_forget_loss")
    assert losses[0] < losses[1]
    assert trainer.evaluate()["eval_forget_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_numbers_of_a_step_are_summed_over_micro_batches():
    """Positions that are predicted (not the first, not -100), and rows that have any."""
    labels = torch.tensor([[5, 6, -100], [-100, -100, -100], [7, 8, 9]])
    batches = [{"forget": {"labels": labels}, "retain": {"labels": labels[:1]}}] * 2
    assert Counts.numbers(batches) == [6, 4, 2, 2]
    assert Counts.numbers([{"labels": labels}]) == [3, 2]
    assert Counts.at_least_one([0, 0]) == Counts(1, 1)


class Nothing(Method):
    label = "Nothing"


@dataclasses.dataclass
class Parts(Method):
    """Decides itself how many parts it has."""

    own_steps: int = 3
    curvature: object = None

    label: ClassVar[str] = "Parts"


def test_defaults_of_the_seam():
    with pytest.raises(TypeError, match="Nothing defines neither loss nor run"):
        Nothing().loss(None, None, None)
    with pytest.raises(TypeError, match="Nothing has no candidates that share a training"):
        Nothing().sweep_search(None, {}, None, None)
    state = SimpleNamespace(epoch=1.234, global_step=0)
    # Epochs decide, or the method does.
    assert Nothing().schedule(4) == {"num_train_epochs": 4, "eval_strategy": "epoch"}
    assert Parts().schedule(4) == {"eval_strategy": "steps", "eval_steps": 1}
    assert Nothing().reached(state) == {"epochs": 1.23} and Parts().reached(state) == {"steps": 1}
    for method, arguments, count in (
        (Nothing(), {}, 4),
        (Nothing(), {"max_steps": 150, "eval_steps": 50}, 3),
        (Parts(own_steps=6), {"eval_steps": 2, "max_steps": 100}, 3),
    ):
        assert method.evaluations(4, arguments) == count
    args = SimpleNamespace(max_steps=-1)
    assert Nothing().configure(args, 8).max_steps == -1 and Parts().configure(args, 8).max_steps == 3
    assert args.max_steps == -1  # a copy was changed
    assert Parts(curvature=Nothing()).settings() == {"method": "Parts", "own_steps": 3, "curvature": "Nothing"}

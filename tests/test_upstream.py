# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Upstream names that the code overrides or reads and that upstream does not promise to keep.

An upgrade of transformers, accelerate or peft that moves one of them fails here by name, not deep in a run.
"""

import inspect

import pytest
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard
from accelerate.optimizer import AcceleratedOptimizer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer


# What UnlearnTrainer overrides: name -> parameters that the override is called with by name.
OVERRIDDEN = {
    "compute_loss": {"model", "inputs", "return_outputs", "num_items_in_batch"},
    "create_optimizer": {"model"},
    "evaluate": {"metric_key_prefix"},
    "get_train_dataloader": set(),
    "log": {"logs", "start_time"},
    "push_to_hub": {"commit_message", "blocking", "token", "revision"},
    "save_model": {"output_dir", "_internal_call"},
    "train": {"resume_from_checkpoint"},
    "_get_num_items_in_batch": {"batch_samples", "device"},
    "_inner_training_loop": {"batch_size", "args", "resume_from_checkpoint", "trial"},
    "_load_best_model": set(),
    "_load_optimizer_and_scheduler": {"checkpoint"},
    "_run_epoch": {"epoch", "train_dataloader"},
    "_save_checkpoint": {"model", "trial"},
    "_save_optimizer_and_scheduler": {"output_dir"},
}


@pytest.mark.parametrize("name", sorted(OVERRIDDEN))
def test_overridden_method_is_still_there(name):
    assert hasattr(Trainer, name), f"transformers.Trainer.{name} is gone: UnlearnTrainer.{name} is never called"
    missing = OVERRIDDEN[name] - set(inspect.signature(getattr(Trainer, name)).parameters)
    assert not missing, f"transformers.Trainer.{name} no longer takes {', '.join(sorted(missing))}"


# What the loop of a method that runs itself calls, by place (trainer/parts.py): name -> parameters in their order.
CALLED = {
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
    "_init_training_state": [
        "max_steps", "num_update_steps_per_epoch", "num_train_epochs", "resume_from_checkpoint", "trial",
    ],
    "_load_rng_state": ["checkpoint"],
    "_maybe_log_save_evaluate": [
        "tr_loss", "grad_norm", "model", "trial", "epoch", "ignore_keys_for_eval", "start_time",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CALLED))
def test_method_that_we_call_takes_the_same(name):
    assert hasattr(Trainer, name), f"transformers.Trainer.{name} is gone, which trainer/parts.py calls"
    found = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    assert found[: len(CALLED[name])] == CALLED[name]


@pytest.mark.parametrize("attribute, reader", [
    ("_globalstep_last_logged", "_maybe_log_save_evaluate"),
    ("_initial_global_step", "_finalize_training"),
    ("_initial_num_input_tokens_seen", "log"),
    ("_total_loss_scalar", "_finalize_training"),
    ("_tr_loss", "_finalize_training"),
])  # fmt: skip
def test_attribute_that_we_set_is_still_read(attribute, reader):
    source = inspect.getsource(getattr(Trainer, reader))
    assert f"self.{attribute}" in source, f"transformers.Trainer.{reader} no longer reads {attribute}"


@pytest.mark.parametrize("caller, callee", [
    ("get_batch_samples", "_get_num_items_in_batch("),
    ("_maybe_log_save_evaluate", "self._save_checkpoint(model, trial)"),
    ("_finalize_training", "self._load_best_model()"),
    ("_inner_training_loop", "self._run_epoch(\n                model=model,\n                epoch=epoch,"),
    ("_save_checkpoint", "self.save_model(output_dir, _internal_call=True)"),
    ("_save_checkpoint", "self._save_optimizer_and_scheduler(output_dir)"),
    ("_prepare_for_training", "self._load_optimizer_and_scheduler(resume_from_checkpoint)"),
    ("train", "self._inner_training_loop"),
    ("training_step", "self.loss_is_scaled_for_ga"),
    ("training_step", "model.train()"),
])  # fmt: skip
def test_overridden_method_is_still_called(caller, callee):
    source = inspect.getsource(getattr(Trainer, caller))
    assert callee in source, f"transformers.Trainer.{caller} no longer runs {callee.split(chr(10))[0]}"


@pytest.mark.parametrize(
    "owner, name",
    [
        (Trainer, "_get_output_dir"),
        (Trainer, "_load_optimizer_and_scheduler"),
        (Trainer, "loss_is_scaled_for_ga"),
        (GradientCheckpointingLayer, "gradient_checkpointing"),
        (Accelerator, "even_batches"),
        (Accelerator, "wait_for_everyone"),
        (DataLoaderShard, "set_epoch"),
        (BaseTunerLayer, "get_base_layer"),
        (BaseTunerLayer, "merge"),
        (ModulesToSaveWrapper, "active_adapters"),
    ],
)
def test_name_that_we_read(owner, name):
    assert hasattr(owner, name), f"{owner.__module__}.{owner.__name__}.{name} is gone"


def test_even_batches_can_be_set_and_the_optimizer_is_inside_its_wrapper():
    assert isinstance(vars(Accelerator)["even_batches"], property) and Accelerator.even_batches.fset is not None
    assert "self.optimizer = optimizer" in inspect.getsource(AcceleratedOptimizer.__init__)
    # UnlearnTrainer sets it to True: compute_loss divides by the counts of the whole accumulated batch itself.
    assert Trainer.loss_is_scaled_for_ga is None


def test_checkpointing_is_skipped_in_eval_mode_by_transformers():
    """The reason for `checkpointed_in_eval_mode`: when this changes, it would checkpoint twice."""
    assert "self.training" in inspect.getsource(GradientCheckpointingLayer)

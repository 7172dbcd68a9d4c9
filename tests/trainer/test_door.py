# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What is refused, or mended, before any work; the table of a person's mistakes is in `test_mistakes.py`."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import debug_launcher
from peft import LoraConfig, PrefixTuningConfig
from transformers import LlamaForCausalLM

from hf_unlearn import FirstOrder, KFade, UnlearnConfig
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.runtime.processes import LostProcess
from tests.support.trainers import FORGET, make_trainer, trained_llama


def test_sampling_settings_that_do_nothing_are_taken_out_before_training(tmp_path, caplog):
    model = trained_llama()
    model.generation_config.temperature, model.generation_config.top_p = 0.9, 0.6
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(model, KFade(step_norm=0.01, curvature="identity"), tmp_path)
    assert "temperature=0.9, top_p=0.6 has no effect as it stands" in caplog.text
    trainer.train()
    trainer.save_model()
    saved = LlamaForCausalLM.from_pretrained(tmp_path)
    assert saved.generation_config.temperature is None and not saved.generation_config.do_sample


def test_sampling_settings_that_mean_something_stay(tmp_path, caplog):
    model = trained_llama()
    model.generation_config.update(do_sample=True, temperature=0.9)
    with caplog.at_level(logging.WARNING):
        trainer = make_trainer(model, KFade(step_norm=0.01, curvature="identity"), tmp_path)
    assert "generation_config" not in caplog.text
    trainer.train()
    trainer.save_model()
    assert LlamaForCausalLM.from_pretrained(tmp_path).generation_config.temperature == 0.9


def test_a_generation_config_that_cannot_be_mended_is_refused_as_it_was(tmp_path):
    model = trained_llama()
    model.generation_config.num_return_sequences, model.generation_config.temperature = 3, 0.9
    with pytest.raises(InputError, match="generation_config cannot be saved: .*num_return_sequences") as caught:
        make_trainer(model, FirstOrder("ga"), tmp_path)
    assert "\n" not in str(caught.value) and model.generation_config.temperature == 0.9


def test_a_config_that_cannot_be_saved_is_found_before_training(tmp_path):
    model = trained_llama()
    model.config.note = object()
    with pytest.raises(InputError, match="config cannot be saved .*mend it before training"):
        make_trainer(model, FirstOrder("ga"), tmp_path).train()


def test_a_checkpoint_that_cannot_fit_is_found_before_training(tmp_path, monkeypatch):
    model = trained_llama()
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    free = lambda size: monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    arguments = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    free(2 * size - 1)
    trainer = make_trainer(model, FirstOrder("ga"), tmp_path / "full", **arguments)
    with pytest.raises(InputError, match="a checkpoint takes 0.00 GB at least .* save_strategy='no'"):
        trainer.train()
    free(2 * size)
    make_trainer(model, FirstOrder("ga"), tmp_path / "fits", **arguments).train()
    free(0)
    make_trainer(model, FirstOrder("ga"), tmp_path / "none", max_steps=1).train()


def test_adapters_that_work_are_let_in(tmp_path):
    """Prefix tuning prepends keys alone: its logits are those of the rows."""
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    for number, config in enumerate((adapter, LoraConfig(r=2, target_modules=["q_proj"]))):
        trainer = make_trainer(
            trained_llama(), FirstOrder("grad_diff"), tmp_path / str(number), peft_config=config, max_steps=1
        )
        trainer.train()
        assert any(tensor.any() for tensor in trainer.update_delta().tensors.values())


def test_rows_grouped_by_length_are_let_in_where_rows_are_no_pairs(tmp_path):
    trainer = make_trainer(
        trained_llama(), FirstOrder("ga"), tmp_path, train_sampling_strategy="group_by_length", max_steps=2,
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 2


# What the second process has of its own, in the words of the refusal -> its arguments, and where rows are evaluated.
OTHERS = {
    "evaluation rows": ({"eval_dataset": FORGET}, {"eval_dataset": FORGET.select(range(2))}),
    "arguments": ({"eval_steps": 1}, {"eval_steps": 2}),
    "evaluator": ({}, {"evaluator": lambda model: {}}),
}


def broken():
    raise InputError("broken here")


def processes_that_differ(folder):
    rank = UnlearnConfig(output_dir=str(folder), use_cpu=True).process_index
    arguments = {"max_steps": 2, "report_to": "none", "eval_strategy": "steps", "eval_steps": 1}
    for number, (what, each) in enumerate(OTHERS.items()):
        trainer = make_trainer(trained_llama(), FirstOrder("npo"), folder / str(number), **(arguments | each[rank]))
        with pytest.raises(InputError, match=f"process 1 has other {what} than process 0"):
            trainer.train()
    # One that fails by itself is heard by the other, which would wait for it.
    trainer = make_trainer(trained_llama(), FirstOrder("npo"), folder / "fails", **arguments)
    if rank == 1:
        trainer.method.settings = broken
    with pytest.raises(InputError, match="process 1 of 2: broken here"):
        trainer.train()
    assert torch.distributed.is_initialized()
    # One that fails in the middle ends; the other hears no more of it, and says so in one line.
    method, calls = FirstOrder("npo"), []

    def diverging(*args, loss=method.loss):
        calls.append(1)
        value, parts = loss(*args)
        return value * (float("nan") if rank == 1 and len(calls) == 2 else 1.0), parts

    method.loss = diverging
    trainer = make_trainer(trained_llama(), method, folder / "diverges", max_steps=3, report_to="none")
    error, message = (LostProcess, "another process stopped during the training") if rank == 0 else (
        NumericalError, "the NPO loss is nan at step 1"
    )  # fmt: skip
    with pytest.raises(error, match=message) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


@pytest.mark.multi_process
def test_processes_that_would_wait_for_each_other_are_refused(tmp_path):
    debug_launcher(processes_that_differ, (tmp_path,), num_processes=2)

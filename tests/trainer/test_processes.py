# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Two gloo processes take the step that one takes: no row lost, none counted twice."""

import pytest
import torch
from accelerate import debug_launcher

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.errors import InputError
from hf_unlearn.trainer.run_folder import is_whole
from tests.support.trainers import FORGET, RETAIN, logged, make_rows, make_trainer, taken_back, trained_llama, weights


pytestmark = pytest.mark.multi_process

ODD = make_rows(7, 11)


def kfade(**settings):
    # "probe": draws from a model that knows its rows by heart would carry next to no curvature.
    return KFade(**{"step_norm": 0.02, "curvature": "kfac", "damping": 1e-3, "fisher": "probe", **settings})


# name -> (method, forget rows, per-device batch on one process and on each of two, further arguments)
CASES = {
    "kfade even": (kfade(steps=2), FORGET, 8, 2, {}),
    "kfade odd": (kfade(objective="margin"), ODD, 7, 2, {}),
    "kfade more batches on one": (kfade(), ODD, 7, 1, {}),
    "grad_diff": (
        FirstOrder("grad_diff"),
        FORGET,
        4,
        2,
        {"num_train_epochs": 2, "optim": "sgd", "max_grad_norm": 0.0},
    ),
    "npo": (FirstOrder("npo"), FORGET, 8, 2, {"gradient_accumulation_steps": 1, "max_steps": 2, "optim": "sgd"}),
    "rmu": (FirstOrder("rmu", layer=1, retain_weight=3.0), FORGET, 8, 4, {"max_steps": 3, "optim": "sgd"}),
}


def train(name, folder, world_size):
    method, rows, alone, each, arguments = CASES[name]
    if world_size == 2 and name == "npo":
        arguments = {**arguments, "gradient_accumulation_steps": 2}
    # Loops of first order in fp64: forget and retain gradients nearly cancel on a model that knows both, and the steps
    # of an ascent diverge, so that a rounding of fp32 would grow beyond the bound.
    dtype = torch.float32 if isinstance(method, KFade) else torch.float64
    trainer = make_trainer(
        trained_llama(dtype), method, folder / f"{name}{world_size}", rows, kl_rows=8, learning_rate=0.05,
        lr_scheduler_type="constant", per_device_train_batch_size=alone if world_size == 1 else each, **arguments,
    )  # fmt: skip
    assert trainer.args.world_size == world_size
    trainer.train()
    return trainer


def results(trainer):
    """Losses of every step, and the update."""
    names = [name for name in ("loss", "forget_loss", "retain_loss", "measured_kl") if logged(trainer, name)]
    return {name: logged(trainer, name) for name in names}, trainer.update_delta().tensors


def two_processes(folder):
    for name in CASES:
        trainer = train(name, folder, 2)
        torch.save(results(trainer), folder / f"{name}-rank{trainer.args.process_index}.pt")
    # An evaluation, whose rows do not divide evenly, and a checkpoint of both processes.
    trainer = make_trainer(
        trained_llama(), kfade(steps=2), folder / "saved", ODD, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=1, save_strategy="steps", save_steps=1, save_total_limit=2,
    )  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "eval_forget_loss")) == 2
    trainer.save_model()
    for rows, size in ((ODD, 2), (FORGET, 3)):
        try:
            make_trainer(trained_llama(), kfade(forget_batch_size=size), folder / "refused", rows)
            raise AssertionError("an uneven forget_batch_size was taken")
        except InputError as error:
            assert "multiple of the processes" in str(error)
    try:
        make_trainer(trained_llama(), kfade(), folder / "refused", FORGET.select([0]))
        raise AssertionError("one row was shared by two processes")
    except InputError as error:
        assert "start fewer processes" in str(error)


def processes_above_the_limit(folder):
    make = lambda name, **settings: make_trainer(
        trained_llama(), kfade(steps=3, **settings), folder / name, ODD, kl_rows=8
    )
    free = make("free")
    free.train()
    first, second, _ = logged(free, "measured_kl")
    message = taken_back(make("limited", kl_limit=(first + second) / 2))
    assert "after step 2 of 3" in message
    (folder / f"message-{free.args.process_index}").write_text(message)


def test_a_run_above_the_limit_ends_all_processes(tmp_path):
    debug_launcher(processes_above_the_limit, (tmp_path,), num_processes=2)
    first, second = [(tmp_path / f"message-{rank}").read_text() for rank in (0, 1)]
    assert first == second


def test_two_processes_take_the_step_of_one(tmp_path):
    debug_launcher(two_processes, (tmp_path,), num_processes=2)
    for name in CASES:
        losses, update = results(train(name, tmp_path, 1))
        for rank in (0, 1):
            shared_losses, shared = torch.load(tmp_path / f"{name}-rank{rank}.pt")
            for key, values in losses.items():
                assert shared_losses[key] == pytest.approx(values, rel=1e-4, abs=1e-7), (name, key)
            assert shared.keys() == update.keys()
            for weight in update:
                assert (shared[weight] - update[weight]).norm() <= 1e-5 * update[weight].norm() + 1e-9, (name, weight)
    for step in (1, 2):
        folder = tmp_path / "saved" / f"checkpoint-{step}"
        assert is_whole(folder) and {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in folder.iterdir()}
    assert len((tmp_path / "saved" / "unlearning_log.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "saved" / "delta" / "delta_config.json").is_file()


# What the second process has of its own, in the words of the refusal -> arguments of `make_trainer`.
OTHERS = {
    "forget rows": lambda: {"forget": make_rows(8, 11)},
    "retain rows": lambda: {"retain": RETAIN.select(range(23))},
    "arguments": lambda: {"seed": 7},
    "method": lambda: {},
    "base weights": lambda: {},
}
METHODS = {
    "kfade": lambda scale: kfade(damping=1e-3 * scale),
    "npo": lambda scale: FirstOrder("npo", beta=0.1 * scale),
    "grad_diff": lambda scale: FirstOrder("grad_diff", retain_weight=1.0 * scale),
}


def processes_that_differ(folder):
    for name, make in METHODS.items():
        for what, other in OTHERS.items():
            output = folder / name / what
            trainer = make_trainer(trained_llama(), make(1.0), output, max_steps=1, report_to="none")
            if trainer.args.process_index == 1:
                model = trained_llama()
                if what == "base weights":
                    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-6
                settings = {"max_steps": 1, "report_to": "none", **other()}
                trainer = make_trainer(model, make(2.0 if what == "method" else 1.0), output, **settings)
            before = weights(trainer.model)
            with pytest.raises(
                InputError, match=f"process 1 has other {what} than process 0: start all processes with the same"
            ):
                trainer.train()
            assert all(torch.equal(weight, before[key]) for key, weight in trainer.model.named_parameters())
            assert all(parameter.requires_grad for parameter in trainer.model.parameters())
            assert not trainer.state.log_history and not any(output.iterdir())


def test_processes_that_would_not_do_the_same_are_refused(tmp_path):
    debug_launcher(processes_that_differ, (tmp_path,), num_processes=2)

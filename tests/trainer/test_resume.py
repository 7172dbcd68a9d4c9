# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Runs that are killed, or whose disk is full: in processes of their own, killed for good."""

import functools
import json
import multiprocessing
import os
import resource
import signal
import sys

import pytest
from transformers import TrainerCallback

from hf_unlearn import FirstOrder, KFade, UpdateDelta
from hf_unlearn.curvature import KFAC
from hf_unlearn.errors import InputError, exit_codes
from hf_unlearn.requests.ledger import append_log
from hf_unlearn.trainer.run_folder import checkpoint_to_resume, is_whole, seal_checkpoint
from tests.support.trainers import logged, make_trainer, trained_llama


def die():
    """No handler, no flush, no cleanup."""
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk():
    """From now on writes fail in the middle of a file, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))


class Fragile(KFAC):
    """Counts its fits; dies in the middle of the second one if told to."""

    def __init__(self, where=None):
        super().__init__()
        self.where, self.fits = where, 0

    def fit(self, model, dataloader, **kwargs):
        self.fits += 1
        batches = list(dataloader)
        if self.where == "fit" and self.fits == 2:
            batches = Deadly(batches)
        return super().fit(model, batches, **kwargs)


class Deadly(list):
    def __iter__(self):
        yield self[0]
        die()


class Killer(TrainerCallback):
    """Dies before the fourth step, or in the middle of the second one, when some weights have been written."""

    def __init__(self, where):
        self.where, self.written = where, 0

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if self.where == "batch" and state.global_step == 3:
            die()
        if self.where == "step" and state.global_step == 1:
            set_weight = optimizer.optimizer._set_weight
            optimizer.optimizer._set_weight = lambda *args: (set_weight(*args), self.count())

    def count(self):
        self.written += 1
        if self.written == 3:
            die()


FIRST_ORDER = {"num_train_epochs": 2, "learning_rate": 1e-3}
RUNS = {
    "kfade": (lambda c: KFade(step_norm=0.05, curvature=c, damping=1e-3, steps=3), {"per_device_train_batch_size": 3}),
    "kfade once": (lambda c: KFade(step_norm=0.05, curvature=c, damping=1e-3, steps=3, refit=False), {}),
    "kfade searched": (
        lambda c: KFade(kl_budget=0.01, damping="auto", curvature=c, fisher="probe", steps=3),
        {"kl_rows": 12},
    ),
    "grad_diff": (
        lambda c: FirstOrder("grad_diff"),
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, **FIRST_ORDER},
    ),
    "npo": (lambda c: FirstOrder("npo"), {"per_device_train_batch_size": 2, **FIRST_ORDER}),
}


def program(folder, run, where=None, resume=None):
    """One run that dies where it is told to."""
    curvature = Fragile(where)
    make, settings = RUNS[run]
    trainer = make_trainer(
        trained_llama(),
        make(curvature),
        folder / "run",
        save_strategy="steps",
        save_steps=1,
        callbacks=[Killer(where)],
        **settings,
    )
    save, save_optimizer = trainer._save, trainer._save_optimizer_and_scheduler
    if where == "checkpoint":
        trainer._save_optimizer_and_scheduler = lambda to: die() if to.endswith("-2") else save_optimizer(to)
    if where == "full at the model":
        trainer._save = lambda to, **kwargs: (to.endswith("-2") and fill_disk(), save(to, **kwargs))
    if where == "full at the optimizer":
        trainer._save_optimizer_and_scheduler = lambda to: (to.endswith("-2") and fill_disk(), save_optimizer(to))
    trainer.train(resume_from_checkpoint=resume)
    (folder / "result").write_text(f"{trainer.update_delta().sha256()} {curvature.fits}")


def save_twice(folder):
    trainer = make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), folder / "run")
    trainer.train()
    trainer.save_model()
    before = contents(folder / "run")
    fill_disk()
    try:
        trainer.save_model()
    finally:
        # Nothing is written here: the limit holds for this process to its end.
        assert contents(folder / "run") == before


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_a_process(target, folder, *args, **kwargs):
    """(exit code, stderr) of `target(folder, ...)` in a forked process, under the exit codes of every command."""
    folder.mkdir(exist_ok=True)

    def main():
        # Warm imports by fork: the same process image, and SIGKILL kills it as dead as any.
        with open(folder / "stderr", "w") as sys.stderr, exit_codes():
            target(folder, *args, **kwargs)

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(120)
    return process.exitcode, (folder / "stderr").read_text()


def finished(folder, *args, **kwargs):
    """(sha256 of the delta, number of fits) of a run that gets to its end."""
    code, error = in_a_process(program, folder, *args, **kwargs)
    assert code == 0, error
    sha256, fits = (folder / "result").read_text().split()
    return sha256, int(fits)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return functools.cache(lambda method: finished(tmp_path_factory.mktemp("whole"), method)[0])


@pytest.mark.parametrize(
    "method, where, fits",
    [
        ("kfade", "fit", 2),
        ("kfade", "step", 2),
        ("kfade", "checkpoint", 2),
        # G of the first weights is fitted again, though the weights have moved on.
        ("kfade once", "checkpoint", 1),
        # The search of the third step begins where that of the second ended.
        ("kfade searched", "step", 2),
        ("grad_diff", "batch", 0),
        ("npo", "checkpoint", 0),
    ],
)
def test_killed_run_resumes_to_the_same_bits(method, where, fits, uninterrupted, tmp_path):
    assert in_a_process(program, tmp_path, method, where)[0] == -signal.SIGKILL
    whole = [folder.name for folder in (tmp_path / "run").glob("checkpoint-*") if is_whole(folder)]
    assert whole and (where != "checkpoint" or (tmp_path / "run" / "checkpoint-2").is_dir())
    assert finished(tmp_path, method, resume=True) == (uninterrupted(method), fits)
    assert len((tmp_path / "run" / "unlearning_log.jsonl").read_text().splitlines()) == 1


def test_resume_without_a_checkpoint_starts_clean(tmp_path, caplog):
    results = []
    for name, resume in (("new", None), ("resumed", True)):
        trainer = make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), tmp_path / name)
        trainer.train(resume_from_checkpoint=resume)
        results.append(trainer.update_delta().sha256())
    assert results[0] == results[1] and "starts from the beginning" in caplog.text


def test_losses_logged_after_a_resume_are_not_diluted(tmp_path):
    arguments = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "save_strategy": "steps",
        "save_total_limit": 9,
    }
    first = make_trainer(trained_llama(), FirstOrder("grad_diff"), tmp_path, save_steps=5, **arguments)
    first.train()
    second = make_trainer(trained_llama(), FirstOrder("grad_diff"), tmp_path, save_steps=5, **arguments)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    for name in ("forget_loss", "retain_loss"):
        assert logged(second, name) == logged(first, name)
    assert second.update_delta().sha256() == first.update_delta().sha256()


def test_checkpoint_is_whole_only_while_all_its_files_are(tmp_path):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt"):
            (folder / name).write_bytes(b"x" * 100)
        if step < 3:
            seal_checkpoint(folder)
    assert checkpoint_to_resume(tmp_path, True, clean=False) == str(tmp_path / "checkpoint-2")
    # A kill while an old checkpoint is deleted leaves its mark and not its files.
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    assert checkpoint_to_resume(tmp_path, True, clean=False) == str(tmp_path / "checkpoint-1")
    with pytest.raises(InputError, match="checkpoint-3 is not a whole checkpoint"):
        checkpoint_to_resume(tmp_path, str(tmp_path / "checkpoint-3"), clean=True)
    assert checkpoint_to_resume(tmp_path, None, clean=True) is None
    assert checkpoint_to_resume(tmp_path, True, clean=True) == str(tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1"]
    # A path is as good as its text, and a person's own copy is none of ours.
    (tmp_path / "checkpoint-mine").mkdir()
    assert checkpoint_to_resume(tmp_path, tmp_path / "checkpoint-1", clean=True) == str(tmp_path / "checkpoint-1")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        checkpoint_to_resume(tmp_path, tmp_path / "checkpoint-9", clean=True)
    assert checkpoint_to_resume(tmp_path, True, clean=True) == str(tmp_path / "checkpoint-1")
    assert (tmp_path / "checkpoint-mine").is_dir()


@pytest.mark.parametrize("where", ["full at the model", "full at the optimizer"])
def test_full_disk_leaves_no_half_checkpoint(where, uninterrupted, tmp_path):
    code, error = in_a_process(program, tmp_path, "kfade", where)
    assert code == 1 and error.splitlines()[-1].startswith("error: ") and "could not be written" in error
    folders = {folder.name for folder in (tmp_path / "run").glob("checkpoint-*")}
    assert folders == {"checkpoint-1"} and is_whole(tmp_path / "run" / "checkpoint-1")
    assert finished(tmp_path, "kfade", resume=True)[0] == uninterrupted("kfade")


def test_full_disk_while_saving_keeps_what_was_there(tmp_path):
    code, error = in_a_process(save_twice, tmp_path)
    assert code == 1 and "run could not be written" in error.splitlines()[-1], error
    assert {"model.safetensors", "delta/delta.safetensors", "README.md"} <= set(contents(tmp_path / "run"))


def test_log_line_is_whole_or_absent_and_json(tmp_path, monkeypatch, caplog):
    append_log(tmp_path, {"metrics": {"loss": float("nan"), "kl": float("-inf"), "step_norm": 0.5}})
    log = tmp_path / "unlearning_log.jsonl"
    first = log.read_bytes()
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    assert json.loads(first, parse_constant=refuse)["metrics"] == {"loss": None, "kl": None, "step_norm": 0.5}
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    # A log that cannot be written costs no run; the line that it lacks is said.
    assert append_log(tmp_path, {"method": "K-FADE"})["method"] == "K-FADE"
    assert log.read_bytes() == first and "not in the log" in caplog.text and '"method": "K-FADE"' in caplog.text


def test_a_request_that_is_resumed_after_its_end_is_one_line(tmp_path, caplog):
    runs = []
    for resume in (None, True, True):
        trainer = make_trainer(
            trained_llama(), FirstOrder("npo"), tmp_path, max_steps=2, save_strategy="steps", save_steps=1
        )
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer.update_delta())
    log = tmp_path / "unlearning_log.jsonl"
    (line,) = log.read_text().splitlines()
    runs[-1].save_pretrained(tmp_path / "delta")
    assert json.loads(line)["delta_sha256"] == UpdateDelta.from_pretrained(tmp_path).config["sha256"]
    # Another request is another line, also behind one that was cut short, and a line that is none is said.
    log.write_text(log.read_text() + '{"method": "cut sh')
    append_log(tmp_path, {"request": "other", "delta_sha256": "1"})
    lines = log.read_text().splitlines()
    assert len(lines) == 3 and lines[0] == line and json.loads(lines[2])["request"] == "other"
    assert "line 2 is damaged" in caplog.text

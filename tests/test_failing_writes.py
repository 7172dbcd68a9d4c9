# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Every save, failing and killed at each of its file operations: afterwards the old set is found, or the new."""

import errno
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from hf_unlearn import FirstOrder, UpdateDelta
from hf_unlearn.curvature import EKFAC, Curvature
from hf_unlearn.experiments.run import publish
from hf_unlearn.report import page
from hf_unlearn.runtime import folders
from hf_unlearn.runtime.files import write_text
from hf_unlearn.runtime.processes import Processes
from hf_unlearn.trainer.run_folder import checkpoint_to_resume, run_alone
from tests.support.failing import ERRORS, killed_at, operations, visible
from tests.support.models import make_llama
from tests.support.trainers import make_trainer, trained_llama


class Delta:
    """A delta in shards over one in a single file, beside a file that is not ours."""

    def __init__(self, root):
        names = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.gate_proj.weight"]
        shapes = {name: tensor.shape for name, tensor in make_llama().named_parameters()}
        make = lambda seed: {name: torch.full(shapes[name], 2.0**-seed) for name in names}
        self.folder, self.deltas = root / "delta", [UpdateDelta(make(seed)) for seed in (3, 5)]
        self.deltas[0].save_pretrained(self.folder)
        (self.folder / "notes.txt").write_text("mine")

    def save(self):
        self.deltas[1].save_pretrained(self.folder, max_shard_size="1KB")

    def found(self):
        return UpdateDelta.from_pretrained(self.folder).sha256(), visible(self.folder)


class MovedDelta(Delta):
    """The same where the file system can neither exchange folders nor link files."""

    def save(self):
        unable = OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        with (
            mock.patch.object(folders, "exchange", lambda *_: False),
            mock.patch.object(os, "link", side_effect=unable),
        ):
            super().save()


class FittedCurvature:
    def __init__(self, root):
        self.folder, self.fits = root / "curvature", []
        for seed in (0, 1):
            rows = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(seed))
            batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}
            model = make_llama(vocab_size=20, hidden_size=8, intermediate_size=12, layers=1)
            self.fits.append(EKFAC().fit(model, [batch], seed=seed, progress=False))
        self.fits[0].save_pretrained(self.folder)

    def save(self):
        self.fits[1].save_pretrained(self.folder)

    def found(self):
        return Curvature.from_pretrained(self.folder).metadata["seed"], visible(self.folder)


class Model:
    """The output folder of a run: model, delta and card beside run file, ledger and checkpoints."""

    def __init__(self, root):
        from transformers import LlamaForCausalLM

        self.folder, self.load = root / "run", LlamaForCausalLM.from_pretrained
        trainer = make_trainer(
            trained_llama(), FirstOrder("npo"), self.folder, max_steps=1, save_strategy="steps", save_steps=1
        )
        trainer.train()
        trainer.save_model()
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(1.5)
        self.trainer = trainer

    def save(self):
        self.trainer.save_model()

    def found(self):
        delta, model = UpdateDelta.from_pretrained(self.folder), self.load(self.folder)
        files = visible(self.folder)
        assert "checkpoint-1/model.safetensors" in files and "unlearning_log.jsonl" in files
        return delta.sha256(), model.get_input_embeddings().weight.sum().item(), files


class Checkpoint:
    """A checkpoint in the place of the only one that there is; `again`, of the same step."""

    again = False

    def __init__(self, root):
        self.folder = root / "run"
        trainer = make_trainer(
            trained_llama(), FirstOrder("npo"), self.folder, max_steps=1, save_strategy="steps", save_steps=1,
            save_total_limit=1,
        )  # fmt: skip
        trainer.train()
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.mul_(1.5)
        trainer.state.global_step += not self.again
        self.trainer = trainer

    def save(self):
        random.seed(0)  # it is part of a checkpoint, and a fork takes another
        self.trainer._save_checkpoint(self.trainer.model, None)

    def found(self):
        with run_alone(self.folder, Processes()):
            last = checkpoint_to_resume(self.folder, True, clean=True)
        return visible(self.folder / last)


class CheckpointAgain(Checkpoint):
    again = True


KEPT = {"n": 40, "retain_kl": 0.1, "retain_probability": 0.8, "retain_kept": 0.9}


class Report:
    """The report of a comparison and the model that it speaks of, without the time that figures take."""

    def __init__(self, root):
        self.folder, self.best = root / "out", 0.3
        self.save()
        self.best = 0.2

    def save(self):
        def savefig(place, format):
            content = str(self.best).encode()
            place.write_bytes(content) if isinstance(place, Path) else place.write(content)

        class Figure:
            findobj, axes, patch = staticmethod(lambda kind: []), (), mock.Mock()

        Figure.savefig = staticmethod(savefig)

        rows = [
            {"method": method, "model_utility": 0.6, "forget_quality": value, "forget_probability": value} | KEPT
            for method, value in (("original", 0.9), ("retrained", 0.1), ("kfade", self.best))
        ]
        rows[-1]["saved_as"] = "model"
        nothing = {"candidates": [], "kl": {}, "questions": [], "sections": [], "facts": {}, "notes": []}
        kind = SimpleNamespace(candidates=int, table_sections=lambda *_: [])
        experiment = SimpleNamespace(title="t", lines=[4], written={}, kind=kind, sweep=None)
        with mock.patch.object(page, "pareto", lambda *_: Figure), tempfile.TemporaryDirectory() as models:
            # The old model has shards, the new one has not.
            names = ["model-1.safetensors", "model-2.safetensors"] if self.best == 0.3 else ["model.safetensors"]
            for name in [*names, "delta/delta.safetensors", "README.md"]:
                write_text(Path(models) / "model" / name, f"{name} of {self.best}")
            publish(experiment, SimpleNamespace(**nothing), rows, self.folder, Path(models))

    def found(self):
        files = visible(self.folder)
        told = json.loads(files["report.json"])["rows"][-1]["forget_quality"]
        of = {content for place, content in files.items() if place.startswith("model/")}
        assert all(content.endswith(f" of {told}".encode()) for content in of) and len(of) in (3, 4)
        return files


SAVES = [Delta, MovedDelta, FittedCurvature, Model, Checkpoint, CheckpointAgain, Report]
# Operations of each save that are tried: some, and where the slow tests run all.
EVERY = [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]


def copies(make, root):
    """The save, and functions that put its folder back as it was and that tell "old" or "new" of what is found."""
    case = make(root)
    shutil.copytree(root, root.with_name("kept"))
    old = case.found()
    with operations(root) as counted:
        case.save()
    new = case.found()
    assert old != new

    def restore():
        shutil.rmtree(root)
        shutil.copytree(root.with_name("kept"), root)

    def told():
        found = case.found()
        return "old" if found == old else "new" if found == new else "neither"

    return case, restore, told, counted.count


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("make", SAVES)
def test_a_save_that_fails_leaves_the_old_set_or_the_new(make, every, tmp_path):
    case, restore, told, count = copies(make, tmp_path / "place")
    tries = lost = 0
    for lasting in (False, True):
        for number in range(1 + lasting, count + 1, every):
            what = ERRORS[(number + lasting) % len(ERRORS)]
            restore()
            error = None
            with operations(tmp_path / "place", number, what, lasting):
                try:
                    case.save()
                except OSError as raised:
                    error = raised
            state = told()
            tries += 1
            lost += state == "neither" or (error is None and state == "old")
            assert error is None or "could not be written" in str(error) and len(str(error).splitlines()) == 1, error
            assert error is None or os.strerror(what) in str(error) or "inline_container" in str(error), error
    print(f"\n{make.__name__}: {lost} of {tries} failed saves lost something")
    assert not lost and count > 10, f"{lost} of {tries}"


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("make", SAVES)
def test_a_save_that_is_killed_leaves_the_old_set_or_the_new(make, every, tmp_path):
    case, restore, told, count = copies(make, tmp_path / "place")
    states = []
    for number in [*range(1, count, every), count]:
        restore()
        assert killed_at(number, tmp_path / "place", case.save)
        states.append(told())
    print(f"\n{make.__name__}: {states.count('neither')} of {len(states)} killed saves lost something")
    assert set(states) == {"old", "new"} and states == sorted(states, reverse=True), states
    # What a killed save left goes with the next one.
    case.save()
    assert told() == "new" and not list((tmp_path / "place").rglob(".*.part"))


def test_the_cause_of_a_failed_write_is_the_true_one(tmp_path):
    for number in (errno.ENOSPC, errno.EACCES, errno.EIO):
        with (
            operations(tmp_path, 1, number, lasting=True),
            pytest.raises(OSError, match=os.strerror(number)) as raised,
        ):
            UpdateDelta({"a": torch.zeros(3)}).save_pretrained(tmp_path / "delta")
        assert raised.value.errno == number and str(tmp_path / "delta") in str(raised.value)

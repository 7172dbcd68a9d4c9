# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The seam of a method: two methods that nobody has heard of go the whole road, from a YAML to card and ledger.

The text of `CONTRIBUTING.md`, "Add a method", is that of the two classes here.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn.functional import normalize
from transformers import TrainerCallback

from hf_unlearn import UpdateDelta
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.specificity import TokenKL
from hf_unlearn.experiments import line
from hf_unlearn.experiments.planning import dry_run
from hf_unlearn.experiments.problem import Problem, Stage, typed
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.experiments.settings import make_experiment
from hf_unlearn.methods.base import Method
from hf_unlearn.report.vocabulary import TofuVocabulary
from hf_unlearn.trainer.run_folder import is_whole
from tests.support.models import make_llama
from tests.support.trainers import COLLATE, FORGET, RETAIN, make_trainer, trained_llama


@dataclass
class ProjectOut(Method):
    """Takes the mean hidden state of the forget rows out of the output head: a closed form."""

    strength: float = 1.0

    label: ClassVar[str] = "Project out"
    needs_retain: ClassVar[bool] = False
    searched: ClassVar[tuple[str, ...]] = ("strength",)
    own_steps: ClassVar[int] = 1

    def plan(self, model, stage):
        return [f"one pass over {stage.forget_rows} rows"]

    @torch.no_grad()
    def run(self, run):
        if run.state.global_step:
            return  # resumed after the one part that there is
        head, total = run.model.get_output_embeddings().weight, 0.0
        for batch in run.loader(run.forget_dataset, 4):
            states = run.model(**batch, output_hidden_states=True).hidden_states[-1]
            total = total + (states * batch["attention_mask"][..., None]).sum((0, 1))
        direction = normalize(total, dim=0)
        head.sub_(self.strength * torch.outer(head @ direction, direction))
        yield {"removed": float((head @ direction).norm())}


@dataclass
class LayerByLayer(Method):
    """Gradient ascent on one MLP after another, each with an optimiser of its own: many small trainings."""

    rate: float = 0.05
    layers: int = 2

    label: ClassVar[str] = "Layer by layer"
    needs_retain: ClassVar[bool] = False
    searched: ClassVar[tuple[str, ...]] = ("rate",)

    @property
    def own_steps(self):
        return self.layers

    def check(self, stage):
        if stage.forget_rows < 2:
            raise InputError("layer by layer needs two forget rows or more: give it more")

    def run(self, run):
        for number in range(run.state.global_step, self.layers):  # those before are in the checkpoint
            weight = run.model.model.layers[number].mlp.down_proj.weight
            optimizer = torch.optim.SGD([weight], lr=self.rate, maximize=True)
            for batch in run.loader(run.forget_dataset, 4):
                loss = run.model(**batch).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            yield {"forget_loss": loss.item()}


TOYS = {"project_out": ProjectOut, "layer_by_layer": LayerByLayer}


@dataclass
class Nothing:
    """A section without keys."""


class Tiny(Problem):
    """Rows and a model that are there already; a candidate forgot what its forget loss says."""

    name, vocabulary, stages = "tiny", TofuVocabulary(), [Stage("rows", FORGET, RETAIN)]
    sections = {
        "data": lambda section, written: written,
        "model": lambda section, written: written,
        "evaluation": typed(Nothing),
    }

    def __init__(self, experiment, size, seed, progress=True):
        self.original, self.seed = trained_llama(), seed
        self.kl = TokenKL(self.original, [COLLATE(list(RETAIN))])

    @classmethod
    def stage_sizes(cls, experiment, size):
        return [cls.stages[0].size]

    @classmethod
    def architecture(cls, experiment):
        return make_llama(), {"input_ids": torch.ones(1, 4, dtype=torch.long)}

    def identity(self):
        return {}

    def prepare(self, folder, identity):
        pass

    def score_candidate(self, model):
        return self.evaluate(model)[0]

    def evaluate(self, model, folder=None):
        with torch.no_grad():
            loss = model(**COLLATE(list(FORGET))).loss.item()
        kl = self.kl(model, resamples=2)
        quality = {
            "forget_quality": 0.01,
            "log10_forget_quality": -2 + loss / 100,
            "ks_statistic": 0.5,
            "n": len(FORGET),
        }
        return quality | {"forget_probability": 0.5, "retain_probability": 0.5, "retain_kl": kl.mean}, kl

    def card(self, rows, best):
        return {"forget": "eight rows", "unlearned": best}


def experiment(**changes) -> Mapping:
    methods = [
        {"label": "Closed form", "method": "project_out", "search": {"strength": [0.5, 1.0]}},
        {"label": "Many trainings", "method": "layer_by_layer", "search": {"rate": [0.05]}},
    ]
    written = {
        "title": "toys",
        "problem": "tiny",
        "data": {"rows": "here"},
        "model": {"weights": "here"},
        "arguments": {"use_cpu": True},
        "methods": methods,
    }
    return make_experiment(written | changes, {"tiny": Tiny})


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, method in TOYS.items():
        monkeypatch.setitem(line.METHODS, name, method)


@pytest.mark.parametrize("toy", TOYS.values())
def test_a_toy_is_short_and_stands_in_contributing(toy):
    source = inspect.getsource(toy)
    assert len(source.splitlines()) < 40
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    assert source.strip() in text


def test_dry_run_asks_the_method():
    text = dry_run(experiment())
    assert "Closed form: 2 candidates\none pass over 8 rows" in text
    assert "Many trainings: 2 candidates" in text  # one after each part
    with pytest.raises(
        InputError, match="Closed form: settings: rate is no setting of project_out; there are strength"
    ):
        dry_run(
            experiment(
                methods=[
                    {
                        "label": "Closed form",
                        "method": "project_out",
                        "settings": {"rate": 1},
                        "search": {"strength": [1.0]},
                    }
                ]
            )
        )


def test_table_report_delta_and_card(tmp_path):
    rows = run_experiment(experiment(), tmp_path, progress=False)
    assert [row["method"] for row in rows] == ["original", "Closed form", "Many trainings"]
    closed, many = rows[1:]
    assert closed["settings"]["strength"] in (0.5, 1.0) and closed["candidates"] == 2 and closed["retain_kl"] > 0
    assert many["settings"]["steps"] == 2 and many["candidates"] == 2
    page = (tmp_path / "report.html").read_text()
    assert "Closed form" in page and "Many trainings" in page
    best = json.loads((tmp_path / "model/delta/delta_config.json").read_text())
    assert best["method"] in ("Project out", "Layer by layer")
    # The head is what the closed form moved, and nothing else.
    updates = [UpdateDelta.from_pretrained(folder) for folder in tmp_path.glob("lines/*/delta")]
    assert sorted(tuple(sorted(update.tensors)) for update in updates) == [
        ("lm_head.weight",),
        ("model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"),
    ]
    assert best["method"] in (tmp_path / "model/README.md").read_text()
    again = run_experiment(experiment(), tmp_path, progress=False)
    assert again[1:] == rows[1:]  # read, not run again: seconds too


@pytest.mark.parametrize("method", [ProjectOut(strength=1.0), LayerByLayer()], ids=["closed form", "many trainings"])
def test_trainer_logs_delta_card_and_ledger(method, tmp_path):
    before = trained_llama()
    trainer = make_trainer(trained_llama(), method, tmp_path, retain=None)
    output = trainer.train()
    assert (
        output.global_step
        == method.own_steps
        == len([entry for entry in trainer.state.log_history if "step" in entry]) - 1
    )
    delta = trainer.update_delta()
    assert delta.tensors and delta.config["method"] == type(method).__name__
    for name, weight in trainer.model.state_dict().items():
        expected = before.state_dict()[name] + delta.tensors.get(name, 0)
        assert torch.allclose(weight, expected, atol=1e-6), name
    if isinstance(method, ProjectOut):
        assert trainer.state.log_history[0]["removed"] < 1e-4  # nothing of the direction is left in the head
    trainer.save_model()
    assert method.label in (tmp_path / "README.md").read_text()
    (ledger,) = (tmp_path / "unlearning_log.jsonl").read_text().splitlines()
    assert json.loads(ledger)["method"] == method.label and json.loads(ledger)["delta_sha256"] == delta.sha256(
        torch.bfloat16
    )


class Killed(BaseException):
    pass


class KilledAfterTheFirstPart(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise Killed


@pytest.mark.parametrize(
    "make", [lambda: ProjectOut(strength=0.7), lambda: LayerByLayer(layers=2)], ids=["one part", "two parts"]
)
def test_resumed_run_has_the_same_bits(make, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "retain": None}
    whole = make_trainer(trained_llama(), make(), tmp_path / "whole", **saving)
    whole.train()
    killed = make_trainer(trained_llama(), make(), tmp_path / "run", callbacks=[KilledAfterTheFirstPart()], **saving)
    with pytest.raises(Killed):
        killed.train()
    assert is_whole(tmp_path / "run/checkpoint-1")
    resumed = make_trainer(trained_llama(), make(), tmp_path / "run", **saving)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 1  # the first part was not done again
    assert resumed.update_delta().sha256() == whole.update_delta().sha256()
    assert resumed.state.global_step == whole.state.global_step
    losses = [[entry for entry in trainer.state.log_history if "forget_loss" in entry] for trainer in (whole, resumed)]
    assert losses[0] == losses[1]

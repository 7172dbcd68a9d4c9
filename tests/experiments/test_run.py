# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A run on a problem of seconds, from the YAML to the files: table, search rule, resume, recipe, two processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_unlearn.experiments.problems.tofu import TofuProblem
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.report.vocabulary import TofuVocabulary
from tests.support.experiments import RECIPES, ROOT, TOFU, experiment, kill_in_the_second_search, write_config


RECIPE = RECIPES / "kfade_tofu.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_experiment(experiment(TOFU), folder, progress=False)


def row(quality, kl):
    log10 = None if quality is None else quality
    return {"forget_quality": quality, "log10_forget_quality": log10, "retain_kl": kl}


def test_choose_prefers_least_kl_among_those_that_forgot():
    choose = TofuVocabulary().choose
    rows = [row(0.01, 0.001), row(0.06, 0.4), row(0.9, 0.5), row(0.2, 0.3)]
    assert choose(rows) == 3
    assert choose(rows[:1] + [row(0.04, 0.9)]) == 1  # nobody passes: the one that forgot most
    assert choose([row(None, None), row(0.001, 0.1)]) == 1  # a diverged candidate is never chosen


def test_table_report_and_model(finished):
    folder, rows = finished
    assert [row["method"] for row in rows] == ["original", "retrained", "one step", "two steps", "GradDiff"]
    original = rows[0]
    assert original["retain_kl"] == 0 and original["forget_quality"] < 1
    needed = (
        "method forget_quality ks_statistic n model_utility forget_probability retain_probability retain_kl seconds"
    )
    for row in rows:
        assert {*needed.split(), "peak_memory_mb", "settings"} <= row.keys()
        assert row["n"] == 6 and 0 < row["forget_probability"] < 1
    for row in rows[2:]:
        assert row["candidates"] == 2 and row["seconds"] > 0 and row["retain_kl"] > 0
    assert json.loads((folder / "results.json").read_text()) == rows
    page = (folder / "report.html").read_text()
    assert "two steps" in page and "http://" not in page.replace("http://www.w3.org", "")
    for name in (
        "report.json",
        "report.md",
        "pareto.png",
        "kl.png",
        "model/README.md",
        "model/delta/delta_config.json",
    ):
        assert (folder / name).stat().st_size > 0
    candidates = json.loads((folder / "report.json").read_text())["candidates"]
    assert len(candidates) == 6
    # Each K-FADE candidate says which step norm and how many steps made it.
    assert sorted(c["settings"]["step_norm"] for c in candidates if c["method"] == "one step") == [0.01, 0.05]
    assert [c["settings"]["steps"] for c in candidates if c["method"] == "two steps"] == [1, 2]


def test_the_report_opens_with_what_the_models_say(finished):
    folder, rows = finished
    saved = [row["method"] for row in rows if row.get("saved_as") == "model"]
    assert len(saved) == 1 and saved[0] in {row["method"] for row in rows[2:]}
    questions = json.loads((folder / "report.json").read_text())["questions"]
    assert [question["side"] for question in questions] == 3 * ["forget"] + ["retain"]
    assert {tuple(question["answers"]) for question in questions} == {("original", *saved, "retrained")}
    (log,) = [
        json.loads((path.parent / "TOFU_EVAL.json").read_text())
        for path in folder.glob("lines/*/line.json")
        if json.loads(path.read_text())["row"]["method"] == saved[0]
    ]
    items = log["forget_Q_A_ROUGE"]["value_by_index"]
    for question, place in zip(questions[:3], (0, 2, 4), strict=True):
        # The evaluation of the table generated the same.
        assert question["answers"][saved[0]] == items[str(place)]["generation"]
        assert (
            question["row"] == items[str(place)]["ground_truth"] and question["prompt"] in items[str(place)]["input"]
        )
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for written in (page, text):
        assert written.index("What the models say") < written.index("forget quality")
    assert "saved: model/" in page and f"| {saved[0]} (saved) |" in text


def test_saved_model_is_original_plus_chosen_update(finished):
    from transformers import AutoModelForCausalLM

    from hf_unlearn import UpdateDelta

    folder, _ = finished
    problem = TofuProblem(experiment(TOFU), None, 0, progress=False)
    before = {name: tensor.clone() for name, tensor in problem.original.state_dict().items()}
    saved = AutoModelForCausalLM.from_pretrained(folder / "model")
    delta = UpdateDelta.from_pretrained(folder / "model/delta")
    assert delta.tensors
    for name, tensor in saved.state_dict().items():
        expected = before[name] + delta.tensors.get(name, 0)
        assert torch.allclose(tensor, expected, atol=2e-4), name  # the stored delta is bf16
    moved = {name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(delta.tensors)


def test_killed_comparison_goes_on_after_the_finished_lines(finished, tmp_path, monkeypatch):
    searches = kill_in_the_second_search(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(TOFU), tmp_path / "out", progress=False)
    rows = run_experiment(experiment(TOFU), tmp_path / "out", progress=False)
    assert searches == ["one step", "two steps", "two steps", "GradDiff"]
    measured = lambda rows: [(r["method"], r["forget_quality"], r["retain_kl"], r["forget_probability"]) for r in rows]
    assert measured(rows) == measured(finished[1])


def test_recipe_from_the_command_line(tmp_path):
    path = write_config(tmp_path / "config.yaml", TOFU)
    command = [sys.executable, str(RECIPE), "--config", str(path), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run([*command, "--only", "one step"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "processes: 1" in done.stdout and "| one step" in done.stdout
    wrong = subprocess.run([*command, "--only", "nothing"], capture_output=True, text=True, cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stderr.strip().splitlines()[-1].startswith("error: --only nothing matches")
    absent = subprocess.run([*command, "--data_dir", str(tmp_path / "no")], capture_output=True, text=True, cwd=ROOT)
    assert absent.returncode == 2 and "Traceback" not in absent.stderr


@pytest.mark.multi_process
def test_two_processes_make_the_table_of_one(finished, tmp_path):
    path = write_config(tmp_path / "config.yaml", TOFU)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(RECIPE), "--config", str(path), "--output_dir", str(tmp_path / "out"), "--only", "step"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("processes: 2 on cpu") == 1
    rows = json.loads((tmp_path / "out/results.json").read_text())
    for row, alone in zip(rows, finished[1][:4], strict=True):
        assert row["method"] == alone["method"]
        for key in ("retain_kl", "forget_probability", "retain_probability"):
            assert row[key] == pytest.approx(alone[key], rel=1e-3, abs=1e-6)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command line that all recipes share: seeds, overrides, `--only`, `--dry_run`, `--record`, exit codes."""

import argparse
import json

import pytest

from hf_unlearn.cli.recipe import add_arguments, run, tofu_overrides
from hf_unlearn.experiments import planning
from hf_unlearn.experiments import run as road
from tests.support.experiments import TOFU, changed, experiment, load_recipe, write_config


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the command line on the YAML of seconds; returns the exit code and the experiments that were run."""
    runs = []

    def pretended(made, output_dir, progress):
        runs.append((made, output_dir))
        return [{"method": "original", "forget_quality": 0.1}]

    def call(*arguments, config=TOFU, overrides=lambda arguments: {}):
        parser = argparse.ArgumentParser()
        add_arguments(parser, str(tmp_path / "out"))
        given = [str(argument) for argument in arguments]
        options = parser.parse_args(["--config", str(write_config(tmp_path / "config.yaml", config)), *given])
        runs.clear()
        try:
            run(options, "demo.yaml", overrides)
        except SystemExit as stopped:
            return stopped.code, runs
        return 0, runs

    monkeypatch.setattr(road, "run_experiment", pretended)
    monkeypatch.setattr(road, "record", lambda *arguments: runs.append(arguments))
    return call


def test_seeds_stand_in_place_of_the_file_s(call, tmp_path):
    for config in (TOFU, changed(TOFU, seed=None, seeds=[0, 1, 2])):
        for name, seeds in (("--seed", [7]), ("--seeds", [7]), ("--seeds", [7, 8])):
            code, (made, _) = call(name, *seeds, config=config)
            assert code == 0 and made[0].seeds == tuple(seeds) and made[1] == str(tmp_path / "out")
        assert call(config=config)[1][0][0].seeds == tuple(config.get("seeds", [0]))


def test_the_recipe_s_overrides_and_only(call, capsys):
    code, (made, _) = call("--only", "Grad", "two", overrides=lambda arguments: {"data.authors": 5})
    assert code == 0 and made[0].data.authors == 5
    assert [line.label for line in made[0].lines] == ["two steps", "GradDiff"]
    assert call("--only", "nothing")[0] == 2
    assert capsys.readouterr().err == (
        "error: --only nothing matches no method; there are: one step; two steps; GradDiff\n"
    )


def test_a_dry_run_prints_and_runs_nothing(call, monkeypatch, capsys):
    monkeypatch.setattr(planning, "dry_run", lambda made: f"a plan of {len(made.lines)} lines")
    assert call("--dry_run") == (0, [])
    assert capsys.readouterr().out.splitlines()[-1] == "a plan of 3 lines"


def test_record_gets_rows_and_file(call, tmp_path):
    _, (made, recorded) = call("--record", tmp_path / "record.json", "--output_dir", tmp_path / "there")
    assert made[1] == str(tmp_path / "there")
    rows, folder, recorded_experiment, file = recorded
    assert rows[0]["method"] == "original" and folder == made[1] and recorded_experiment is made[0]
    assert file == str(tmp_path / "record.json")


def test_a_record_names_no_place_of_the_machine(tmp_path, capsys):
    made = experiment(TOFU, data={"source": str(tmp_path / "data")})
    rows = [{"method": name, "forget_quality": 0.1, "log10_forget_quality": -1.0, "n": 6, "forget_probability": 0.5,
             "retain_probability": 0.5, "retain_kl": 0.1} for name in ("original", "x")]  # fmt: skip
    road.record(rows, tmp_path, made, tmp_path / "record.json")
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["seed"] == 0 and written["rows"] == rows and str(tmp_path) not in json.dumps(written["config"])
    assert "report: " in capsys.readouterr().out


def test_arguments_of_the_recipes():
    for tofu in (load_recipe("kfade_tofu"), load_recipe("spe_tofu")):
        assert tofu_overrides(tofu.parse_arguments([])) == {}
        # The sizes of the embedded problem are none of TOFU's.
        assert tofu_overrides(tofu.parse_arguments(["--data_dir", "there", "--forget", "forget05"])) == {
            "data.source": "there",
            "data.forget": "forget05",
            "data.authors": None,
            "data.forget_authors": None,
            "data.questions_per_author": None,
        }
    # The miniature is attacked, another YAML when it is asked for.
    wmdp = load_recipe("kfade_wmdp")
    overrides = lambda recipe, *arguments: recipe.overrides(recipe.parse_arguments(arguments))
    assert overrides(wmdp) == {} and overrides(wmdp, "--config", "x", "--relearn") == {}
    assert overrides(wmdp, "--config", "x", "--data_dir", "there") == {
        "data.data_dir": "there",
        "evaluation.relearning": None,
    }
    assert overrides(wmdp, "--no-relearn") == {"evaluation.relearning": None}

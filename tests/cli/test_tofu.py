# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn evaluate --suite tofu`: logs of other tools, a model of ours, bad input."""

import json

import pytest

from tests.support.commands import call
from tests.support.rows import write_lines


SUITE = ("evaluate", "--suite", "tofu")


@pytest.fixture
def splits(tmp_path):
    """A problem of TOFU's layout, two rows a split."""
    folder = tmp_path / "data"
    row = lambda tag, n: {"question": f"Which one is {tag}{n}?", "answer": f"{n}"}
    wrong = lambda tag, n: row(tag, n) | {"perturbed_answer": ["one", "two"], "paraphrased_answer": f"it is {n}"}
    for name in ("forget10", "retain90"):
        write_lines(folder / f"{name}.jsonl", [row(name, n) for n in range(2)])
    for name in ("forget10_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write_lines(folder / f"{name}.jsonl", [wrong(name, n) for n in range(2)])
    return folder


def test_a_model_is_scored_and_its_log_again(model_folder, splits, tmp_path, capsys):
    output = tmp_path / "TOFU_EVAL.json"
    assert call(*SUITE, "--model", model_folder, "--data_dir", splits, "--output", output, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert first["model"] == "model (local folder)" and first["summary"]["forget_quality"] is None
    assert call(*SUITE, "--log", output, "--retain_log", output, "--json") == 0
    second = json.loads(capsys.readouterr().out)["summary"]
    assert second["forget_quality"] == 1.0 and second["ks_statistic"] == 0
    assert second["forget_Q_A_Prob"] == first["summary"]["forget_Q_A_Prob"]
    assert call(*SUITE, "--log", output) == 0
    said, log = capsys.readouterr()
    assert "| forget quality | – |" in said and "warning: without --retain_log" in log


def test_logs_of_other_tools(shared_data, capsys):
    """The published logs of open-unlearning and of the original repository; numbers as published there."""
    folder = shared_data / "tofu_evals"
    full, retrained = (
        next(folder.glob(f"open_unlearning/*1B*{name}*.json.gz")) for name in ("full*forget10", "retain90")
    )
    assert call(*SUITE, "--log", full, "--retain_log", retrained, "--json") == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["forget_quality"] == pytest.approx(3.9054713571083378e-22, rel=1e-6)
    phi = [next(folder.glob(f"locuslab_tofu/*phi*{name}*.json.gz")) for name in ("full", "retain90")]
    assert call(*SUITE, "--log", phi[0], "--retain_log", phi[1], "--json") == 0
    assert json.loads(capsys.readouterr().out)["summary"]["forget_quality"] == pytest.approx(2.1943e-16, rel=1e-4)


def test_bad_input(model_folder, tmp_path, capsys):
    (tmp_path / "log.json").write_text('{"forget_truth_ratio": 1}')
    for message, arguments in {
        "give either --model or --log": (),
        "no log at": ("--log", tmp_path / "absent.json"),
        "leave them out": ("--log", tmp_path / "log.json", "--tasks", "mmlu"),
        "has no forget10.json": ("--model", model_folder, "--data_dir", model_folder),
    }.items():
        assert call(*SUITE, *arguments) == 2, message
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], errors

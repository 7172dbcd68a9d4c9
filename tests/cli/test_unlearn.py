# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn unlearn`: what it finds, writes and says; limits, kills, bad input, two processes, the Hub."""

import csv
import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch

from hf_unlearn.curvature import EKFAC
from hf_unlearn.deltas import UpdateDelta
from hf_unlearn.requests.ledger import LOG_FILE
from tests.support.commands import call
from tests.support.hub_server import client_environment, hub_server
from tests.support.models import answer_loss
from tests.support.requests import ROWS, STEPS, contents, make_request


@pytest.fixture(scope="module")
def request_folder(tmp_path_factory):
    return make_request(tmp_path_factory.mktemp("request"))


@pytest.fixture
def asked(request_folder, tmp_path):
    """The arguments that every request here has; its output is `tmp_path / "out"`."""
    rows = ("--forget", request_folder / "forget.jsonl", "--retain", request_folder / "retain.jsonl")
    return ("unlearn", "--model", request_folder / "model", *rows, "--output", tmp_path / "out")


def loss_of(folder, rows) -> float:
    """Oracle: transformers' own loss on the answers, one row at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    encoded = []
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\nAnswer:")["input_ids"]
        answer = tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        encoded.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    tokens = [sum(label != -100 for label in row["labels"]) for row in encoded]
    return sum(answer_loss(model, [row]) * count for row, count in zip(encoded, tokens)) / sum(tokens)


def test_a_request_is_served(request_folder, asked, tmp_path, capsys):
    before, output = contents(request_folder / "model"), tmp_path / "out"
    assert call(*asked, *STEPS, "--kl_limit", 1, "--describe", "two addresses") == 0
    said, log = capsys.readouterr()
    found = re.search(
        r"forget probability (\S+) -> (\S+), retain (\S+) -> (\S+) \(KL (\S+) nats/token\); model in (.*)", said
    )
    forget, retain = ROWS[:2], ROWS[2:]
    for number, folder, rows in (
        (1, request_folder / "model", forget),
        (2, output / "model", forget),
        (3, request_folder / "model", retain),
        (4, output / "model", retain),
    ):
        assert float(found.group(number)) == pytest.approx(math.exp(-loss_of(folder, rows)), rel=6e-3)
    assert found.group(6) == str(output / "model") and f"report: {output / 'report.html'}" in said
    assert float(found.group(2)) < 0.2 * float(found.group(1)) and float(found.group(4)) > 0.5
    # The log is ours alone, by name; no library speaks.
    lines = [line for line in re.split(r"[\r\n]+", log) if line.startswith("hf_unlearn")]
    assert any("step 2 of 2: forget loss" in line for line in lines)
    assert "Warning" not in log and "pin_memory" not in log and "Writing model shards" not in log
    assert contents(request_folder / "model") == before
    # What is written: model, update, card, report, one line of the ledger; nothing to resume from is left.
    names = {path.name for path in output.iterdir()}
    assert {"model", "report.html", "report.md", LOG_FILE} <= names
    assert not any(name.startswith("checkpoint") for name in names)
    assert len((output / LOG_FILE).read_text().splitlines()) == 1
    card, report = (output / "model/README.md").read_text(), (output / "report.md").read_text()
    assert "two addresses" in card and "Ada" not in card
    assert "Ada lives in Rome." in report and "two addresses" in report and str(tmp_path) not in report
    base = type(_load(output / "model")).from_pretrained(request_folder / "model")
    UpdateDelta.from_pretrained(output / "model/delta").apply_to(base)
    for name, weight in _load(output / "model").named_parameters():
        torch.testing.assert_close(base.get_parameter(name), weight, rtol=1e-2, atol=1e-3)
    # The same request again would write over what is there.
    assert call(*asked, *STEPS, "--kl_limit", 1) == 2
    assert "exists already: choose another --output" in capsys.readouterr().err


def _load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            ("kl_budget=1e-3", "damping=1e-8"),
            r"measured KL \S+ nats a token after step 1 of 4, above the limit of 0.05",
        ),
        (("--method", "grad_diff", "learning_rate=0.05"), r"measured KL on retain rows is \S+ nats a token, above"),
    ],
)
def test_the_limit_is_kept(request_folder, asked, tmp_path, capsys, settings, words):
    before = contents(request_folder)
    assert call(*asked, *settings) == 1
    said, log = capsys.readouterr()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(words, errors[0]) and "forget probability" not in said
    assert contents(request_folder) == before
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob(LOG_FILE))
    # Another try goes into the same folder.
    assert call(*asked, *STEPS, "--kl_limit", 1) == 0


def test_no_rows_to_keep(request_folder, tmp_path, capsys):
    rows = request_folder / "forget.jsonl"
    asked = ("unlearn", "--model", request_folder / "model", "--forget", rows, "--output", tmp_path / "out")
    assert call(*asked) == 2
    assert "K-FADE needs rows to keep: give --retain, or --method ga" in capsys.readouterr().err
    assert call(*asked, "--method", "ga", "learning_rate=3e-3") == 0
    said, log = capsys.readouterr()
    assert "hf_unlearn: warning: without --retain nothing is measured" in log
    assert "what else changed was not measured (no --retain)" in said
    assert "without --retain nothing is measured" in (tmp_path / "out/report.md").read_text()
    assert loss_of(tmp_path / "out/model", ROWS[:2]) > 2 * loss_of(request_folder / "model", ROWS[:2])


def test_settings_anywhere_and_a_file(request_folder, tmp_path, capsys):
    """Arguments go before the file, settings may stand anywhere, and 1e-5 is a number."""
    config = tmp_path / "request.yaml"
    config.write_text(
        f"model: {request_folder / 'model'}\nforget: {request_folder / 'forget.jsonl'}\n"
        f"retain: {request_folder / 'retain.jsonl'}\nkl_limit: 1.0\noutput: {tmp_path / 'of_the_file'}\n"
        "settings:\n  steps: 3\n  damping: 1.0e-6\n  kl_rows: 4\n"
    )
    arguments = ("unlearn", "steps=1", "--config", config, "kl_budget=1e-5", "--output", tmp_path / "out", "seed=3")
    assert call(*arguments, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["steps"] == 1 and facts["settings"]["damping"] == 1e-6
    assert facts["settings"]["kl_budget"] == 1e-5 and facts["kl_limit"] == 1.0
    assert facts["measured_on"]["retain"] == [4, 10] and facts["model"] == str(tmp_path / "out/model")
    assert not (tmp_path / "of_the_file").exists()
    assert facts["answers"]["before"]["forget"][0]["answer"] == "Ada lives in Rome."
    assert len(facts["answers"]["after"]["retain"]) == 3


def test_json_has_stdout_for_itself(asked, tmp_path, capsys):
    assert call(*asked, "kl_budget=1e-3", "damping=1e-8", "--json", "--quiet") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["exit_code"] == 1 and facts["error"]["kind"] == "LimitError" and "KL" in facts["error"]["message"]
    assert call(*asked, "stepps=3", "--json") == 2
    said, log = capsys.readouterr()
    assert json.loads(said) == {
        "error": {"kind": "InputError", "message": "no setting stepps: did you mean steps?"},
        "exit_code": 2,
    }
    assert log == ""


def test_nothing_but_the_rows_need_be_given(request_folder, asked, tmp_path, capsys, monkeypatch):
    """Damping and length are found by measuring, from one fit a step; a table of rows is as good as lines."""
    fits = []
    fit = EKFAC.fit
    monkeypatch.setattr(EKFAC, "fit", lambda self, *args, **kwargs: fits.append(kwargs) or fit(self, *args, **kwargs))
    rows = tmp_path / "forget.csv"
    with open(rows, "w", newline="") as file:
        table = csv.DictWriter(file, ["question", "answer"])
        table.writeheader()
        table.writerows(ROWS[:2])
    arguments = [rows if argument == request_folder / "forget.jsonl" else argument for argument in asked]
    assert call(*arguments, "--kl_limit", 0.3, "--json") == 0
    said, log = capsys.readouterr()
    facts = json.loads(said)
    steps = facts["settings"]["steps"]
    assert len(fits) == steps and facts["settings"]["damping"] == "auto"
    assert facts["measured_on"]["forget"] == [2, 2]
    for side, part in (("forget", ROWS[:2]), ("retain", ROWS[2:])):
        for number, folder in (("original", request_folder / "model"), ("unlearned", tmp_path / "out/model")):
            assert facts[number][f"{side}_rows_loss"] == pytest.approx(loss_of(folder, part), rel=1e-3, abs=1e-3)
    before, after = facts["original"]["forget_rows_probability"], facts["unlearned"]["forget_rows_probability"]
    assert after < 0.5 * before and 0 < facts["unlearned"]["retain_rows_kl"] <= 0.3
    # The log tells of every damping that was tried; the ledger of those that were taken.
    assert len(re.findall("forget loss .*", log)) > steps
    (line,) = (json.loads(line) for line in (tmp_path / "out" / LOG_FILE).read_text().splitlines())
    assert [step["kl"] <= 0.3 for step in line["chosen_steps"]] == [True] * steps


def test_a_damping_that_is_given_is_kept(asked, capsys):
    """The length alone is found by measuring."""
    assert call(*asked, "damping=1e-4", "steps=1", "--kl_limit", 1, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["damping"] == [1e-4] and 0.1 < facts["unlearned"]["retain_rows_kl"] <= 1


class Killed(BaseException):
    """Stands for a kill."""


def test_a_killed_request_goes_on(request_folder, asked, tmp_path, capsys, monkeypatch):
    from hf_unlearn.cli import unlearn

    assert call(*asked[:-1], tmp_path / "whole", *STEPS, "--kl_limit", 1) == 0

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(unlearn, "before_and_after", killed)
        with pytest.raises(Killed):
            call(*asked, *STEPS, "--kl_limit", 1)
    assert (tmp_path / "out/checkpoint-2").is_dir() and not (tmp_path / "out/model").exists()
    # Another request may not go on from there.
    assert call(*asked, *STEPS[:-1], "steps=3", "--kl_limit", 1) == 2
    assert "holds another run" in capsys.readouterr().err
    assert call(*asked, *STEPS, "--kl_limit", 1) == 0
    weights = [contents(tmp_path / name / "model")["model.safetensors"] for name in ("whole", "out")]
    assert weights[0] == weights[1]
    assert len((tmp_path / "out" / LOG_FILE).read_text().splitlines()) == 1


@pytest.mark.multi_process
def test_two_processes_serve_one_request(asked, tmp_path):
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*launch, "hf_unlearn", *map(str, asked), *STEPS, "--kl_limit", "1", "--json"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["unlearned"]["forget_rows_probability"] < 0.2
    assert result.stderr.count("step 2 of 2: forget loss") == 1
    assert len((tmp_path / "out" / LOG_FILE).read_text().splitlines()) == 1
    assert _load(tmp_path / "out/model")


def test_push(asked, tmp_path):
    program = [sys.executable, "-m", "hf_unlearn", *map(str, asked), *STEPS, "--kl_limit", "1"]
    with hub_server() as server:
        environment = client_environment(server, tmp_path / "home")
        command = [*program, "--push", "lab/without-addresses", "--quiet"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        (commit,) = server.repos["lab/without-addresses"]["commits"]
        assert f"pushed: {server.url}/lab/without-addresses/commit/{commit['oid']}" in result.stdout
        assert {"model.safetensors", "delta/delta.safetensors", "README.md"} <= set(commit["files"])
        assert b"lab/without-addresses" in commit["files"]["README.md"]
        assert not any(name.startswith("report") for name in commit["files"])
        assert not any(b"lives in" in content for content in commit["files"].values() if b'"vocab"' not in content)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-unlearn`: help, arguments, exit codes, transfer, push, demo."""

import multiprocessing
import os
import subprocess
import sys
import time
import types

import torch

from hf_unlearn.runtime.folders import locked
from hf_unlearn.version import __version__
from tests.support.commands import WEIGHT, call
from tests.support.hub_server import client_environment, hub_server


def test_help_answers_at_once():
    program = [sys.executable, "-X", "importtime", "-m", "hf_unlearn.cli"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    started = time.perf_counter()
    result = subprocess.run([*program, "--help"], env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert result.returncode == 0 and all(
        name in result.stdout for name in ("demo", "evaluate", "curvature", "transfer", "inspect", "push")
    )
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {
        "torch",
        "transformers",
        "datasets",
        "matplotlib",
        "scipy",
        "jinja2",
        "huggingface_hub",
        "lm_eval",
    }
    assert seconds < 1.0


def test_version_and_bad_arguments(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.strip() == f"hf-unlearn {__version__}"
    assert call() == 2
    assert call("transfer", "--delta", "x") == 2
    assert call("transfer", "--delta", "x", "--model", "y", "--output", "z", "--scale", "much") == 2


def test_transfer(delta, tiny_llama, tmp_path, capsys):
    model = tiny_llama()
    model.save_pretrained(tmp_path / "model")
    arguments = ("transfer", "--delta", delta, "--model", tmp_path / "model", "--output", tmp_path / "out")
    assert call(*arguments, "--scale", "-2") == 0
    assert capsys.readouterr().out.strip() == f"wrote {tmp_path / 'out'}"
    result = type(model).from_pretrained(tmp_path / "out")
    assert torch.equal(result.get_parameter(WEIGHT), model.get_parameter(WEIGHT) - 1.0)
    capsys.readouterr()  # transformers' progress bar
    assert call(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "not an empty folder" in error and error.count("\n") == 1


def _hold(folder, ready, end):
    with locked(folder, make=False):
        ready.set()
        end.wait(120)


def test_an_output_that_another_process_writes_is_refused_in_one_line(delta, tiny_llama, tmp_path, capsys):
    tiny_llama().save_pretrained(tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text('{"text": "one"}\n')
    output, model = tmp_path / "out", ("--model", tmp_path / "model")
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    writer = context.Process(target=_hold, args=(output, ready, end))
    writer.start()
    assert ready.wait(60)
    try:
        for arguments in (
            ("transfer", "--delta", delta, *model, "--output", output),
            ("curvature", "fit", *model, "--data", tmp_path / "forget.jsonl", "--output", output),
            ("unlearn", *model, "--method", "ga", "--forget", tmp_path / "forget.jsonl", "--output", output),
            ("demo", "--output_dir", output),
        ):
            assert call(*arguments) == 2, arguments
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith(f"error: {output} is in use by another run (") and f"{writer.pid})" in error, error
            assert not output.exists()
    finally:
        end.set()
        writer.join(60)


def test_input_errors_are_one_line(delta, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments in (
        ("transfer", "--delta", tmp_path / "absent", "--model", "x", "--output", tmp_path / "out"),
        ("transfer", "--delta", delta, "--model", tmp_path, "--output", tmp_path / "out"),
        ("inspect", tmp_path / "absent"),
        ("inspect", tmp_path / "empty"),
        ("push", "--folder", tmp_path / "absent", "--repo_id", "lab/x"),
    ):
        assert call(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
    (delta / "delta_config.json").write_text("{")
    assert call("inspect", delta) == 2
    assert "damaged" in capsys.readouterr().err


def test_push_prints_the_commit(delta, tmp_path):
    program = [sys.executable, "-m", "hf_unlearn.cli", "push", "--folder", str(delta), "--repo_id", "lab/x"]
    with hub_server() as server:
        environment = client_environment(server, tmp_path / "home")
        result = subprocess.run([*program, "--private"], env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (commit,) = server.repos["lab/x"]["commits"]
        assert server.repos["lab/x"]["private"] and result.stdout.strip().endswith(commit["oid"])
    # The server is gone: failed, not wrong input.
    result = subprocess.run([*program, "--quiet"], env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result


def test_demo_passes_its_arguments(monkeypatch, tmp_path):
    calls = []
    module = types.SimpleNamespace(run_demo=lambda **arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "hf_unlearn.experiments.run", module)
    assert call("demo", "--output_dir", tmp_path, "--seed", "3") == 0
    assert calls == [{"output_dir": str(tmp_path), "seed": 3, "record_to": None}]

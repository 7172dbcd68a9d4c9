# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json
import os
import subprocess
import sys
import time
import types

import pytest
import torch

from hf_unlearn.cli.main import main
from hf_unlearn.deltas import UpdateDelta, delta_config
from hf_unlearn.version import __version__
from tests.support.hub_server import client_environment, hub_server


WEIGHT = "model.layers.0.mlp.up_proj.weight"
SETTINGS = {"method": "KFade", "steps": 4, "kl_budget": None, "damping": 1e-6}


def call(*arguments):
    """Exit code of the command, run in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture
def delta(tmp_path, tiny_llama):
    base = {WEIGHT: tiny_llama().state_dict()[WEIGHT]}
    config = delta_config(base, base_model="org/base", method="KFade", settings=SETTINGS, seed=7)
    return UpdateDelta({WEIGHT: torch.full(base[WEIGHT].shape, 0.5)}, config).save_pretrained(tmp_path / "delta")


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


def test_inspect_delta(delta, capsys):
    assert call("inspect", delta.parent) == 0
    lines = capsys.readouterr().out.splitlines()
    norm = 0.5 * (24 * 16) ** 0.5
    assert lines[0].startswith("delta: 1 tensors, ") and lines[0].endswith(f" bytes in bfloat16, norm {norm:.6g}")
    assert lines[1:4] == ["  method    KFade: steps 4, damping 1e-06", "  base      org/base", "  seed      7"]
    assert lines[-1].split() == ["tensors", WEIGHT]


def test_inspect_curvature(tiny_llama, tmp_path, capsys):
    from hf_unlearn.curvature import KFAC

    batch = {"input_ids": torch.arange(1, 13).reshape(2, 6), "labels": torch.arange(1, 13).reshape(2, 6)}
    KFAC().fit(tiny_llama(), [batch], target_modules=["up_proj"]).save_pretrained(tmp_path)
    assert call("inspect", tmp_path) == 0
    text = capsys.readouterr().out
    assert text.startswith("curvature: kfac of 2 weights") and "LlamaForCausalLM" in text
    assert "2 sequences, 10 predicted tokens" in text and WEIGHT in text


def test_inspect_output_folder(delta, tmp_path, capsys):
    row = {"method": "K-FADE", "forget_quality": 0.33, "retain_kl": 0.03}
    (tmp_path / "results.json").write_text(json.dumps([row]))
    request = {"time": "2026-11-21", "method": "K-FADE", "forget_rows": 40, "settings": {"steps": 4}}
    (tmp_path / "unlearning_log.jsonl").write_text(json.dumps(request) + "\n")
    (tmp_path / "unlearn_run.json").write_text(json.dumps({"method": {"steps": 4}}))
    (tmp_path / "checkpoint-2").mkdir()
    assert call("inspect", tmp_path) == 0
    text = capsys.readouterr().out
    assert "run: method (steps 4)" in text and "checkpoint-2" in text
    assert "log: 1 requests\n  2026-11-21  K-FADE, 40 rows: steps 4" in text
    assert "| K-FADE | **0.33** |" in text and "delta: 1 tensors" in text


def test_inspect_comparison(delta, tmp_path, capsys):
    folder = tmp_path / "demo"
    (folder / "model").mkdir(parents=True)
    delta.rename(folder / "model" / "delta")
    report = {"title": "Two authors", "summary": "K-FADE reaches 0.33.", "candidates": [{}, {}]}
    (folder / "report.json").write_text(json.dumps(report))
    assert call("inspect", folder) == 0
    text = capsys.readouterr().out
    assert text.startswith("report: Two authors (2 candidates tried)\n  K-FADE reaches 0.33.\ndelta: 1 tensors")


def test_inspect_damaged_log(tmp_path, capsys):
    (tmp_path / "unlearning_log.jsonl").write_text('{"time": 1')
    assert call("inspect", tmp_path) == 2
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
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), result


def test_demo_passes_its_arguments(monkeypatch, tmp_path):
    calls = []
    module = types.SimpleNamespace(run_demo=lambda **arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "hf_unlearn.experiments.run", module)
    assert call("demo", "--output_dir", tmp_path, "--seed", "3") == 0
    assert calls == [{"output_dir": str(tmp_path), "seed": 3, "record_to": None}]


@pytest.fixture
def model_folder(tmp_path, tiny_llama, monkeypatch):
    """A tiny model with its tokenizer, WMDP's chemistry in miniature, and a cache of its own."""
    from hf_unlearn.miniature.training import train_tokenizer

    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    model = tiny_llama(vocab_size=300)
    model.config.max_position_embeddings = 512
    model.save_pretrained(tmp_path / "model")
    train_tokenizer(["Which one?"], 280).save_pretrained(tmp_path / "model")
    rows = [{"question": f"Which {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(6)]
    (tmp_path / "chem_test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "model"


def test_evaluate(model_folder, delta, capsys):
    folder, results = model_folder.parent, model_folder.parent / "results.json"
    arguments = ("evaluate", "--model", model_folder, "--tasks", "wmdp_chem", "--data_dir", folder)
    assert call(*arguments, "--base", model_folder, "--delta", delta, "--output", results, "--log_samples") == 0
    text = capsys.readouterr().out
    assert "questions: wmdp_chem 6" in text and "processes: 1 on " in text
    assert "| task | questions | chance | before | after | change |" in text
    assert "\n| wmdp_chem | 6 | 25.0 % | " in text
    written = json.loads(results.read_text())
    assert written["model"] == "model (local folder)" and written["command"].startswith("hf-unlearn")
    assert written["versions"]["torch"] == torch.__version__ and written["settings"]["lm_eval"]
    before, after = (written["models"][label]["sha256"] for label in ("before", "after"))
    assert before != after
    assert len(written["samples"]["after"]["wmdp_chem"]) == 6
    score = written["scores"]["after"]["wmdp_chem"]
    assert score["n"] == 6 and score["accuracy"] == sum(
        sample["acc"] for sample in written["samples"]["after"]["wmdp_chem"]
    ) / 6  # fmt: skip

    assert call(*arguments, "--limit", 2) == 0
    text = capsys.readouterr().out
    assert "| wmdp_chem | 2 | 25.0 % | " in text and "from the cache" not in text
    assert f"model: {model_folder}, sha256 {before[:16]}, float32" in text
    assert call(*arguments, "--limit", 2) == 0
    assert "float32, from the cache" in capsys.readouterr().out


def test_evaluate_bad_input(model_folder, tmp_path, capsys):
    folder = model_folder.parent
    bad = folder / "bad"
    bad.mkdir()
    (bad / "chem_test.jsonl").write_text('{"question": "Which?"}\n')
    model = ("--model", model_folder)
    for message, arguments in {
        "no task was named": (*model, "--tasks", ","),
        "--data_dir": (*model, "--tasks", "wmdp_chem"),
        "chem_test.jsonl, line 1 has no": (*model, "--tasks", "wmdp_chem", "--data_dir", bad),
        "cannot load the model": ("--model", tmp_path / "absent", "--tasks", "wmdp_chem", "--data_dir", folder),
    }.items():
        assert call("evaluate", *arguments) == 2, message
        error = capsys.readouterr().err
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and message in lines[0], error


def test_curvature_fit_and_inspect(model_folder, capsys):
    folder = model_folder.parent
    rows = [{"body": f"Which one is it, {i}? " * 8} for i in range(5)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    data = ("--data", "corpus", "--data_dir", folder, "--text", "body")
    arguments = ("curvature", "fit", "--model", model_folder, *data)
    output = folder / "curvature"
    settings = ("--length", 16, "--sequences", 4, "--kind", "kfac", "--target_modules", ".*up_proj", "--seed", 3)
    settings += ("--max_factor_memory", "1MB")
    assert call(*arguments, *settings, "--output", output) == 0
    fitted = capsys.readouterr().out
    # The plan comes before anything of the fit.
    assert fitted.index("kfac: 2 weights, 64 tokens") < fitted.index("curvature: kfac of 2 weights")
    assert call("curvature", "inspect", output) == 0
    text = capsys.readouterr().out
    assert text.strip() == fitted[fitted.index("curvature: ") :].strip()
    assert "sampled Fisher, seed 3, 4 sequences, " in text and "model (local folder)" in text
    assert call("inspect", output) == 0
    capsys.readouterr()

    # The spectrum, from the whole matrix (G + damping I)^-1, a column a solve.
    from hf_unlearn.curvature import Curvature

    curvature, columns = Curvature.from_pretrained(output), torch.eye(24 * 16).reshape(-1, 24, 16)
    inverse = torch.stack([curvature.solve({WEIGHT: column}, 1e-4)[WEIGHT].reshape(-1) for column in columns])
    values = 1 / torch.linalg.eigvalsh(inverse.double()) - 1e-4
    line = next(line for line in text.splitlines() if line.startswith(f"| {WEIGHT} |"))
    _, shape, largest, rank, size, condition, digest = (cell.strip() for cell in line.strip("|").split("|"))
    assert shape == "24x16" and size == "384" and len(digest) == 12
    assert float(largest) == pytest.approx(float(values.max()), rel=1e-2)
    assert float(rank) == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-2)


def test_curvature_bad_input(model_folder, capsys):
    folder = model_folder.parent
    (folder / "corpus.jsonl").write_text(json.dumps({"text": "Which one is it?"}))
    data = ("--model", model_folder, "--data", folder / "corpus.jsonl")
    for message, arguments in {
        "is not an empty folder": (*data, "--output", model_folder),
        "must be one of ekfac, kfac": (*data, "--output", folder / "out", "--kind", "magic"),
        "no text in a column 'body' but the columns text": (*data, "--output", folder / "out", "--text", "body"),
        "fisher must be one of": (*data, "--output", folder / "out", "--fisher", "magic"),
        "neither a file": ("--model", model_folder, "--data", "absent", "--output", folder / "out"),
        "max_factor_memory must be bytes": (*data, "--output", folder / "out", "--max_factor_memory", "much"),
        "limit=0": (*data, "--output", folder / "out", "--sequences", 0),
    }.items():
        assert call("curvature", "fit", *arguments) == 2, message
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and message in errors[0], errors
        assert not (folder / "out").exists()
    assert call("curvature", "inspect", folder / "absent") == 2
    assert "neither a folder nor a Hub repository" in capsys.readouterr().err
    assert call("curvature") == 2


@pytest.mark.multi_process
def test_curvature_fit_on_two_processes(model_folder):
    """torchrun's two processes share the fit and write one folder, which one process reads."""
    from hf_unlearn.curvature import Curvature

    folder = model_folder.parent
    rows = [{"text": f"Which one is it, {i}? " * 8} for i in range(5)]
    (folder / "corpus.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    program = ("hf_unlearn.cli", "curvature", "fit", "--model", model_folder, "--data", folder / "corpus.jsonl")
    program += ("--length", 16, "--batch_size", 2)
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", 2, "-m")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for name, before in (("one", ()), ("two", launch)):
        command = [sys.executable, "-m", *map(str, (*before, *program, "--output", folder / name))]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert f"processes: {2 if before else 1} on cpu" in result.stdout
        assert result.stdout.count("curvature: ekfac of 6 weights") == 1
    assert not list(folder.glob("*.unfinished"))
    one, two = (Curvature.from_pretrained(folder / name) for name in ("one", "two"))
    gradient = {WEIGHT: torch.randn(24, 16, generator=torch.Generator().manual_seed(0))}
    first, second = (curvature.solve(gradient, 1e-4)[WEIGHT] for curvature in (one, two))
    assert torch.linalg.norm(first - second) <= 1e-5 * torch.linalg.norm(first)

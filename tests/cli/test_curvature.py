# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn curvature`: a fit, what it holds, bad input, two processes."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hf_unlearn.cli.curvature import load_corpus
from tests.support.commands import WEIGHT, call


def test_a_table_is_read_as_its_rows(tmp_path):
    (tmp_path / "rows.csv").write_text('id,text\n1,"the river, slow"\n2,the mill of Belmor\n3,bees\n')
    texts = ["the river, slow", "the mill of Belmor", "bees"]
    assert load_corpus(str(tmp_path / "rows.csv"), "text", None)["text"][:] == texts
    assert load_corpus("rows", "id", tmp_path) == ["1", "2", "3"]


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
    assert "does not exist" in capsys.readouterr().err
    assert call("curvature") == 2


def test_curvature_plan_reads_the_config_alone(model_folder, capsys):
    """Beside the plans of Python, of a folder without weights."""
    from hf_unlearn.curvature import plan
    from hf_unlearn.methods.masking import kept_entries, planned_mask
    from hf_unlearn.runtime.loading import load_outline

    (model_folder / "model.safetensors").unlink()
    about = ("--sequences", 10, "--length", 16)
    assert call("curvature", "plan", "--model", model_folder, "--sparsity", 0.5, *about, "--kind", "kfac") == 0
    text = capsys.readouterr().out
    model = load_outline(str(model_folder))
    assert all(parameter.is_meta for parameter in model.parameters())
    kept = kept_entries(planned_mask({"sparsity": 0.5}, model))
    assert str(plan(model, kind="kfac", kept=kept, sequences=10, sequence_length=16)) in text
    assert "not chosen yet, so taken as spread evenly over the layers" in text
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert [line[:2] for line in lines[2:]] == [
        [kind, side] for kind in ("kfac", "ekfac", "diagonal") for side in ("whole", "masked")
    ]
    # Half of 24 filters and 2 heads are kept.
    assert "of 24" in lines[2][3] and "of 24" not in lines[3][3]
    # Without a mask the weights are those of a fit: the MLPs.
    assert call("curvature", "plan", "--model", model_folder / "config.json", *about, "--kind", "diagonal") == 0
    text = capsys.readouterr().out
    assert str(plan(model, kind="diagonal", sequences=10, sequence_length=16)) in text and "masked" not in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--sparsity", 1), "sparsity must be"),
        (("--sparsity", 0.5, "--structures", "neurons"), "structures must be some of heads and filters"),
        (("--structures", "heads"), "give its --sparsity too"),
        (("--length", 0), "--length is 0: give 1 or more"),
        (("--kind", "magic"), "must be one of ekfac, kfac"),
        (("--sparsity", 0.5, "--target_modules", "lm_head"), "keeps nothing of the weights in target_modules"),
        (("--model", "absent/folder"), "cannot load the model"),
    ],
)
def test_curvature_plan_bad_input(model_folder, arguments, message, capsys):
    assert call("curvature", "plan", "--model", model_folder, *arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn inspect`: deltas, curvatures, output folders, damaged files; the same as JSON."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from hf_unlearn.cli import inspect
from tests.support.commands import SETTINGS, WEIGHT, call


@pytest.fixture
def curvature(tiny_llama, tmp_path):
    """The folder of a fitted curvature."""
    from hf_unlearn.curvature import KFAC

    batch = {"input_ids": torch.arange(1, 13).reshape(2, 6), "labels": torch.arange(1, 13).reshape(2, 6)}
    return KFAC().fit(tiny_llama(), [batch], target_modules=["up_proj"]).save_pretrained(tmp_path / "curvature")


@pytest.fixture
def held(capsys):
    """{kind: facts} that `--json` prints of a folder."""

    def ask(folder):
        assert call("inspect", folder, "--json") == 0
        (line,) = capsys.readouterr().out.splitlines()
        facts = json.loads(line)
        assert facts["command"] == "inspect" and facts["path"] == str(folder)
        kinds = {one["kind"]: one for one in facts["holds"]}
        assert len(kinds) == len(facts["holds"])
        return kinds

    return ask


def sizes(folder):
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_inspect_delta(delta, capsys):
    assert call("inspect", delta.parent) == 0
    lines = capsys.readouterr().out.splitlines()
    norm = 0.5 * (24 * 16) ** 0.5
    assert lines[0].startswith("delta: 1 tensors, ") and lines[0].endswith(f" bytes in bfloat16, norm {norm:.6g}")
    assert lines[1:4] == ["  method    KFade: steps 4, damping 1e-06", "  base      org/base", "  seed      7"]
    assert lines[-1].split() == ["tensors", WEIGHT]


def test_inspect_curvature(curvature, capsys):
    assert call("inspect", curvature) == 0
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


def test_a_delta_as_json(delta, held):
    (facts,) = held(delta).values()
    config = json.loads((delta / "delta_config.json").read_text())
    assert facts.items() >= config.items() and facts["settings"] == SETTINGS and facts["seed"] == 7
    assert facts["kind"] == "delta" and facts["place"] == "." and facts["files"] == sizes(delta)
    assert facts["tensors"] == {WEIGHT: {"shape": [24, 16], "dtype": "bfloat16"}}
    assert facts["bytes"] == (delta / "delta.safetensors").stat().st_size
    assert facts["norm"] == pytest.approx(0.5 * (24 * 16) ** 0.5)
    # In a model's folder, and in that of a comparison.
    (folder := delta.parent / "comparison/model").mkdir(parents=True)
    delta.rename(folder / "delta")
    assert held(folder)["delta"] == facts | {"place": "delta"}
    assert held(folder.parent)["delta"] == facts | {"place": "model/delta"}


def test_a_curvature_as_json(curvature, held):
    (facts,) = held(curvature).values()
    config = json.loads((curvature / "curvature_config.json").read_text())
    ((shard, hashes),) = config["files"].items()
    with safe_open(curvature / shard, "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in hashes}
    assert facts["kind"] == "curvature" and facts["curvature"] == "kfac" and facts["files"] == sizes(curvature)
    assert facts["tensors"] == {
        name: {"shape": shape, "dtype": "float32", "sha256": hashes[name]} for name, shape in shapes.items()
    }
    assert facts["weights_sha256"] == config["weights_sha256"] and facts["targets"] == config["targets"]
    assert facts["predicted_tokens"] == 10 and facts["fisher"] == "sampled" and facts["versions"]["hf_unlearn"]


def test_a_damaged_curvature_is_refused(curvature, capsys):
    shard = next(curvature.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 64
    shard.write_bytes(content)
    assert call("inspect", curvature) == 2
    assert shard.name in capsys.readouterr().err


def test_an_output_folder_as_json(delta, tmp_path, held):
    rows = [{"method": "K-FADE", "forget_quality": 0.33, "retain_kl": 0.03}]
    request = {"time": "2026-11-21", "method": "K-FADE", "forget_rows": 40, "settings": {"steps": 4}}
    report = {"title": "Two authors", "summary": "K-FADE reaches 0.33.", "candidates": [{}, {}], "settings": {"n": 2}}
    identity = {"method": {"steps": 4}}
    (tmp_path / "results.json").write_text(json.dumps(rows))
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "unlearning_log.jsonl").write_text(f"{json.dumps(request)}\n" * 2)
    (tmp_path / "unlearn_run.json").write_text(json.dumps(identity))
    for name in ("checkpoint-2", "checkpoint-4"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-2/complete").write_text("{}")
    facts = held(tmp_path)
    assert facts.pop("delta")["place"] == "delta"
    checkpoints = [{"name": "checkpoint-2", "complete": True}, {"name": "checkpoint-4", "complete": False}]
    assert facts == {
        "run": {"kind": "run", "place": ".", "identity": identity, "checkpoints": checkpoints},
        "log": {"kind": "log", "place": ".", "requests": [request] * 2},
        "report": {"kind": "report", "place": ".", **report, "candidates": 2, "environment": None},
        "results": {"kind": "results", "place": ".", "rows": rows},
    }


def test_names_of_files_are_those_that_are_written():
    from hf_unlearn.trainer import run_folder

    assert (inspect.RUN_FILE, inspect.COMPLETE_FILE) == (run_folder.RUN_FILE, run_folder.COMPLETE_FILE)


def test_inspect_loads_no_library_of_models(tmp_path):
    program = (
        "import sys\n"
        "from hf_unlearn.cli.main import main\n"
        "try: main(['inspect', sys.argv[1]])\n"
        "finally: print(*({'transformers', 'peft', 'datasets', 'accelerate'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 2 and "holds no delta" in result.stderr and result.stdout.strip() == ""


@pytest.fixture
def mask(tiny_llama, tmp_path):
    """The folder of a mask of 1 of 4 heads and 20 of 48 filters."""
    from hf_unlearn.structure import StructureMask, find_structures

    model = tiny_llama()
    structures = find_structures(model)
    chosen = {key: torch.zeros(site.count, dtype=torch.bool) for key, site in structures.sites.items()}
    chosen["heads.1"][0] = chosen["filters.0"][3] = True
    chosen["filters.1"][:19] = True
    settings = {"importance": "mlr", "sparsity": 0.5}
    return StructureMask(structures, chosen, settings=settings).save_pretrained(tmp_path / "mask")


def test_inspect_mask(mask, held, tmp_path, capsys):
    assert call("inspect", mask) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mask: 1 of 4 heads and 20 of 48 filters are kept, ")
    assert lines[0].endswith(" of the model's parameters, sparsity 0.596")
    assert lines[1].split() == ["chosen", "importance", "mlr,", "sparsity", "0.5"]
    assert [line.replace(" ", "") for line in (lines[2], *lines[4:])] == [
        *("|layer|heads|filters|", "|0|0of2|1of24|", "|1|1of2|19of24|")
    ]
    facts = held(mask)["mask"]
    assert [site["kept"] for site in facts["sites"]] == [[], [3], [0], list(range(19))]
    assert call("inspect", mask, "--output", tmp_path / "pictures") == 0
    assert f"wrote {tmp_path / 'pictures/mask.png'}" in capsys.readouterr().out
    light, dark = ((tmp_path / "pictures" / name).read_bytes() for name in ("mask.png", "mask_dark.png"))
    assert light[:4] == dark[:4] == b"\x89PNG" and light != dark


def test_only_masks_are_drawn(curvature, tmp_path, capsys):
    assert call("inspect", curvature, "--output", tmp_path / "pictures") == 2
    assert "--output is for the picture of a mask, and here is none: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()

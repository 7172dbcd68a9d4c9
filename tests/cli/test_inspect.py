# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn inspect`: deltas, curvatures, output folders, damaged files."""

import json

import torch

from tests.support.commands import WEIGHT, call


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

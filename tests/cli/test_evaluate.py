# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn evaluate`: before and after, the cache, bad input."""

import importlib.metadata
import json

from tests.support.commands import call


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
    assert written["versions"]["torch"] == importlib.metadata.version("torch") and written["settings"]["lm_eval"]
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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json
import math
from pathlib import Path

import pytest
import yaml
from huggingface_hub import EvalResultEntry, parse_eval_result_entries

from hf_unlearn.report.card import write_card
from hf_unlearn.report.eval_results import LOWER, result_files
from hf_unlearn.runtime.published import published_files


CONTEXT = json.loads((Path(__file__).resolve().parents[2] / "model_cards/kfade_tofu_sample.json").read_text())
SCORE = {"dataset": "cais/mmlu", "task": "all", "name": "mmlu", "metric": "acc", "value": 0.5}


def parsed(files) -> dict[str, list[EvalResultEntry]]:
    """{file name: what the Hub's own client reads in it}."""
    return {name: parse_eval_result_entries(yaml.safe_load(text)) for name, text in files.items()}


def test_the_hub_client_reads_what_is_written_and_a_push_sends_it(tmp_path):
    write_card(tmp_path, CONTEXT)
    files = published_files(tmp_path)
    results = {Path(name).name: file.read_text() for name, file in files.items() if name.startswith(".eval_results/")}
    quality, utility = (
        "forget quality (p-value of the KS test); goal: 0.05 or more",
        "model utility; goal: as original",
    )
    assert set(files) == {"README.md", *(f".eval_results/{name}" for name in results)}
    assert parsed(results) == {
        "forget10-forget-quality.yaml": [EvalResultEntry("locuslab/TOFU", "forget10", 0.33, notes=quality)],
        "forget10-model-utility.yaml": [EvalResultEntry("locuslab/TOFU", "forget10", 0.51, notes=utility)],
        "mmlu.yaml": [EvalResultEntry("cais/mmlu", "all", 0.42)],
        "wmdp-bio.yaml": [EvalResultEntry("cais/wmdp", "wmdp-bio", 0.31, notes=LOWER)],
    }


@pytest.mark.parametrize("change", [{"dataset": None}, {"task": None}, {"value": None}, {"value": math.nan}])
def test_no_file_without_a_number_on_a_benchmark(change, tmp_path):
    assert result_files([SCORE]) and not result_files([SCORE | change])
    write_card(tmp_path, {"method": "K-FADE", "unlearned": {"forget_quality": 0.5}})
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_table_without_a_score_of_the_benchmark_has_no_file(tmp_path):
    write_card(tmp_path, {"method": "K-FADE", "benchmark": {"dataset": "locuslab/TOFU", "task": "forget10"}})
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_names_of_scores_are_no_paths_and_none_is_lost():
    names = ["../../x", "x", "X/", "é", ""]
    files = parsed(result_files([SCORE | {"name": name, "value": n} for n, name in enumerate(names)]))
    assert {name: [one.value for one in found] for name, found in files.items()} == {
        ".eval_results/x.yaml": [0, 1, 2],
        ".eval_results/result.yaml": [3, 4],
    }

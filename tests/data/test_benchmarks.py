# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.

import pytest

from hf_unlearn.data.benchmarks import QUESTIONS, TOFU, benchmark_of
from hf_unlearn.data.tofu import load_tofu


def test_another_number_of_rows_is_no_benchmark():
    assert benchmark_of(QUESTIONS, "wmdp_bio", 1273).names == {"dataset": "cais/wmdp", "task": "wmdp-bio"}
    assert benchmark_of(QUESTIONS, "wmdp_bio", 1272) is None and benchmark_of(QUESTIONS, "toxins", 1273) is None


def test_questions_of_the_harness_are_those_of_the_datasets():
    """lm-eval's own tasks name the dataset and its subset."""
    from lm_eval.tasks import TaskManager

    from hf_unlearn.evaluation.harness_tasks import FOLDERS

    known = TaskManager(include_path=FOLDERS, include_defaults=False).task_index
    for name in ("wmdp_bio", "wmdp_chem", "wmdp_cyber"):
        config = known[name].cfg
        assert (config["dataset_path"], config["dataset_name"]) == tuple(QUESTIONS[name].names.values())


@pytest.mark.parametrize("name", [*QUESTIONS, *TOFU])
def test_numbers_of_rows_are_those_of_the_real_data(name, shared_data):
    from hf_unlearn.evaluation.harness_tasks import load_tasks

    if name in TOFU:
        splits = load_tofu(shared_data / "tofu", TOFU[name].task)
        assert splits.name == name
        assert sum(len(rows) for part, rows in splits.evaluation().items() if part != "holdout") == TOFU[name].rows
    else:
        tasks = load_tasks([name], data_dir=shared_data)["tasks"]
        assert sum(len(task.eval_docs) for task in tasks.values()) == QUESTIONS[name].rows

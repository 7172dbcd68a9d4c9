# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Comparisons over seeds: rows that say their seed, means in the table, rows that reached by their own numbers."""

import dataclasses
import json
import statistics

import pytest
import torch

from hf_unlearn import UpdateDelta
from hf_unlearn.experiments.comparison import Comparison, read_kl, write_kl
from hf_unlearn.experiments.problems.tofu import TofuProblem
from hf_unlearn.experiments.run import record, run_experiment
from tests.support.divergence import result_of
from tests.support.experiments import TOFU, experiment


LINES = [TOFU["methods"][0], TOFU["methods"][2]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(experiment, folder, rows) of a run of two seeds."""
    folder, made = tmp_path_factory.mktemp("finished"), experiment(TOFU, seed=None, seeds=[0, 1], methods=LINES)
    return made, folder, run_experiment(made, folder, progress=False)


def test_rows_say_their_seed_and_are_those_of_a_run_of_it_alone(finished, tmp_path):
    _, folder, rows = finished
    methods = ["original", "retrained", "one step", "GradDiff"]
    assert [(row["method"], row["seed"]) for row in rows] == [(name, seed) for seed in (0, 1) for name in methods]
    assert json.loads((folder / "results.json").read_text()) == rows
    alone = run_experiment(experiment(TOFU, seed=1, methods=LINES), tmp_path, progress=False)
    assert [row["saved_as"] for row in rows if "saved_as" in row] == ["cells/0/model", "cells/1/model"]
    clock = ("seconds", "peak_memory_mb", "seed", "saved_as")
    plain = lambda rows: [{key: value for key, value in row.items() if key not in clock} for row in rows]
    assert plain(rows[4:]) == plain(alone) and "seed" not in alone[0]
    assert rows[0]["forget_probability"] != rows[4]["forget_probability"]  # other authors, another model


def test_the_table_has_means_over_seeds(finished, tmp_path, capsys):
    made, folder, rows = finished
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "±" in page
    record(rows, folder, made, tmp_path / "record.json")
    written = json.loads((tmp_path / "record.json").read_text())
    table = {row["method"]: row for row in written["table"]}
    assert (
        written["seeds"] == [0, 1] and written["rows"] == rows and list(table) == [row["method"] for row in rows[:4]]
    )
    printed = capsys.readouterr().out
    for method, entry in table.items():
        assert entry["seeds"] == 2
        for key in ("ks_statistic", "retain_kl", "forget_probability"):
            values = [row[key] for row in rows if row["method"] == method]
            assert entry[key] == pytest.approx(statistics.fmean(values))
            assert entry[f"{key}_std"] == pytest.approx(statistics.pstdev(values))
        distances = [row["ks_statistic"] for row in rows if row["method"] == method]
        cell = f"{statistics.fmean(distances):.3f} ± {statistics.pstdev(distances):.3f} (6)"
        for table_text in (text, printed):
            begins = tuple(f"| {method}{mark} |" for mark in ("", " (saved)"))
            line = next(line for line in table_text.splitlines() if line.startswith(begins))
            assert f"| {cell} |" in line


def test_every_seed_has_its_candidates_updates_and_best_model(finished):
    _, folder, rows = finished
    assert sorted(path.name for path in (folder / "cells").iterdir()) == ["0", "1"]
    report = json.loads((folder / "report.json").read_text())
    found = [(row["method"], row["seed"]) for row in report["candidates"]]
    assert found == [(name, seed) for seed in (0, 1) for name in ("one step", "one step", "GradDiff", "GradDiff")]
    # The divergence is that of the first seed.
    assert report["kl_per_token"].keys() == {"retrained", "one step", "GradDiff"}
    for seed in (0, 1):
        cell = folder / "cells" / str(seed)
        assert len(list(cell.glob("lines/*/delta/delta.safetensors"))) == 2
        assert UpdateDelta.from_pretrained(cell / "model/delta").config["seed"] == seed


def test_the_first_cell_is_shown_before_its_lines_run(finished, tmp_path):
    made, folder, rows = finished
    cells = []
    comparison = Comparison(made, folder, progress=False)
    assert comparison.run(tmp_path / "again", cells.append) == rows  # read from disk
    (cell,) = cells
    assert cell.seed == 0 and cell.lines == made.lines and cell.folder == folder / "cells/0"
    assert len(comparison.candidates) == 8


def test_a_row_reached_what_its_own_numbers_say(tmp_path, monkeypatch):
    """Candidates are measured on less: what they promise is not what the table shows."""
    score, evaluate = TofuProblem.score_candidate, TofuProblem.evaluate
    good, bad = {"forget_quality": 0.9}, {"forget_quality": 0.01}
    for promised, measured in ((good, bad), (bad, good)):
        monkeypatch.setattr(TofuProblem, "score_candidate", lambda *args, more=promised: score(*args) | more)

        def evaluated(*args, more=measured):
            metrics, kl = evaluate(*args)
            return metrics | more, kl

        monkeypatch.setattr(TofuProblem, "evaluate", evaluated)
        folder = tmp_path / str(promised["forget_quality"])
        *_, row = run_experiment(experiment(TOFU, methods=LINES[1:]), folder, progress=False)
        assert row["forget_quality"] == measured["forget_quality"] and row["reached"] == (measured is good)


def test_what_is_kept_is_known_by_all_that_it_was_compared_with():
    problem = TofuProblem(experiment(TOFU), None, 0, progress=False)
    first = problem.identity()
    with torch.no_grad():
        problem.retrained.lm_head.weight.mul_(1.01)
    assert [key for key, value in problem.identity().items() if value != first[key]] == ["retrained"]
    problem = TofuProblem(experiment(TOFU), None, 0, progress=False)
    fewer = problem.splits.retain_eval.select(range(1, len(problem.splits.retain_eval)))
    problem.splits = dataclasses.replace(problem.splits, retain_eval=fewer)
    assert [key for key, value in problem.identity().items() if value != first[key]] == ["evaluated"]


@pytest.mark.parametrize("per_sequence", [[[0.0, 0.5], [0.25]], [[1.0]]])
def test_a_divergence_is_read_as_it_was_written(per_sequence, tmp_path):
    kl = result_of(per_sequence)
    again = read_kl(tmp_path, json.loads(json.dumps(write_kl(tmp_path, kl))))
    assert again.per_token.equal(kl.per_token) and again.sequence_tokens.equal(kl.sequence_tokens)
    assert (again.mean, again.tokens, again.interval, again.approximation) == (kl.mean, kl.tokens, kl.interval, None)

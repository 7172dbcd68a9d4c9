# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sweeps of a setting: lines once for each value, the figure and the table, what is refused."""

import json

import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.experiments.line import Line
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.experiments.sweep import Sweep, show_value
from tests.support.experiments import GLUE, changed, experiment, kill_in_the_second_search


LINES = [
    {"label": "all", "method": "spe", "search": {"kl_budget": [0.05]}},
    {"label": "heads", "method": "spe", "settings": {"structures": ["heads"]}, "search": {"kl_budget": [0.05]}},
]
SWEPT = changed(
    GLUE,
    seed=None,
    seeds=[0, 1],
    sweep={"setting": "sparsity", "values": [0.0, 0.5]},
    methods=LINES,
    arguments__kl_rows=8,
    evaluation={"again": False},
)


def test_lines_are_multiplied_by_values():
    made = experiment(SWEPT)
    assert [(line.label, line.settings["sparsity"]) for line in made.lines] == [
        ("all, sparsity 0", 0.0), ("all, sparsity 0.5", 0.5), ("heads, sparsity 0", 0.0), ("heads, sparsity 0.5", 0.5),
    ]  # fmt: skip
    assert made.lines[2].settings["structures"] == ["heads"] and made.curves == ["all", "heads"]
    assert SWEPT["methods"] == LINES  # the YAML itself stays


VALUES = {"0": 0.0, "0.001": 1e-3, "10": 10, "mlr": "mlr", "heads": ["heads"]}
VALUES |= {"heads and filters": ["heads", "filters"]}


@pytest.mark.parametrize("shown", VALUES)
def test_a_value_as_text(shown):
    assert show_value(VALUES[shown]) == shown


def test_the_report_shows_the_values_along_x(tmp_path, monkeypatch):
    """Of both seeds; a run that was killed goes on after its last line, and one line is no curve."""
    begun = kill_in_the_second_search(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(SWEPT), tmp_path, progress=False)
    rows = run_experiment(experiment(SWEPT), tmp_path, progress=False)
    labels = [line.label for line in experiment(SWEPT).lines]
    assert begun == [*labels[:2], *labels[1:], *labels]
    section = json.loads((tmp_path / "report.json").read_text())["sections"][0]
    assert section["title"] == "Sweep of sparsity" and section["header"][:2] == ["sparsity", "method"]
    assert [row[:2] for row in section["table"]] == [
        [at, name] for at in ("0", "0.5") for name in ("all", "heads", "original", "retrained")
    ]
    told = [row["testing"] for row in rows if row["method"] == "heads, sparsity 0.5"]
    assert len(told) == 2 and section["table"][5][4].startswith(f"{sum(told) / 2:.3f}")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    alone = experiment(SWEPT, seeds=[0]).only(["heads, sparsity 0.5"])
    assert alone.sweep.sections(alone.curves, [row for row in rows if "heads, sparsity 0.5" in row["method"]]) == []


def test_what_is_refused():
    for keys, message in {
        "x": ({"sweep": {"setting": "sparsity", "values": [0.5]}}, "give two values of sparsity or more"),
        "y": ({"sweep": {"setting": "sparsity", "values": [0.5, 0.5]}}, "each once"),
        "z": ({"sweep": {"setting": "sparsity"}}, "sweep: values is missing"),
        "u": ({"sweep": {"setting": "sparsity", "values": [0, 1.5]}}, "sparsity must be"),
        "v": ({"sweep": {"setting": "depth", "values": [1, 2]}}, "depth is no setting of spe"),
        "w": ({"sweep": {"setting": "kl_budget", "values": [1, 2]}}, "kl_budget is what the sweep varies"),
    }.values():
        with pytest.raises(InputError, match=message):
            experiment(SWEPT, **keys)
    with pytest.raises(InputError, match="x: sparsity is what the sweep varies: leave it out of the line"):
        Sweep("sparsity", [0, 0.5]).lines([Line("x", "spe", {"sparsity": 0.2}, {"kl_budget": [0.1]})])

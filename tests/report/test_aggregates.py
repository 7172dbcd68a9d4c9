# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.report.aggregates import aggregate
from tests.support.reports import CLASS_ROWS, class_row, task_row, tofu_row


def test_mean_and_population_deviation_of_every_metric():
    table = aggregate(CLASS_ROWS, "per_class")
    names = ["Full", "Max Loss", "Fast-NTK, at w0", "Retrain", "probe: Pre-trained"]
    assert [(entry["method"], entry["per_class"]) for entry in table] == [(n, s) for s in (100, 500) for n in names]
    assert {entry["seeds"] for entry in table} == {2}
    entry = table[1]
    for key in ("retain", "forget", "holdout", "relearning_epochs", "seconds"):
        values = [row[key] for row in CLASS_ROWS if (row["method"], row["per_class"]) == ("Max Loss", 100)]
        assert entry[key] == pytest.approx(np.mean(values)) and entry[f"{key}_std"] == pytest.approx(np.std(values))
    assert entry["retain_std"] == 1.0  # population: the sample's would be 1.41
    assert json.loads(json.dumps(table)) == table


def test_a_number_that_one_seed_lacks_is_no_number():
    by_place = {(entry["method"], entry["per_class"]): entry for entry in aggregate(CLASS_ROWS, "per_class")}
    known, beyond = by_place["Fast-NTK, at w0", 100], by_place["Fast-NTK, at w0", 500]
    assert known["relearning_epochs"] == 8 and known["relearning_epochs_std"] == 0
    assert beyond["relearning_epochs"] is beyond["relearning_epochs_std"] is None and beyond["retain"] == 98.5
    assert by_place["Full", 100]["relearning_epochs"] is None  # and the key is there


def test_settings_that_differ_are_listed():
    first, second = (class_row("m", 1, seed, 1, 1, 1, 1) for seed in (0, 1))
    first |= {"settings": {"ridge": 0.1, "scale": "auto"}, "note": "a"}
    second |= {"settings": {"ridge": 1.0, "scale": "auto"}, "note": "b"}
    (entry,) = aggregate([first, second], "per_class")
    assert entry["settings"] == {"ridge": [0.1, 1.0], "scale": "auto"} and entry["note"] == "a; b"


def test_mappings_are_averaged_key_by_key():
    rows = [task_row("kfade", toxins, 0.93, kl, seed=seed) for seed, toxins, kl in ((0, 0.25, 0.1), (1, 0.55, 0.3))]
    (entry,) = aggregate(rows)
    assert entry["accuracy"] == {"toxins": pytest.approx(0.4), "general": 0.93}
    assert entry["accuracy_std"] == {"toxins": pytest.approx(0.15), "general": 0}
    assert entry["lost"] == {"toxins": pytest.approx(0.75)} and entry["kl"] == pytest.approx(0.2)
    assert "kl_interval" not in entry  # ends of intervals have no meaningful mean
    rows[1]["accuracy"] = None
    assert aggregate(rows)[0]["accuracy"] == {"toxins": None, "general": None}


def test_counts_stay_integers_and_one_seed_stays_as_it_is():
    (entry,) = aggregate([tofu_row("ekfac", 0.3, seed=seed) for seed in (0, 1)])
    assert entry["n"] == 80 and isinstance(entry["n"], int)
    row = tofu_row("ekfac", 0.3, seed=0)
    (entry,) = aggregate([row])
    assert entry["seeds"] == 1 and {key: entry[key] for key in row if key != "seed"} == {
        key: value for key, value in row.items() if key != "seed"
    }


def test_rows_of_a_table_differ_in_size_or_seed():
    with pytest.raises(InputError, match="two rows of 'Full' with seed 0"):
        aggregate(CLASS_ROWS)  # without the key of sizes
    # Rows that name no seed are no runs of one line.
    assert len(aggregate([tofu_row("ekfac", 0.3), tofu_row("ekfac", 0.4)])) == 2

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK's protocol: data, cells, tables and recipes."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.experiments.problems import class_forgetting
from hf_unlearn.experiments.problems.class_forgetting import (
    Images,
    choose,
    read_protocol,
    run_class_forgetting,
    tuning_settings,
)
from hf_unlearn.methods.base import Counts
from hf_unlearn.methods.first_order import FirstOrder
from hf_unlearn.report.aggregates import aggregate
from hf_unlearn.report.class_tables import METRICS, paper_figures
from tests.support.protocols import tiny_protocol


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("protocol")
    return folder, run_class_forgetting(tiny_protocol(), folder, progress=False)


def test_rows_of_every_method_and_seed(finished):
    _, rows = finished
    methods = ["Full", "Max Loss", "Random Label", "Fast-NTK", "Retrain"]
    probes = ["probe: Pre-trained", "probe: Random-init", "probe: Fast-NTK"]
    assert [row["method"] for row in rows] == 2 * [*methods, *probes]
    assert {(row["per_class"], row["seed"]) for row in rows} == {(4, 0), (4, 1)}
    for row in rows:
        assert 0 <= row["retain"] <= 100 and 0 <= row["forget"] <= 100 and 0 <= row["holdout"] <= 100
    assert all(row["forget"] == 0 for row in rows if row["method"] == "Retrain")
    assert all("solve_seconds" in row for row in rows if row["method"] == "Fast-NTK")


def test_a_run_that_was_killed_goes_on_after_the_last_line(finished, tmp_path, monkeypatch):
    folder, rows = finished
    shutil.copytree(folder, tmp_path / "again")
    folder, made = tmp_path / "again", []

    def forget(lost):
        for file in (folder / "cells").iterdir():
            row = json.loads(file.read_text())[0]
            if (row["method"], row["seed"]) in lost:
                file.unlink()

    for name in ("_method", "_tuned"):
        original = getattr(class_forgetting.Cell, name)

        def counted(cell, what, name=name, original=original):
            made.append((name, what.get("label") if name == "_method" else len(what), cell.seed))
            return original(cell, what)

        monkeypatch.setattr(class_forgetting.Cell, name, counted)
    run = lambda **changes: run_class_forgetting(tiny_protocol(**changes), folder, progress=False)
    clock = ("seconds", "solve_seconds")
    plain = lambda rows: [{key: value for key, value in row.items() if key not in clock} for row in rows]
    assert run() == rows and run(seeds=[0]) == rows[:8] and made == []
    forget({("Fast-NTK", 1), ("Retrain", 0)})
    assert plain(run()) == plain(rows)
    # Retraining needs no full model, and a line no retrained one.
    assert made == [("_tuned", 36, 0), ("_method", "Fast-NTK", 1), ("_tuned", 40, 1)]
    made.clear()
    # A line that is new: the others stay.
    more = [*tiny_protocol()["methods"], {"label": "plain", "method": "fast_ntk"}]
    found = run(methods=more, seeds=[0], probe=False)
    assert made == [("_method", "plain", 0), ("_tuned", 40, 0)]
    assert plain(row for row in found if row["method"] != "plain") == plain(rows[:5])


def test_the_candidate_forgets_keeps_and_is_slow_to_relearn():
    asked = []

    def candidate(name, forget, retain, epochs):
        return {"forget": forget, "retain": retain, "relearn": lambda: asked.append(name) or epochs, "name": name}

    known = candidate("known", 40.0, 99.0, 5)
    broken, kept = candidate("broken", 0.0, 80.0, None), candidate("kept", 1.0, 98.0, 9)
    slower, never = candidate("slower", 0.0, 97.1, 12), candidate("never", 0.5, 97.0, None)
    pick = lambda rows, relearning=True: choose(rows, full=100.0, relearning=relearning)["name"]
    assert pick([known, broken]) == "broken" and asked == []
    assert pick([known, broken, kept]) == "kept" and asked == []
    assert pick([kept, slower, broken]) == "slower" and asked == ["kept", "slower"]
    assert pick([kept, slower, never]) == "never"
    assert pick([kept, slower, never], relearning=False) == "kept"


def test_epochs_may_depend_on_the_number_of_images():
    config = {"tuning": {"epochs": {100: 15, 500: 6}, "learning_rate": 1e-3}}
    assert tuning_settings(config, 500) == {"epochs": 6, "learning_rate": 1e-3}
    assert tuning_settings({"tuning": {"epochs": 3}}, 500) == {"epochs": 3} and tuning_settings({}, 5) == {}
    with pytest.raises(InputError, match="tuning.epochs has no entry for 200 images per class"):
        tuning_settings(config, 200)


def test_the_unlearned_adapter_is_saved_with_delta_and_card(finished):
    folder, _ = finished
    model = folder / "model-4-0"
    assert (model / "adapter_model.safetensors").is_file() and (model / "delta" / "delta.safetensors").is_file()
    card = (model / "README.md").read_text()
    assert "Fast-NTK" in card and "2312.14923" in card
    assert sorted(path.name for path in folder.iterdir()) == ["cells", "model-4-0", "model-4-1"]


def test_table_report_and_picture(finished, tmp_path):
    _, rows = finished
    table = aggregate(rows, "per_class")
    entry = next(entry for entry in table if entry["method"] == "Fast-NTK")
    values = [row["retain"] for row in rows if row["method"] == "Fast-NTK"]
    assert entry["retain"] == pytest.approx(np.mean(values)) and entry["retain_std"] == pytest.approx(np.std(values))
    config = tiny_protocol(paper="ResNet-110, CIFAR-10")
    text = class_forgetting.publish(config, rows, tmp_path, tmp_path / "record.json")
    for title in METRICS.values():
        assert title in text
    assert f"| Fast-NTK | {np.mean(values):.1f} ± {np.std(values):.1f} | 65.60 | 71.04 | 76.84 |" in text
    assert "Linear probing" in text and (tmp_path / "table.png").stat().st_size > 10_000
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["table"] == table and "torch" in json.dumps(record["environment"])
    assert (tmp_path / "report.md").read_text().startswith(f"# {config['title']}")


def test_settings_that_do_not_exist(tmp_path):
    def run(**changes):
        return run_class_forgetting(tiny_protocol(**changes), tmp_path, progress=False)

    base = tiny_protocol()
    for changes, message in (
        ({"extra": 1}, "no section extra; there are"),
        ({"data": base["data"] | {"forget": 12}}, "no row has the class 12"),
        ({"data": base["data"] | {"per_class": [10_000]}}, r"has \d+ rows, 10000 were asked for"),
        ({"data": base["data"] | {"per_class": []}}, "per_class is empty"),
        ({"data": base["data"] | {"colour": 1}}, "no setting colour"),
        ({"model": {}}, "model: give weights"),
        ({"model": {"weights": "nowhere.safetensors"}}, "no such weights"),
        (
            {"tuner": {"type": "lora", "modules_to_save": ["linear"]}},
            "tuner.type must be one of batch_norm, key_value_prompt",
        ),
        ({"tuner": {"type": "batch_norm"}}, "modules_to_save must name the head"),
        ({"methods": [{"label": "x", "method": "magic", "search": {}}]}, "unknown method 'magic'"),
        ({"methods": [{"label": "x", "method": "first_order"}]}, "name learning rates to try"),
    ):
        with pytest.raises(InputError, match=message):
            run(**changes)
    with pytest.raises(InputError, match="no such configuration"):
        read_protocol(tmp_path / "none.yaml")
    (tmp_path / "half.yaml").write_text("data: {}\nmodel: {}\n")
    with pytest.raises(InputError, match="section methods is missing"):
        read_protocol(tmp_path / "half.yaml")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("cifar10", {"Fast-NTK, at w0"}),
        ("cifar10_resnet32", {"Fast-NTK, at w0"}),
        ("cifar10_vit", {"Fast-NTK, at w0"}),
        ("imagenet_r", set()),
    ],
)
def test_configurations_of_the_recipes_are_whole(name, more):
    config = read_protocol(ROOT / "recipes" / "configs" / f"fast_ntk_{name}.yaml")
    assert {entry["label"] for entry in config["methods"]} == {"Max Loss", "Random Label", "Fast-NTK"} | more
    paper_figures(config["paper"])
    Images(**config["data"])


def test_recipe_overrides_and_exit_code(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("fast_ntk_recipe", ROOT / "recipes" / "fast_ntk_cifar10.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.configure(recipe.parse_arguments(["--seeds", "7", "--per_class", "5", "--forget", "3"]))
    assert config["seeds"] == [7] and config["data"]["per_class"] == [5] and config["data"]["forget"] == "3"
    with pytest.raises(SystemExit) as raised:
        recipe.main(["--forget", "gnu", "--output_dir", str(tmp_path)])
    assert raised.value.code == 2
    assert "no row has the class 'gnu'" in capsys.readouterr().err


# ---- images ---------------------------------------------------------------------------------------------------------


def test_random_label_never_draws_the_right_one():
    class Sure(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values)

    labels = torch.arange(3).repeat(200)
    inputs = {"pixel_values": 30.0 * torch.nn.functional.one_hot(labels, 3), "labels": labels}
    counts = Counts(len(labels), len(labels))
    loss, _ = FirstOrder("random_label").loss(Sure(), inputs, counts)
    assert float(loss) == pytest.approx(30.0)  # each drawn label has a logit 30 below the right one's

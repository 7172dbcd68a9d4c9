# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Class forgetting, Fast-NTK's protocol: rows of every method, size and seed, resume, report, saved models."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel

from hf_unlearn import UpdateDelta
from hf_unlearn.cli.main import main
from hf_unlearn.data.images import load_images, select_per_class
from hf_unlearn.errors import InputError
from hf_unlearn.experiments.comparison import Comparison
from hf_unlearn.experiments.problems import class_forgetting
from hf_unlearn.experiments.problems.class_forgetting import ClassForgetting
from hf_unlearn.experiments.problems.image_models import Tuning
from hf_unlearn.experiments.run import record, run_experiment
from hf_unlearn.experiments.search import Search
from hf_unlearn.report.aggregates import aggregate
from hf_unlearn.report.class_tables import METRICS
from tests.support.experiments import CLASSES, ONE_CLASS_LINE, changed, experiment


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("protocol")
    return folder, run_experiment(experiment(CLASSES), folder, progress=False)


def plain(rows):
    """Rows without what depends on the clock and the machine."""
    clock = ("seconds", "solve_seconds", "peak_memory_mb")
    return [{key: value for key, value in row.items() if key not in clock} for row in rows]


def test_rows_of_every_method_and_seed(finished):
    _, rows = finished
    methods = ["Full", "Retrain", "Max Loss", "Random Label", "Fast-NTK"]
    probes = ["probe: Pre-trained", "probe: Random-init", "probe: Fast-NTK"]
    assert [row["method"] for row in rows] == 2 * [*methods, *probes]
    assert {(row["per_class"], row["seed"]) for row in rows} == {(4, 0), (4, 1)}
    for row in rows:
        assert 0 <= row["retain"] <= 100 and 0 <= row["forget"] <= 100 and 0 <= row["holdout"] <= 100
    assert all(row["forget"] == 0 for row in rows if row["method"] == "Retrain")
    assert all(row["seconds"] > 0 for row in rows if row["method"] in ("Full", "Retrain"))
    assert all("solve_seconds" in row and row["parameters"] for row in rows if row["method"] == "Fast-NTK")
    assert all(row["candidates"] == 1 for row in rows if row["method"] in methods[2:])


def test_the_report_opens_with_what_images_are_taken_for(finished):
    folder, rows = finished
    seen, unseen, others = json.loads((folder / "report.json").read_text())["questions"]
    full, best, retrained = seen["answers"]
    assert (full, retrained) == ("Full", "Retrain")
    for name in (full, best, retrained):
        row = next(row for row in rows if (row["method"], row["seed"]) == (name, 0))
        # The forgotten class has 4 images, the hold-out set 1 of each class.
        counts = dict(part.rsplit(": ", 1) for part in seen["answers"][name].split(", "))
        assert sum(map(int, counts.values())) == 4
        assert int(counts.get(seen["prompt"].split("class ")[1].split(" ")[0], 0)) == round(0.04 * row["forget"])
        total = int(others["prompt"].split(" of ")[1].split(" ")[0])
        assert int(others["answers"][name]) == round(total * row["retain"] / 100)
    assert "never seen" in unseen["prompt"]
    assert [row["saved_as"] for row in rows if "saved_as" in row] == ["cells/4-0/model", "cells/4-1/model"]


def test_a_run_that_was_killed_goes_on_after_the_last_line(finished, tmp_path, monkeypatch):
    folder, rows = tmp_path / "again", finished[1]
    shutil.copytree(finished[0], folder)
    made, search, tune = [], Search.run, class_forgetting.tune

    def counted_search(self):
        made.append((self.line.label, self.cell.seed))
        return search(self)

    def counted_tune(model, rows, *args, **kwargs):
        made.append((len(rows), kwargs["seed"]))
        return tune(model, rows, *args, **kwargs)

    monkeypatch.setattr(Search, "run", counted_search)
    monkeypatch.setattr(class_forgetting, "tune", counted_tune)
    run = lambda **keys: run_experiment(experiment(CLASSES, **keys), folder, progress=False)
    assert run() == rows and made == []
    for file in folder.glob("cells/4-1/lines/*/line.json"):
        if json.loads(file.read_text())["row"]["method"] == "Fast-NTK":
            file.unlink()
    assert plain(run()) == plain(rows)
    # Tuned models are in the cache, and no other line runs again.
    assert made == [("Fast-NTK", 1)]
    made.clear()
    # A line that is new: the others stay.
    more = [*CLASSES["methods"], {"label": "plain", "method": "fast_ntk"}]
    found = run(methods=more, evaluation__probe=None)
    assert made == [("plain", 0), ("plain", 1)]
    assert plain(row for row in found if row["method"] != "plain") == plain(
        row for row in rows if not row["method"].startswith("probe")
    )


def test_a_run_killed_between_two_lines_ends_in_the_same_rows(finished, tmp_path, monkeypatch):
    begun, run = [], Search.run

    def killed(self):
        begun.append((self.line.label, self.cell.seed))
        if len(begun) == 5:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Search, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(CLASSES), tmp_path, progress=False)
    rows = run_experiment(experiment(CLASSES), tmp_path, progress=False)
    assert begun[4:] == [("Random Label", 1), ("Random Label", 1), ("Fast-NTK", 1)]
    assert plain(rows) == plain(finished[1])


def write_digits(folder, seed):
    """A parquet of 30 images of each of four digits, others for another seed."""
    folder.mkdir(exist_ok=True)
    select_per_class(load_images("digits"), 30, seed=seed, classes=range(4)).to_parquet(folder / "digits.parquet")


def test_other_images_under_the_same_name_make_another_table(tmp_path, monkeypatch):
    data = {"train": "digits.parquet", "test": "digits.parquet", "data_dir": str(tmp_path / "data")}
    keys = {f"data__{name}": value for name, value in data.items()} | {"data__per_class": [6]}
    run = lambda: run_experiment(experiment(ONE_CLASS_LINE, **keys), tmp_path / "out", progress=False)
    write_digits(tmp_path / "data", seed=0)
    first = run()
    assert run() == first  # read
    write_digits(tmp_path / "data", seed=1)
    second = run()
    assert plain(second) != plain(first)
    # Nothing that was made of the first images was in it: neither lines nor tuned models.
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    assert plain(run()) == plain(second)


def test_relearning_is_measured_of_those_alone_that_forgot_and_kept(monkeypatch):
    problem = ClassForgetting(experiment(CLASSES), 4, 0)
    measured, numbers = [], {}
    monkeypatch.setattr(ClassForgetting, "_accuracy", lambda self, model, rows: numbers[len(rows)])
    monkeypatch.setattr(ClassForgetting, "_relearning", lambda self, model: measured.append(model) or 7)
    problem._full_retain = 100.0
    forget, retain, _ = problem.sets
    for name, found in {
        "known": {len(forget): 40.0, len(retain): 99.0},
        "broken": {len(forget): 0.0, len(retain): 80.0},
        "kept": {len(forget): 1.0, len(retain): 98.0},
    }.items():
        numbers.update(found)
        row = problem.score_candidate(name)
        assert row["full_retain"] == 100.0 and ("relearning_epochs" in row) == (name == "kept")
    assert measured == ["kept"]


def test_epochs_may_depend_on_the_number_of_images():
    tuning = Tuning(epochs={100: 15, 500: 6}, learning_rate=1e-3)
    assert tuning.of(500)["epochs"] == 6 and tuning.of(500)["learning_rate"] == 1e-3
    assert Tuning(epochs=3).of(500)["epochs"] == 3
    with pytest.raises(InputError, match="tuning.epochs has no entry for 200 images per class"):
        tuning.of(200)


def test_the_unlearned_adapter_is_saved_with_delta_and_card(finished):
    folder, _ = finished
    assert sorted(path.name for path in (folder / "cells").iterdir()) == ["4-0", "4-1"]
    model = folder / "cells/4-0/model"
    assert (model / "adapter_model.safetensors").is_file() and (model / "delta" / "delta.safetensors").is_file()
    card = (model / "README.md").read_text()
    label = UpdateDelta.from_pretrained(model / "delta").config["method"]
    assert label in card and "accuracy on D_f (%)" in card


NATURAL = {
    "label": "K-FADE",
    "method": "kfade",
    "settings": {"damping": 1e-3, "target_modules": ".*modules_to_save.*"},
    "search": {"step_norm": [0.1, 1.0]},
}


def test_methods_of_other_papers_stand_in_the_same_table(tmp_path):
    """Fast-NTK, K-FADE on the head, one YAML, one report; the saved model is the one that the table measured."""
    config = changed(ONE_CLASS_LINE, methods=[*ONE_CLASS_LINE["methods"], NATURAL], tuning__epochs=8)
    made = experiment(config)
    rows = run_experiment(made, tmp_path, progress=False)
    assert [row["method"] for row in rows] == ["Full", "Retrain", "Fast-NTK", "K-FADE"]
    assert [row["candidates"] for row in rows[2:]] == [1, 2]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [row["method"] for row in report["candidates"]] == ["Fast-NTK", "K-FADE", "K-FADE"]
    assert [row["settings"]["step_norm"] for row in report["candidates"][1:]] == [0.1, 1.0]
    page = (tmp_path / "report.html").read_text()
    assert "Fast-NTK" in page and "K-FADE" in page
    cell_folder = tmp_path / "cells/4-0"
    for folder in cell_folder.glob("lines/*"):
        assert (folder / "delta/delta.safetensors").is_file() and (folder / "line.json").is_file()
    # Each line's update in the original is what its row measured, and the best line's is what is saved.
    cells = []
    Comparison(made, tmp_path, progress=False).run(tmp_path / "again", cells.append)
    (cell,) = cells
    batch = cell.problem.collator(list(cell.problem.sets[2]))
    for row in rows[2:]:
        with cell.updated(row["method"]) as model:
            assert 100 * right(model, batch) == pytest.approx(row["holdout"])
    vocabulary = cell.problem.vocabulary
    methods = vocabulary.methods(rows)
    label = methods[vocabulary.choose(methods, rows[0])]["method"]
    assert UpdateDelta.from_pretrained(cell_folder / "model/delta").config["settings"] == next(
        row["settings"] for row in rows if row["method"] == label
    )
    base = cell.problem.image_model.load(cell.problem.images, 10, 0, cell.problem.tuner.head)
    saved = PeftModel.from_pretrained(base, cell_folder / "model").eval()
    with torch.no_grad(), cell.updated(label) as model:
        assert torch.allclose(
            saved(pixel_values=batch["pixel_values"]).logits,
            model(pixel_values=batch["pixel_values"]).logits,
            atol=1e-6,
        )


def right(model, batch) -> float:
    with torch.no_grad():
        return float((model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).float().mean())


def test_table_report_and_pictures(finished, tmp_path, capsys):
    folder, rows = finished
    table = aggregate(rows, "per_class")
    entry = next(entry for entry in table if entry["method"] == "Fast-NTK")
    values = [row["retain"] for row in rows if row["method"] == "Fast-NTK"]
    assert entry["retain"] == pytest.approx(np.mean(values)) and entry["retain_std"] == pytest.approx(np.std(values))
    for name in ("report.html", "report.md", "classes.png", "pareto.png"):
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "results.json").read_text()) == rows
    paper = experiment(CLASSES, evaluation__paper="ResNet-110, CIFAR-10")
    rows = run_experiment(paper, folder, progress=False)
    text = (folder / "report.md").read_text()
    assert text.startswith(f"# {CLASSES['title']}")
    for title in METRICS.values():
        assert title in text
    assert f"| Fast-NTK | {np.mean(values):.1f} ± {np.std(values):.1f} | 65.60 | 71.04 | 76.84 |" in text
    assert "Linear probing" in text
    record(rows, folder, paper, tmp_path / "record.json")
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["table"] == table and written["seeds"] == [0, 1] and "torch" in json.dumps(written["environment"])
    assert "| Fast-NTK | 4 |" in capsys.readouterr().out


def test_inspect_prints_the_table(finished, capsys):
    main(["inspect", str(finished[0])])
    text = capsys.readouterr().out
    values = [row["retain"] for row in finished[1] if row["method"] == "Fast-NTK"]
    assert text.startswith(f"report: {CLASSES['title']} (6 candidates tried)")
    assert f"| Fast-NTK | 4 | {np.mean(values):.1f} ± {np.std(values):.1f} |" in text


BAD = {
    "a section": ({"extra": 1}, "no section extra; the sections are"),
    "a class": ({"data__forget": 12}, "no row has the class 12"),
    "too many images": ({"data__per_class": [10_000]}, r"has \d+ rows, 10000 were asked for"),
    "no sizes": ({"data__per_class": []}, "per_class is empty"),
    "a key of data": ({"data__colour": 1}, "data: no setting colour"),
    "a folder": ({"data__data_dir": "nowhere"}, "data.data_dir: the folder nowhere does not exist"),
    "a share": ({"data": {**CLASSES["data"], "test": None, "holdout": 1.5}}, "data.holdout must lie between 0 and 1"),
    "a number of classes": ({"data__classes": 11}, "data.classes must lie between 2 and 10"),
    "no model": ({"model": {"new_head": True}}, "model: give weights"),
    "no weights": ({"model": {"weights": "nowhere.safetensors"}}, "no such weights"),
    "a tuner": (
        {"tuner": {"type": "lora", "modules_to_save": ["linear"]}},
        "tuner.type must be one of batch_norm, key_value_prompt",
    ),
    "no head": ({"tuner": {"type": "batch_norm"}}, "modules_to_save must name the head"),
    "a network of the paper": ({"evaluation__paper": "LeNet"}, "no figures of 'LeNet'"),
    "a key of relearning": ({"evaluation__relearning__epochs": 3}, "evaluation.relearning: no setting epochs"),
    "a method": ({"methods": [{"label": "x", "method": "magic", "search": {}}]}, "unknown method 'magic'"),
    "nothing to try": ({"methods": [{"label": "x", "method": "first_order"}]}, "values of learning_rate to try"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_exist(name, tmp_path):
    keys, message = BAD[name]
    with pytest.raises(InputError, match=message):
        run_experiment(experiment(CLASSES, **keys), tmp_path, progress=False)

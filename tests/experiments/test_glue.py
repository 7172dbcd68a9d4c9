# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows forgotten by encoders, SPE-Unlearn's protocol: models, rows of the table, resume, report, bad input."""

import json

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from hf_unlearn import UnlearnTrainer
from hf_unlearn.evaluation.confidences import row_outputs
from hf_unlearn.experiments.planning import dry_run
from hf_unlearn.experiments.problem import merge_stages
from hf_unlearn.experiments.problems import encoders
from hf_unlearn.experiments.problems.glue import GlueProblem
from hf_unlearn.experiments.run import run_experiment
from tests.support.encoders import make_tokenizer, sentences
from tests.support.experiments import GLUE, changed, experiment, run_recipe, saved_encoder, write_config
from tests.support.rows import write_lines


pytestmark = pytest.mark.filterwarnings("ignore:damping")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("reviews")
    return folder, run_experiment(experiment(GLUE), folder, progress=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a pretrained encoder beside the files of SST-2 and of STS-B, of a few rows."""
    folder = tmp_path_factory.mktemp("encoder")
    pairs = [
        {"sentence1": row["sentence"], "sentence2": other["sentence"], "score": 5.0 * (row["label"] == other["label"])}
        for row, other in zip(sentences(30), sentences(30, 5), strict=True)
    ]
    for split, rows in (("train", slice(0, 20)), ("validation", slice(20, 30))):
        write_lines(folder / "data" / f"sst2_{split}.jsonl", sentences(30)[rows])
        write_lines(folder / "data" / f"stsb_{split}.jsonl", pairs[rows])
        premises = [{"premise": row["sentence"], "hypothesis": "a film", "label": 2} for row in sentences(30)[rows]]
        write_lines(folder / "data" / f"mnli_{split}.jsonl", premises)
    saved_encoder(folder / "bert", make_tokenizer())
    saved_encoder(folder / "three", make_tokenizer(), head="classes")
    return folder


def on_files(encoder, **keys):
    data = {"task": "sst2", "source": str(encoder / "data"), "forget": 4, "max_length": 30}
    keys = {"model": {"name": str(encoder / "bert")}, "tuning__epochs": 1, "data": data} | keys
    return changed(GLUE, **keys)


def test_rows_of_models_and_lines(finished):
    _, rows = finished
    assert [row["method"] for row in rows] == ["original", "retrained", "retrained again", "FT", "one step"]
    named = {row["method"]: row for row in rows}
    retrained = named["retrained"]
    for row in rows:
        for key in ("unlearning", "remaining", "testing", "membership"):
            assert row[f"retrained_{key}"] == retrained[key]
        assert row["scores"]["unlearning accuracy"] * 100 == row["unlearning"]
        assert row["reference_interval"][0] <= row["reference_auc"] <= row["reference_interval"][1]
    assert (retrained["gap"], retrained["distance"], retrained["total_variation"]) == (0, 0, 0)
    # The two retrained models are each other's yardstick: what one gives away the other lacks.
    assert retrained["reference_auc"] == pytest.approx(1 - named["retrained again"]["reference_auc"])
    assert all(row["seconds"] > 0 for row in rows)
    # The original knows the rows, a retrained one answers them as other rows.
    original = named["original"]
    assert original["unlearning"] == 100 and original["distance"] > named["retrained again"]["distance"]
    assert retrained["unlearning"] < 100 and original["population_auc"] > 0.6


def test_numbers_are_those_of_the_models(finished):
    """The saved model's own answers, counted here, are the row's."""
    folder, rows = finished
    (best,) = (row for row in rows if row.get("saved_as"))
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").eval()
    problem = GlueProblem(experiment(GLUE), None, 0, progress=False)
    for part, key in ((problem.forget, "unlearning"), (problem.test, "testing")):
        with torch.no_grad():
            taken = [model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax().item() for row in part]
        assert best[key] == pytest.approx(100 * np.mean([a == b for a, b in zip(taken, part["labels"])]))
    found = row_outputs(model, problem.forget, 0)
    goal = row_outputs(problem._retrained["retrained"].model, problem.forget, 0)
    assert best["distance"] == pytest.approx(np.abs(found.confidences - goal.confidences).mean(), abs=1e-6)


def test_the_request_and_what_stays_share_no_row():
    problem = GlueProblem(experiment(GLUE), None, 0, progress=False)
    forget, retain, test = (set(rows["sentence"]) for rows in problem.texts)
    assert (
        (len(forget), len(retain), len(test)) == (12, 48, 20) and not forget & retain and not test & (forget | retain)
    )
    # Candidates are chosen on other rows than those of the table, but for the rows to forget.
    tried, measured = (
        {name: {tuple(row["input_ids"]) for row in rows} for name, rows in sets.items()}
        for sets in (problem._tried, problem._measured)
    )
    assert len(tried["test"]) and not tried["test"] & measured["test"] and not tried["retain"] & measured["retain"]
    assert tried["forget"] == measured["forget"]
    other = GlueProblem(experiment(GLUE), None, 1, progress=False)
    assert set(other.texts[0]["sentence"]) != forget


def test_models_are_tuned_once_and_on_their_rows(monkeypatch):
    seen, tune = [], encoders.tune

    def counted(model, rows, **settings):
        seen.append((len(rows), settings["seed"]))
        return tune(model, rows=rows, **settings)

    monkeypatch.setattr(encoders, "tune", counted)
    config = changed(GLUE, tuning__epochs=2)
    problems = [GlueProblem(experiment(config), None, 0, progress=False) for _ in range(2)]
    for problem in problems:
        assert list(problem.references()) == ["original", "retrained", "retrained again"]
    assert seen == [(60, 0), (48, 0), (48, encoders.AGAIN)]
    first, second = (list(problem.references().values()) for problem in problems)
    for one, other in zip(first, second, strict=True):
        assert one.seconds == other.seconds
        assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_a_run_goes_on_after_the_last_line(finished, monkeypatch):
    folder, rows = finished
    monkeypatch.setattr(encoders, "tune", lambda *args, **kwargs: pytest.fail("tuned again"))
    again = run_experiment(experiment(GLUE), folder, progress=False)
    assert again == rows


def test_the_report_shows_what_is_said_of_the_rows(finished):
    folder, rows = finished
    questions = json.loads((folder / "report.json").read_text())["questions"]
    assert len(questions) == 4 and set(questions[0]["answers"]) >= {"original", "retrained", "retrained again"}
    assert "(confidence in the row's label " in questions[0]["answers"]["original"]
    assert "| retrained again |" in (folder / "report.md").read_text()
    card = (folder / "model" / "README.md").read_text()
    assert "12 training rows of reviews" in card and "share of forget rows that an attack calls members" in card


def test_values_of_files_and_a_pretrained_encoder(encoder, tmp_path):
    """STS-B, of first and second order, without a second retrained model, which is the first one's yardstick."""
    steps = {"label": "SO", "method": "spe", "settings": {"sparsity": 0.5}, "search": {"unlearning_rate": [1e-4]}}
    lines = [*GLUE["methods"], steps]
    config = on_files(encoder, data__task="stsb", methods=lines, evaluation={"again": False})
    rows = run_experiment(experiment(config), tmp_path / "stsb", progress=False)
    assert [row["method"] for row in rows] == ["original", "retrained", "FT", "one step", "SO"]
    assert all(row["gap"] is not None for row in rows)
    assert "reference_auc" not in rows[1] and rows[2]["reference_auc"] is not None
    assert rows[0]["metric"] == "spearman" and set(rows[0]["scores"]) >= {"testing spearman", "testing pearson"}
    assert all(-100 <= row["testing"] <= 100 and 0 <= row["membership"] <= 1 for row in rows)


def test_an_original_that_was_tuned_elsewhere(encoder, tmp_path):
    config = on_files(encoder, evaluation={"again": False})
    problem = GlueProblem(experiment(config), None, 0, progress=False)
    problem.original.save_pretrained(tmp_path / "tuned")
    given = changed(config, model__original=str(tmp_path / "tuned"))
    other = GlueProblem(experiment(given), None, 0, progress=False)
    assert torch.equal(other.original.classifier.weight, problem.original.classifier.weight)
    assert other.references()["original"].seconds is None


def test_the_plan_needs_no_weights(encoder):
    (encoder / "plan").mkdir(exist_ok=True)
    (encoder / "plan" / "config.json").write_text((encoder / "bert" / "config.json").read_text())
    plan = dry_run(experiment(on_files(encoder, model={"name": str(encoder / "plan")})))
    assert "4 forget rows, 16 retain rows" in plan and "logits (2, 2)" in plan
    assert "12 forget rows, 48 retain rows" in dry_run(experiment(GLUE))


# ---- requests that follow one another -------------------------------------------------------------------------------
RATES = {"unlearning_rate": [1e-7, 1e-6]}
MORE = {"successive": "memory_aided", "state": "sums"}
REQUESTS = changed(
    GLUE,
    data__requests=3,
    evaluation={"again": False, "retrain_every": 2, "choose": "unlearning"},
    arguments__kl_rows=8,
    methods=[
        {"label": "free", "method": "spe", "settings": {"sparsity": 0.5}, "search": RATES},
        {"label": "aided", "method": "spe", "settings": {"sparsity": 0.5, **MORE}, "search": RATES},
        {"label": "at once", "method": "spe", "settings": {"sparsity": 0.5}, "search": RATES, "stages": "together"},
    ],
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(folder, rows) of three requests, one after another."""
    folder = tmp_path_factory.mktemp("requests")
    return folder, run_experiment(experiment(REQUESTS), folder, progress=False)


def test_requests_part_the_forget_rows(served):
    problem = GlueProblem(experiment(REQUESTS), None, 0, progress=False)
    whole = GlueProblem(experiment(GLUE), None, 0, progress=False)
    (one,) = whole.stages
    key = lambda rows: sorted(map(tuple, rows["input_ids"]))
    assert [len(stage.forget) for stage in problem.stages] == [4, 4, 4]
    assert key(datasets.concatenate_datasets([stage.forget for stage in problem.stages])) == key(one.forget)
    # Rows of later requests are still there, and hold the model.
    for number, stage in enumerate(problem.stages):
        later = [row for other in problem.stages[number + 1 :] for row in other.forget["input_ids"]]
        assert key(stage.retain) == sorted([*key(one.retain), *map(tuple, later)])
    (merged,) = merge_stages(problem.stages)
    assert key(merged.forget) == key(one.forget) and key(merged.retain) == key(one.retain)
    assert dry_run(experiment(REQUESTS)).count("4 forget rows") == 3


def test_every_request_is_looked_at(served):
    folder, rows = served
    named = {row["method"]: row for row in rows}
    counts = {name: [entry["requests"] for entry in row["path"]] for name, row in named.items()}
    assert counts == {
        "original": [1, 2, 3], "retrained": [2, 3], "free": [1, 2, 3], "aided": [1, 2, 3], "at once": [3],
    }  # fmt: skip
    for row in rows:  # the last request's numbers are those of the row
        last = row["path"][-1]
        assert [last[key] for key in ("unlearning", "remaining", "testing")] == [
            row[key] for key in ("unlearning", "remaining", "testing")
        ]
        assert last["distance"] == pytest.approx(row["distance"], abs=1e-6)
    # Requests of one rate, memory-aided, end where one request of all rows does; what is told is the same candidate.
    aided, once = (
        next(row for row in read_candidates(folder) if row["method"] == name and rate_of(row) == 1e-7)
        for name in ("aided", "at once")
    )
    assert aided["distance"] == pytest.approx(once["distance"], abs=1e-5)
    assert aided["requests"] == 3 and aided["forgotten_rows"] == 12
    report = json.loads((folder / "report.json").read_text())
    (section,) = [section for section in report["sections"] if section["title"] == "Request after request"]
    assert [row[:2] for row in section["table"]][-5:] == [["3", name] for name in ("original", *list(named)[1:])]
    assert (folder / "requests.png").stat().st_size > 10_000


def rate_of(row) -> float:
    return row["settings"]["unlearning_rate"]


def read_candidates(folder) -> list[dict]:
    return json.loads((folder / "report.json").read_text())["candidates"]


def test_requests_go_on_after_the_last_one(served, tmp_path, monkeypatch):
    """A kill between two requests, with sums beside the model: the same numbers as without."""
    trained, train = [], UnlearnTrainer.train

    def killed(self, *args, **kwargs):
        trained.append(getattr(self.method, "state", None))
        if len(trained) == 8 and tmp_path.exists():  # the second request of the first candidate of "aided"
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(UnlearnTrainer, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(REQUESTS), tmp_path, progress=False)
    assert trained[:6] == [None] * 6 and trained[6] == trained[7] != None  # noqa: E711
    rows = run_experiment(experiment(REQUESTS), tmp_path, progress=False)
    assert len(trained) == 8 + 5 + 1  # the rest of "aided", and the one training of "at once"
    assert [without_time(row) for row in rows] == [without_time(row) for row in served[1]]


def without_time(row) -> dict:
    path = [{key: value for key, value in entry.items() if key != "seconds"} for entry in row["path"]]
    return {key: value for key, value in row.items() if key not in ("seconds", "peak_memory_mb")} | {"path": path}


def test_the_candidate_at_equal_forgetting_is_shown(served):
    folder, rows = served
    for name in ("free", "aided", "at once"):
        (shown,) = (row for row in rows if row["method"] == name)
        tried = [row for row in read_candidates(folder) if row["method"] == name]
        apart = [abs(row["unlearning"] - row["retrained_unlearning"]) for row in tried]
        assert abs(shown["unlearning"] - shown["retrained_unlearning"]) == min(apart) and len(tried) == 2


CASES = {
    "more requests than rows": (lambda e: on_files(e, data__requests=5), "data.requests=5: there are 4 rows"),
    "an unknown choice": (lambda e: on_files(e, evaluation={"choose": "distance"}), "unknown choose 'distance'"),
    "an unknown task": (lambda e: on_files(e, data__task="cola"), "unknown GLUE task 'cola'"),
    "no such folder": (lambda e: on_files(e, data__source="absent"), "absent"),
    "no file of the task": (lambda e: on_files(e, data__task="qqp"), "no train rows of qqp"),
    "more than there is": (lambda e: on_files(e, data__rows=21), "data.rows=21: sst2 has 20"),
    "more tests than there are": (lambda e: on_files(e, data__test_rows=11), "data.test_rows=11: sst2 has 10"),
    "everything": (lambda e: on_files(e, data__forget=20), "forget=20: give 1 to 19"),
    "nothing": (lambda e: on_files(e, data__forget=0), "forget must be at least 1, not 0"),
    "a head already": (
        lambda e: on_files(e, data__task="mnli", model={"name": str(e / "three")}),
        "three has a head of 3 outputs already, which may know the rows",
    ),
    "an original of another task": (
        lambda e: on_files(e, model__original=str(e / "three")),
        "its head has 3 outputs, and sst2 needs 2",
    ),
    "no model": (lambda e: changed(GLUE, model={"original": "x"}), "model: give name (the pretrained encoder)"),
    "reviews with a pretrained one": (
        lambda e: changed(GLUE, model={"name": str(e / "bert")}),
        "belong together: give both or neither",
    ),
    "no epochs": (lambda e: on_files(e, tuning__epochs=0), "epochs must be at least 1"),
    "values for a method of classes": (
        lambda e: on_files(e, data__task="stsb", evaluation={"again": False}, methods=[
            {"label": "x", "method": "first_order", "settings": {"objective": "random_label"},
             "search": {"learning_rate": [1e-3]}},
        ]),
        "a regression does not have",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(name, encoder, tmp_path, capsys):
    make, message = CASES[name]
    path = write_config(tmp_path / "protocol.yaml", make(encoder))
    assert run_recipe("spe_glue", "--config", path, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in error


def test_the_command_line_changes_the_yaml(encoder, tmp_path, capsys):
    path = write_config(tmp_path / "protocol.yaml", on_files(encoder))
    arguments = ("--config", path, "--rows", 15, "--forget", 3, "--dry_run", "--data_dir", encoder / "data")
    assert run_recipe("spe_glue", *arguments) == 0
    assert "3 forget rows, 12 retain rows" in capsys.readouterr().out

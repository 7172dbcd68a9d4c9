# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Questions forgotten by encoders of spans: windows, rows of the table, both versions, report, bad input."""

import itertools
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from hf_unlearn.data.training import word_tokenizer
from hf_unlearn.evaluation.squad import answer_f1, normalize_answer
from hf_unlearn.experiments.planning import dry_run
from hf_unlearn.experiments.problems.squad import SquadProblem
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.miniature.passages import load_passages
from tests.support.experiments import SQUAD, changed, experiment, run_recipe, saved_encoder, write_config
from tests.support.rows import write_lines


pytestmark = pytest.mark.filterwarnings("ignore:damping")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("passages")
    return folder, run_experiment(experiment(SQUAD), folder, progress=False)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of pretrained encoders beside files of both versions, of a few questions."""
    folder = tmp_path_factory.mktemp("encoder")
    train, test = (part.to_list() for part in load_passages(1, train=20, test=10))
    for version, without in (("1.1", 0), ("2.0", 4)):
        for split, rows in (("train", train), ("validation", test)):
            none = [row | {"answers": {"text": [], "answer_start": []}} for row in rows[:without]]
            write_lines(folder / version / f"{split}.jsonl", none + rows[without:])
    tokenizer = word_tokenizer([row[name] for row in (*train, *test) for name in ("context", "question")])
    for name, head in (("bert", None), ("span", "span"), ("classes", "classes")):
        saved_encoder(folder / name, tokenizer, head)
    return folder


def on_files(encoder, version="1.1", **keys):
    data = {"version": version, "source": str(encoder / version), "forget": 4, "max_length": 40, "stride": 8}
    keys = {"model": {"name": str(encoder / "bert")}, "tuning__epochs": 1, "data": data} | keys
    return changed(SQUAD, **keys)


def test_rows_of_models_and_lines(finished):
    _, rows = finished
    lines = ["SO", "FT", "one step"]
    assert [row["method"] for row in rows] == ["original", "retrained", "retrained again", *lines]
    named = {row["method"]: row for row in rows}
    for row in rows:
        assert row["metric"] == "f1" and row["unlearning"] == 100 * row["scores"]["unlearning f1"]
        for key in ("unlearning", "remaining", "testing"):
            assert row[f"retrained_{key}"] == named["retrained"][key]
            assert 0 <= row[f"{key}_exact"] == 100 * row["scores"][f"{key} exact"] <= row[key] <= 100
        assert row["reference_interval"][0] <= row["reference_auc"] <= row["reference_interval"][1]
    assert (named["retrained"]["gap"], named["retrained"]["distance"]) == (0, 0)
    # The original knows the answers, a retrained one finds them as often as those of other passages.
    original = named["original"]
    assert original["unlearning"] > 95 and original["distance"] > named["retrained again"]["distance"]
    assert named["retrained"]["unlearning"] < 80 and original["population_auc"] > 0.6
    assert all(row["settings"] is not None for row in rows)


def answers_of(model, problem, part):
    """Oracle: the best span of every question, of all pairs of tokens of the passage, each in one window."""
    found = []
    for row, characters, text in zip(part.windows.rows, part.windows.offsets, part.texts, strict=True):
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([row["input_ids"]]), token_type_ids=torch.tensor([row["token_type_ids"]])
            )
        start, end = output.start_logits[0], output.end_logits[0]
        inside = np.flatnonzero(characters[:, 0] >= 0).tolist()
        spans = [(first, last) for first, last in itertools.product(inside, inside) if first <= last < first + 30]
        first, last = max(spans, key=lambda span: float(start[span[0]] + end[span[1]]))
        found.append((text["context"][characters[first, 0] : characters[last, 1]], text["answers"]["text"][0]))
    return found


def test_numbers_are_those_of_the_models(finished):
    """The saved model's own answers, found and counted here, are the row's."""
    folder, rows = finished
    (best,) = (row for row in rows if row.get("saved_as"))
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "model").eval()
    problem = SquadProblem(experiment(SQUAD), None, 0, progress=False)
    for part, key in ((problem.forget, "unlearning"), (problem.test, "testing")):
        answers = answers_of(model, problem, part)
        exact = np.mean([normalize_answer(found) == normalize_answer(right) for found, right in answers])
        assert best[f"{key}_exact"] == pytest.approx(100 * exact)
        assert best[key] == pytest.approx(100 * np.mean([answer_f1(*pair) for pair in answers]))


def test_all_windows_of_a_question_go_together():
    """Passages longer than a window; the two sides share no question, and candidates are chosen on others."""
    problem = SquadProblem(experiment(changed(SQUAD, data__max_length=22, data__stride=4)), None, 0, progress=False)
    stage = problem.stages[0]
    for part, rows, count in ((problem.forget, stage.forget, 12), (problem.retain, stage.retain, 48)):
        assert len(part.texts) == count < len(rows) == len(part.windows.questions)
        assert set(part.windows.questions.tolist()) == set(range(count))
    forget, retain, test = (set(rows["context"]) for rows in problem.texts)
    assert not forget & retain and not test & (forget | retain)
    tried, measured = (
        {name: set(part.texts["context"]) for name, part in sets.items()}
        for sets in (problem._tried, problem._measured)
    )
    assert tried["test"] and not tried["test"] & measured["test"] and not tried["retain"] & measured["retain"]
    assert tried["forget"] == measured["forget"] == forget


def test_the_report_shows_what_is_said_of_the_rows(finished):
    folder, _ = finished
    questions = json.loads((folder / "report.json").read_text())["questions"]
    assert len(questions) == 4 and set(questions[0]["answers"]) >= {"original", "retrained", "retrained again"}
    assert "(confidence in the right answer " in questions[0]["answers"]["original"]
    assert "UA, exact (%)" in (folder / "report.md").read_text()
    assert "12 training rows of passages" in (folder / "model" / "README.md").read_text()


def test_files_and_a_pretrained_encoder(encoder, tmp_path):
    lines = [line for line in SQUAD["methods"] if line["label"] == "SO"]
    config = on_files(encoder, "2.0", data__version=2.0, methods=lines, evaluation={"again": False})  # without quotes
    rows = run_experiment(experiment(config), tmp_path, progress=False)
    assert [row["method"] for row in rows] == ["original", "retrained", "SO"]
    assert all(0 <= row["testing"] <= 100 and 0 <= row["membership"] <= 1 for row in rows)


def test_no_answer_is_one_in_the_second_version_alone(encoder):
    for version in ("1.1", "2.0"):
        problem = SquadProblem(experiment(on_files(encoder, version)), None, 0, progress=False)
        assert any(not row["answers"]["text"] for texts in problem.texts for row in texts) == (version == "2.0")
        model = problem._start(0)
        with torch.no_grad():
            # The class token is of type 0 and in front, and the head sees nothing else.
            hidden = model.bert(**_one(problem.forget.windows.rows)).last_hidden_state[0, 0]
            model.qa_outputs.weight.copy_(50 * (hidden - hidden.mean()).repeat(2, 1))
        answers = problem.said(model, problem.forget).outputs.answers
        assert ("" in answers) == (version == "2.0")


def _one(rows):
    return {name: torch.tensor([rows[0][name]]) for name in ("input_ids", "token_type_ids", "attention_mask")}


def test_the_plan_needs_no_weights(encoder):
    (encoder / "plan").mkdir(exist_ok=True)
    (encoder / "plan" / "config.json").write_text((encoder / "bert" / "config.json").read_text())
    plan = dry_run(experiment(on_files(encoder, model={"name": str(encoder / "plan")})))
    assert "4 forget rows, 16 retain rows" in plan and "logits (2, 2, 1, 8)" in plan
    assert "12 forget rows, 48 retain rows" in dry_run(experiment(SQUAD))


CASES = {
    "an unknown version": (lambda e: on_files(e, data__version="3"), "unknown version '3': choose '1.1' or '2.0'"),
    "questions without answers": (lambda e: on_files(e, data__source=str(e / "2.0")), "choose version 2.0"),
    "no such folder": (lambda e: on_files(e, data__source="absent"), "absent"),
    "more than there is": (lambda e: on_files(e, data__rows=21), "data.rows=21: SQuAD 1.1 has 20"),
    "everything": (lambda e: on_files(e, data__forget=20), "forget=20: give 1 to 19"),
    "short windows": (lambda e: on_files(e, data__max_length=12), "raise max_length, or lower stride"),
    "passages of files": (lambda e: on_files(e, data__passages={"train": 9}), "belongs to source: passages"),
    "passages that there are not": (lambda e: changed(SQUAD, data__passages={"x": 9}), "no setting x"),
    "passages of 2.0": (lambda e: changed(SQUAD, data__version="2.0"), "the passages are of 1.1: leave it out"),
    "a head already": (
        lambda e: on_files(e, model={"name": str(e / "span")}),
        "span has a head of 2 outputs already, which may know the rows",
    ),
    "an original of another task": (lambda e: on_files(e, model__original=str(e / "classes")), "qa_outputs"),
    "no model": (lambda e: changed(SQUAD, model={"original": "x"}), "model: give name (the pretrained encoder)"),
    "passages with a pretrained one": (
        lambda e: changed(SQUAD, model={"name": str(e / "bert")}),
        "belong together: give both or neither",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(name, encoder, tmp_path, capsys):
    make, message = CASES[name]
    path = write_config(tmp_path / "protocol.yaml", make(encoder))
    assert run_recipe("spe_squad", "--config", path, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and "Traceback" not in error


def test_the_command_line_changes_the_yaml(encoder, tmp_path, capsys):
    path = write_config(tmp_path / "protocol.yaml", on_files(encoder))
    arguments = ("--config", path, "--rows", 15, "--forget", 3, "--dry_run", "--data_dir", encoder / "2.0")
    assert run_recipe("spe_squad", *arguments, "--version", "2.0") == 0
    assert "3 forget rows, 12 retain rows" in capsys.readouterr().out

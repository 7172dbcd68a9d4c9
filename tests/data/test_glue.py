# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""GLUE: rows of every task from files of every layout and from the Hub, as tokens, and what is said of bad ones."""

import logging

import pytest
from datasets import Dataset

from hf_unlearn.data.glue import TASKS, find_task, load_glue, tokenize_glue
from hf_unlearn.data.rows import draw_request
from hf_unlearn.errors import InputError
from tests.support.encoders import make_tokenizer, sentences
from tests.support.rows import write_lines


PAIR = {"premise": "the play was fine", "hypothesis": "a play", "label": 1}


def write_sst2(folder, train=None, test=None, name="sst2_{}.jsonl"):
    write_lines(folder / name.format("train"), train or sentences(6))
    write_lines(folder / name.format("validation"), test or sentences(4, seed=1))
    return folder


@pytest.mark.parametrize(
    "name",
    ["sst2_{}.jsonl", "sst2_{}.jsonl.gz", "sst2_sub_{}.jsonl", "sst2/{}.jsonl", "sst2/{}-00000-of-00001.parquet"],
)
def test_a_folder_in_every_layout(name, tmp_path, no_hub):
    if name.endswith("parquet"):
        for split, rows in {"train": sentences(6), "validation": sentences(4, seed=1)}.items():
            (tmp_path / "sst2").mkdir(exist_ok=True)
            Dataset.from_list(rows).to_parquet(tmp_path / name.format(split))
    else:
        write_sst2(tmp_path, name=name)
    train, test = load_glue(TASKS["sst2"], tmp_path)
    assert train.to_list() == sentences(6) and test.to_list() == sentences(4, seed=1)


def test_the_hub_is_asked_for_the_genres_of_the_training(hub):
    calls = hub([PAIR, PAIR | {"label": 0}])
    train, test = load_glue(TASKS["mnli"])
    assert calls == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_matched")]
    assert train["label"][:] == test["label"][:] == [1, 0]


def test_matched_rows_of_mnli_alone(tmp_path):
    for split, label in (("train", 0), ("validation_matched", 1), ("validation_mismatched", 2)):
        write_lines(tmp_path / f"mnli_{split}.jsonl", [PAIR | {"label": label}])
    train, test = load_glue(TASKS["mnli"], tmp_path)
    assert (train["label"][0], test["label"][0]) == (0, 1)


def test_labels_by_name_number_and_text(tmp_path):
    rows = [PAIR | {"label": label} for label in ("contradiction", 2, "2", 2.0)]
    for split in ("train", "validation"):
        write_lines(tmp_path / f"mnli_{split}.jsonl", rows)
    train, _ = load_glue(TASKS["mnli"], tmp_path)
    assert train["label"][:] == [2, 2, 2, 2] and train.features["label"].dtype == "int64"
    scored = {"sentence1": "a play", "sentence2": "the play"}
    for split in ("train", "validation"):
        write_lines(tmp_path / f"stsb_{split}.jsonl", [scored | {"score": 5}, scored | {"score": 3.8}])
    train, _ = load_glue(TASKS["stsb"], tmp_path)
    assert train["label"][:] == [5.0, 3.8]


@pytest.mark.parametrize(
    "row, fault",
    [
        (
            {"sentence": "a play", "label": -1},
            "line 2: the label -1 is none of sst2's: give 0 \\(negative\\), 1 \\(positive\\)",
        ),
        ({"sentence": "a play", "label": None}, "None is none of sst2's"),
        ({"sentence": "a play", "label": True}, "True is none"),
        ({"sentence": "a play", "label": 0.5}, "0.5 is none"),
        ({"sentence": " ", "label": 1}, "'sentence' is no text"),
        ({"label": 1}, "'sentence' is no text"),
    ],
)
def test_bad_rows_are_named(row, fault, tmp_path):
    write_sst2(tmp_path, train=[*sentences(1), row])
    with pytest.raises(InputError, match=fault) as refused:
        load_glue(TASKS["sst2"], tmp_path)
    assert "sst2_train.jsonl" in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="choose one of mnli, qqp, sst2, stsb"):
        find_task("cola")
    assert find_task("SST-2") is TASKS["sst2"] and find_task("STS_B") is TASKS["stsb"]
    with pytest.raises(InputError, match="no train rows of sst2: give a file such as sst2_train.jsonl.*nothing"):
        load_glue(TASKS["sst2"], tmp_path)
    write_lines(tmp_path / "qqp_train.jsonl", sentences(2))
    with pytest.raises(InputError, match="no column question1, question2"):
        load_glue(TASKS["qqp"], tmp_path)
    write_lines(tmp_path / "sst2_train.jsonl", [{"sentence": "a play"}])
    with pytest.raises(InputError, match="no column label"):
        load_glue(TASKS["sst2"], tmp_path)


def test_pairs_are_one_row_with_types(caplog):
    tokenizer = make_tokenizer()
    rows = Dataset.from_list([PAIR, {"premise": "ann was warm and bright", "hypothesis": "bob", "label": 2}])
    encoded = tokenize_glue(rows, TASKS["mnli"], tokenizer, max_length=20)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        *("[CLS]", "the", "play", "was", "fine", "[SEP]", "a", "play", "[SEP]")
    ]
    assert encoded["token_type_ids"][0] == [0] * 6 + [1] * 3 and encoded["labels"][:] == [1, 2]
    with caplog.at_level(logging.WARNING):
        short = tokenize_glue(rows, TASKS["mnli"], tokenizer, max_length=8)
    # The longer text gives way, and what is short enough stays whole.
    assert tokenizer.convert_ids_to_tokens(short["input_ids"][1])[-2:] == ["bob", "[SEP]"]
    assert "2 of 2 rows are cut to max_length=8" in caplog.text
    with pytest.raises(InputError, match="needs 5 at least"):
        tokenize_glue(rows, TASKS["mnli"], tokenizer, max_length=4)


def test_a_request_is_drawn_once_for_a_seed():
    rows = Dataset.from_list(sentences(30)).add_column("number", list(range(30)))
    forget, retain = draw_request(rows, 5, seed=3)
    assert len(forget) == 5 and sorted([*forget["number"], *retain["number"]]) == list(range(30))
    assert forget["number"][:] == sorted(forget["number"]) == draw_request(rows, 5, seed=3)[0]["number"][:]
    assert forget["number"][:] != draw_request(rows, 5, seed=4)[0]["number"][:]
    for wrong in (0, 30, 31):
        with pytest.raises(InputError, match=f"forget={wrong}: give 1 to 29"):
            draw_request(rows, wrong)


def test_the_real_files(shared_data):
    counts = {"sst2": (67349, 872), "stsb": (5749, 1500), "mnli": (8999, 1000), "qqp": (8999, 1000)}
    for name in ("stsb", "qqp"):
        train, test = load_glue(TASKS[name], shared_data / "glue")
        assert (len(train), len(test)) == counts[name]
        labels = set(train["label"])
        assert max(labels) == (5.0 if name == "stsb" else 1) and min(labels) == 0

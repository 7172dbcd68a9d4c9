# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows as people give them: what is read alike, and the line that names set, row and column."""

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from hf_unlearn.data.inputs import drop_empty, read_dataset
from hf_unlearn.errors import InputError


ROWS = [{"question": "Who?", "answer": "Ann"}, {"question": "Where?", "answer": "Here"}]
DATASET = Dataset.from_list(ROWS)
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann"}]


@pytest.mark.parametrize(
    "given",
    [
        DATASET,
        DATASET.add_column("id", [1, 2]),
        DATASET.with_format("numpy"),
        DatasetDict(train=DATASET),
        ROWS,
        tuple(ROWS),
        [row | {"note": number} for number, row in enumerate(ROWS)],
    ],
)
def test_one_set_given_in_many_ways(given, tmp_path):
    rows, kind = read_dataset(given, "forget")
    assert kind == "question" and rows.to_list() == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_set_given_as_a_file(name, kind, tmp_path):
    path = tmp_path / name
    {"jsonl": DATASET.to_json, "csv": DATASET.to_csv, "parquet": DATASET.to_parquet}[name.split(".")[1]](path)
    assert read_dataset(kind(path), "forget")[0].to_list() == ROWS


def test_a_text_file_is_one_row(tmp_path):
    (tmp_path / "book.txt").write_text("one\ntwo\n")
    rows, kind = read_dataset(tmp_path / "book.txt", "forget")
    assert kind == "text" and rows.to_list() == [{"text": "one\ntwo\n"}]


def test_token_ids_of_any_whole_type():
    rows, kind = read_dataset([{"input_ids": np.array([1, 2]), "labels": [-100, 2], "x": None}], "forget")
    assert kind == "input_ids" and rows.to_list() == [{"input_ids": [1, 2], "labels": [-100, 2]}]


REFUSED = [
    (None, "no forget dataset was given"),
    ([], "the forget set is empty"),
    (7, "is of type int: give a Dataset"),
    (DatasetDict(train=DATASET, test=DATASET), r"splits train, test: pass one, such as dataset\['train'\]"),
    (DATASET.to_iterable_dataset(), "is a stream"),
    (["a", "b"], "forget row 1 is a str"),
    ([ROWS[0], {"question": "?"}], "forget row 2 has no column answer"),
    ([ROWS[0], {"question": "?", "answer": ["a", "b"]}], "forget row 2, column answer: it must be text, not list"),
    ([{"question": "?", "answer": None}], "row 1, column answer: it must be text, not nothing"),
    ([{"question": 3, "answer": "x"}], "row 1, column question: it must be text, not int 3"),
    (Dataset.from_dict({"text": ["a", None]}), "forget row 2, column text: it must be text, not nothing"),
    (Dataset.from_dict({"text": [1.5]}), "row 1, column text: it must be text, not float"),
    ([{"input_ids": [1.0, 2.0]}], "row 1, column input_ids: it must hold whole numbers"),
    ([{"input_ids": [1, -2]}], "row 1, column input_ids"),
    ([{"input_ids": [True, False]}], "row 1, column input_ids"),
    ([{"input_ids": [[1], [2, 3]]}], "row 1, column input_ids"),
    ([{"input_ids": [1, None]}], "row 1, column input_ids"),
    ([{"input_ids": "1 2"}], "row 1, column input_ids: it must be a list of whole numbers from 0, not str"),
    ([{"input_ids": [1, 2], "labels": [1]}], "row 1: 2 input_ids and 1 labels"),
    ([{"input_ids": [1, 2], "labels": [1, -1]}], "row 1, column labels"),
    ([{"input_ids": [1, 2], "attention_mask": [1, 2]}], "row 1, column attention_mask"),
    ([{"messages": []}], "row 1, column messages: it must be a list of turns"),
    ([{"messages": "hello"}], "row 1, column messages"),
    ([{"messages": TURNS[:1]}], "the last turn is user's"),
    ([{"messages": TURNS[1:]}], "the last turn is assistant's"),
    ([{"messages": [{"role": "human", "content": "x"}, TURNS[1]]}], "turn 1: role must be one of system, user"),
    ([{"messages": [TURNS[0], {"role": "assistant", "content": None}]}], "turn 2: content must be text"),
    ([{"messages": [TURNS[0], {"role": "assistant"}]}], "turn 2: a turn is an object with role and content"),
    ([{"prompt": "x"}], "the columns prompt: it needs input_ids"),
]


@pytest.mark.parametrize("given, message", REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_is_refused_in_one_line(given, message):
    with pytest.raises(InputError, match=message) as caught:
        read_dataset(given, "forget")
    assert "\n" not in str(caught.value)


def test_empty_rows_are_left_out_with_a_count(caplog):
    blank = [{"question": " ", "answer": "x"}, {"question": "x", "answer": "\n"}, ROWS[0]]
    rows, dropped = drop_empty(*read_dataset(blank, "retain"), "retain")
    assert dropped == 2 and rows.to_list() == [ROWS[0]]
    assert "2 of 3 rows of the retain set are empty" in caplog.text
    silent = [{"messages": TURNS}, {"messages": [TURNS[0], {"role": "assistant", "content": " "}]}]
    assert drop_empty(*read_dataset(silent, "retain"), "retain")[1] == 1
    with pytest.raises(InputError, match="all 1 rows of the retain set are empty"):
        drop_empty(*read_dataset([{"text": ""}], "retain"), "retain")

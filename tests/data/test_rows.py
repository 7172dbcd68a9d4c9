# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows: what is refused, what is tokenised, who is paired with whom."""

import logging

import pytest
import torch
from datasets import Dataset

from hf_unlearn.data.preparing import Preparation, prepare_rows
from hf_unlearn.data.rows import (
    PairedRows,
    count_overlap,
    fingerprint_rows,
    longest_first,
    sample_rows,
    with_span_labels,
)
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from tests.support.trainers import FORGET, RETAIN, make_rows


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["who is it? it is a cat.", "the cat sat on the mat"], vocab_size=300)


@pytest.mark.parametrize(
    "rows, message",
    [
        (None, "no forget dataset was given"),
        (Dataset.from_dict({"input_ids": [], "labels": []}), "forget set is empty"),
        (Dataset.from_dict({"prompt": ["a"], "reply": ["b"]}), "columns prompt, reply: it needs input_ids"),
        (Dataset.from_dict({"question": ["a"]}), "columns question: it needs"),
        (Dataset.from_dict({"text": ["a cat"]}), "pass processing_class"),
        (
            Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[-100] * 3]}),
            "every label of the forget set is ignored",
        ),
        # The first token's label is predicted by nothing.
        (Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[1, -100, -100]]}), "every label"),
    ],
)
def test_bad_rows_are_one_line(rows, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare_rows(rows, "forget", None, 16)
    assert "\n" not in str(caught.value)


def test_question_and_answer_rows_carry_labels_on_the_answer_and_its_end(tokenizer):
    rows = prepare_rows(
        Dataset.from_dict({"question": ["who is it?"], "answer": ["a cat"], "id": [7]}), "forget", tokenizer, 64
    )
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    row = rows[0]
    labelled = [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
    assert [label for label in row["labels"] if label != -100] == labelled
    assert labelled[-1] == tokenizer.eos_token_id and tokenizer.decode(labelled[:-1]).strip() == "a cat"


def test_text_rows_are_labelled_everywhere(tokenizer):
    texts = Dataset.from_dict({"text": ["the cat sat on the mat", "a cat"]})
    rows = prepare_rows(texts, "forget", tokenizer, 5, long_text="cut")
    assert rows[0]["input_ids"] == tokenizer("the cat sat on the mat")["input_ids"][:5] == rows[0]["labels"]


@pytest.mark.parametrize(
    "ids, mask, want",
    [
        ([5, 6, 7, 0], [1, 1, 1, 0], [5, 6, 7, -100]),
        ([0, 0, 5, 6, 7], [0, 0, 1, 1, 1], [-100, -100, -100, 6, 7]),  # nothing real predicts the 5
    ],
)
@pytest.mark.parametrize("labelled", [False, True])
def test_padding_that_rows_bring_is_neither_learnt_nor_counted(ids, mask, want, labelled):
    rows = Dataset.from_dict({"input_ids": [ids], "attention_mask": [mask]} | ({"labels": [ids]} if labelled else {}))
    prepare = Preparation(None, 8)
    assert prepare(rows, "forget")[0] == {"input_ids": ids, "attention_mask": mask, "labels": want}
    assert prepare.counts["forget"].tokens == 2


@pytest.mark.parametrize("mask", [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
def test_rows_with_labels_on_padding_alone_are_refused(mask):
    with pytest.raises(InputError, match="every label of the forget set is ignored"):
        prepare_rows([{"input_ids": [5, 6, 7], "attention_mask": mask, "labels": [5, 6, 7]}], "forget", None, 8)


def test_rows_in_torch_format_are_rows(tokenizer):
    rows = prepare_rows(FORGET.with_format("torch"), "forget", None, 16)
    assert rows[0]["labels"] == FORGET[0]["labels"]


def test_rows_without_labels_among_others_are_counted(caplog):
    rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6]], "labels": [[-100, -100], [-100, 4], [5, -100]]})
    with caplog.at_level(logging.WARNING):
        assert len(prepare_rows(rows, "retain", None, 8)) == 3
    assert "2 of 3 rows of the retain set have no label" in caplog.text


def test_overlap_and_fingerprint_see_content_only():
    mixed = Dataset.from_list([FORGET[3] | {"note": "x"}, RETAIN[0] | {"note": "y"}, FORGET[5] | {"note": "z"}])
    assert count_overlap(FORGET, mixed) == 2 and count_overlap(FORGET, RETAIN) == 0
    assert fingerprint_rows(mixed) == fingerprint_rows(mixed.remove_columns("note"))
    assert fingerprint_rows(mixed) != fingerprint_rows(mixed.select([1, 0, 2]))


def partners(pairs, epochs):
    found = []
    for epoch in range(epochs):
        pairs.set_epoch(epoch)
        found += [tuple(pairs[index]["retain"]["input_ids"]) for index in range(len(pairs))]
    return found


def test_every_retain_row_is_used_before_one_comes_again():
    pairs = PairedRows(make_rows(8, 1), make_rows(20, 2, longest=12), seed=0)
    found = partners(pairs, 5)  # 40 draws of 20 rows
    assert len(set(found[:20])) == len(set(found[20:])) == 20 and found[:20] != found[20:]
    assert partners(PairedRows(make_rows(8, 1), make_rows(20, 2, longest=12), seed=0), 5) == found
    assert partners(PairedRows(make_rows(8, 1), make_rows(20, 2, longest=12), seed=1), 5) != found


def test_fewer_retain_rows_than_forget_rows():
    found = partners(PairedRows(make_rows(7, 1), make_rows(3, 2), seed=0), 3)
    assert all(len(set(found[start : start + 3])) == 3 for start in range(0, 21, 3))


def test_a_persistent_worker_hears_of_a_new_epoch():
    pairs = PairedRows(make_rows(4, 1), make_rows(12, 2), seed=0)
    loader = torch.utils.data.DataLoader(
        pairs, batch_size=4, num_workers=1, persistent_workers=True, collate_fn=lambda rows: rows
    )
    seen = []
    for epoch in range(2):
        pairs.set_epoch(epoch)
        seen += [tuple(row["retain"]["input_ids"]) for row in next(iter(loader))]
    assert seen == partners(pairs, 2)


def test_the_longest_rows_come_first():
    rows = Dataset.from_dict({"input_ids": [[1], [2, 2, 2], [3, 3], [4, 4, 4]], "labels": [0, 1, 2, 3]})
    ordered, lengths = longest_first(rows)
    assert ordered["labels"][:] == [1, 3, 2, 0] and lengths == [1, 3, 2, 3]
    images = Dataset.from_dict({"pixels": [0, 1]})
    assert longest_first(images) == (images, [])


def test_sample_rows_takes_each_row_equally_often():
    rows = Dataset.from_dict({"n": list(range(10))})
    counts = [0] * 10
    for seed in range(400):
        for value in sample_rows(rows, 3, seed)["n"]:
            counts[value] += 1
    assert all(90 <= count <= 150 for count in counts)  # 120 expected, standard deviation 9


def test_rows_with_other_spans_are_other_rows():
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 3, "start_positions": [0, 1, 0], "end_positions": [2, 2, 2]})
    first, second, third = (fingerprint_rows(rows.select([number])) for number in range(3))
    assert first == third != second
    labelled = with_span_labels(rows)
    assert labelled.column_names == ["input_ids", "labels"] and labelled["labels"][1] == [[1], [2]]
    assert labelled.to_list() == [
        {name: row[name] for name in ("input_ids", "labels")} for row in prepare_rows(rows, "forget", None, 16)
    ]

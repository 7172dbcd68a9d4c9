# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Labels of a batch: which rows are kept, what is predicted in them, and what the model takes of them."""

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.runtime.labels import read_labels


MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1]])
IDS = torch.arange(16).view(4, 4)


def read(labels, causal=False, **others):
    labels = {"labels": torch.tensor(labels)} if labels is not None else {}
    return read_labels({"input_ids": IDS, "attention_mask": MASK} | labels | others, causal)


def test_rows_of_padding_and_rows_without_labels_are_left_out():
    found = read([1, 1, -100, 0])
    assert found.real.tolist() == [True, False, True, True] and found.kept.tolist() == [True, False, False, True]
    batch = {"input_ids": IDS, "labels": found.labels, "pair": torch.zeros(2), "names": "ab"}
    taken = found.take(batch, torch.device("cpu"))
    assert torch.equal(taken["input_ids"], IDS[[0, 3]]) and len(taken["pair"]) == 2 and taken["names"] == "ab"
    assert "labels" not in taken
    assert read([[1.5], [0.0], [2.0], [0.0]]).labels.tolist() == [1.5, 0.0, 2.0, 0.0]  # a column of values


def test_tokens_count_where_a_real_token_predicts_a_real_one():
    labels = [[5, 5, 5, 5]] * 4
    ignored = lambda found: found.labels.eq(-100).int().tolist()
    assert ignored(read(labels)) == (1 - MASK).tolist()
    assert ignored(read(labels, causal=True)) == [[0, 0, 0, 1], [1] * 4, [0, 0, 1, 1], [1, 1, 0, 0]]
    # The first label of a row is predicted by nothing.
    first = [[5, -100, -100, -100]] * 4
    assert read(first).kept.tolist() == [True, False, True, False] and not read(first, causal=True).kept.any()


def test_ends_of_spans_count_at_real_tokens():
    labels = [[[0], [2]], [[0], [1]], [[1], [2]], [[0], [3]]]
    found = read(labels)
    assert found.labels[:, :, 0].tolist() == [[0, 2], [-100, -100], [1, -100], [-100, 3]]
    places = torch.tensor(labels)[:, :, 0]
    same = read(None, start_positions=places[:, :1], end_positions=places[:, 1])
    assert torch.equal(same.labels, found.labels) and torch.equal(same.kept, found.kept)
    outside = read(None, start_positions=torch.tensor([-1, 0, 0, 9]), end_positions=torch.tensor([4, 0, 1, 7]))
    assert outside.labels[:, :, 0].tolist() == [[-100, -100], [-100, -100], [0, 1], [-100, -100]]
    # Without a mask all tokens are real.
    bare = read_labels({"input_ids": IDS, "labels": torch.tensor(labels)}, False)
    assert bare.labels.tolist() == labels and bare.kept.all()


@pytest.mark.parametrize("labels, others, message", [
    (None, {}, "yields no labels, and no start_positions and end_positions"),
    (None, {"start_positions": torch.zeros(4)}, "yields no labels"),
    ([1.0, float("inf"), 0.0, 0.0], {}, "no finite number"),
    ([0, 1, 0, 1], {"attention_mask": MASK[:, None]}, "attention_mask must be of shape"),
])  # fmt: skip
def test_what_cannot_be_read(labels, others, message):
    with pytest.raises(InputError, match=message) as raised:
        read(labels, **others)
    assert len(str(raised.value).splitlines()) == 1

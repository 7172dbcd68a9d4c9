# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Collators: padding, masks and labels."""

import pytest
import torch

from hf_unlearn.data.collators import CausalCollator, UnlearnCollator
from hf_unlearn.errors import InputError


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_collator(side):
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = CausalCollator(2, side)(rows)
    short = {"right": ([4, 2, 2], [1, 0, 0], [4, -100, -100]), "left": ([2, 2, 4], [0, 0, 1], [-100, -100, -100])}[
        side
    ]
    # The real token 2 of the first row is also the padding id: its mask must stay 1.
    assert batch["input_ids"].tolist() == [[1, 2, 3], short[0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], short[1]]
    assert batch["labels"].tolist() == [[-100, 2, 3], short[2]]
    assert {tensor.dtype for tensor in batch.values()} == {batch["input_ids"].long().dtype}


def test_collator_arguments():
    with pytest.raises(InputError, match="left or right"):
        CausalCollator(0, "middle")
    with pytest.raises(InputError, match="pad_token"):
        CausalCollator(None)


def test_unlearn_collator():
    row = lambda *ids: {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(ids)}
    pairs = [{"forget": row(1, 2), "retain": row(3)}, {"forget": row(4), "retain": row(5, 6, 7)}]
    batch = UnlearnCollator(CausalCollator(0))(pairs)
    assert batch["forget"]["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert batch["retain"]["labels"].tolist() == [[3, -100, -100], [5, 6, 7]]


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_of_rows_and_of_spans(side):
    rows = [
        {"input_ids": [1, 2, 3], "token_type_ids": [0, 0, 1], "labels": 2},
        {"input_ids": [4], "token_type_ids": [1], "labels": 0},
    ]
    collate = CausalCollator(9, side)
    batch = collate(rows)
    assert batch["labels"].tolist() == [2, 0] and batch["labels"].dtype == torch.long
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [1, 0, 0] if side == "right" else [0, 0, 1]]
    values = collate([row | {"labels": value} for row, value in zip(rows, (2.5, 0.0))])
    assert values["labels"].tolist() == [2.5, 0] and values["labels"].is_floating_point()
    spans = collate([row | {"labels": span} for row, span in zip(rows, ([[0], [2]], [[0], [-100]]))])
    moved = 0 if side == "right" else 2  # the places that padding on the left gives to the tokens
    assert spans["labels"].tolist() == [[[0], [2]], [[moved], [-100]]]

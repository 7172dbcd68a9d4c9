# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Confidences against a model asked row by row, and what padding and order must not change."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation.confidences import encoder_outputs, row_outputs
from tests.support.models import make_bert


LENGTHS = (7, 3, 9, 4, 12, 3, 5)


def rows_of(labels):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 50, (length,), generator=generator).tolist() for length in LENGTHS]
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def test_classes_row_by_row():
    model, rows = make_bert(), rows_of([0, 2, 1, 1, 0, 2, 2])
    model.train()
    found = row_outputs(model, rows, padding=0, batch_size=3)
    assert model.training
    model.eval()
    for row, confidence, probabilities, taken in zip(
        rows, found.confidences, found.probabilities, found.predictions, strict=True
    ):
        with torch.no_grad():
            p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].softmax(-1)
        assert probabilities == pytest.approx(p.numpy(), abs=1e-6) and taken == int(p.argmax())
        assert confidence == pytest.approx(p[row["labels"]].item(), abs=1e-6)
    assert found.labels.tolist() == rows["labels"][:] and not found.is_regression


def test_values_row_by_row():
    model, rows = make_bert("regression"), rows_of([0.0, 1.5, 5.0, 2.0, 0.5, 1.0, 3.0])
    found = row_outputs(model, rows, padding=0, batch_size=4)
    with torch.no_grad():
        values = [model(input_ids=torch.tensor([row["input_ids"]])).logits.item() for row in rows]
    assert found.predictions == pytest.approx(values, abs=1e-6) and found.is_regression
    expected = np.exp(-np.square(np.subtract(values, rows["labels"][:])) / 2)
    assert found.confidences == pytest.approx(expected, rel=1e-5)


def test_rows_go_by_length(monkeypatch):
    """No batch is wider than its own rows, and every row is seen once."""
    model, widths, seen = make_bert(), [], []
    forward = type(model).forward
    monkeypatch.setattr(
        type(model), "forward", lambda self, **batch: widths.append(batch["input_ids"].shape) or forward(self, **batch)
    )
    for places, logits, labels in encoder_outputs(model, rows_of([0] * 7), padding=0, batch_size=3):
        seen += places
        assert logits.shape == (len(places), 3) and len(labels) == len(places)
    assert sorted(seen) == list(range(7))
    assert widths == [(3, 4), (3, 9), (1, 12)]


def test_what_is_refused():
    model = make_bert()
    with pytest.raises(InputError, match="no class or value each"):
        row_outputs(model, Dataset.from_dict({"input_ids": [[3, 4]], "labels": [[3, 4]]}), padding=0)
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    with pytest.raises(NumericalError, match="not finite"):
        row_outputs(model, rows_of([0] * 7), padding=0)

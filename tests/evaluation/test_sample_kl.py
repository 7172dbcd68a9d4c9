# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""KL of classifiers, regressions and spans against transformers' outputs and torch's distributions."""

import copy

import pytest
import torch

from hf_unlearn.data.collators import CausalCollator
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.sample_kl import SampleKL
from tests.support.models import make_bert


ROWS = [{"input_ids": [3, 4, 5, 6]}, {"input_ids": [7, 8]}, {"input_ids": [9, 4, 3]}]
LABELS = {"classes": [2, 0, -100], "regression": [0.5, -1.0, 2.0], "span": [[[0], [3]], [[1], [1]], [[0], [2]]]}


@pytest.mark.parametrize("head", LABELS)
def test_kl_of_every_head(head):
    model = make_bert(head)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rows = [row | {"labels": label} for row, label in zip(ROWS, LABELS[head])]
    meter = SampleKL(model, [CausalCollator(0)(rows)])
    assert meter(model).mean == 0
    found, expected = meter(other), []
    for row in rows:
        if row["labels"] == -100:
            continue
        with torch.no_grad():
            pair = [one(input_ids=torch.tensor([row["input_ids"]])) for one in (model, other)]
        if head == "span":
            outputs = [(out.start_logits, out.end_logits) for out in pair]
        else:
            outputs = [(out.logits,) for out in pair]
        for before, after in zip(*outputs):
            if head == "regression":
                kinds = [torch.distributions.Normal(value[0, 0], 1.0) for value in (before, after)]
            else:
                kinds = [torch.distributions.Categorical(logits=value[0]) for value in (before, after)]
            expected.append(torch.distributions.kl_divergence(*kinds).item())
    assert found.predictions == len(expected)
    assert found.mean == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_rows_without_labels_are_refused():
    rows = [row | {"labels": -100} for row in ROWS]
    with pytest.raises(InputError, match="no prediction to measure KL on"):
        SampleKL(make_bert(), [CausalCollator(0)(rows)])

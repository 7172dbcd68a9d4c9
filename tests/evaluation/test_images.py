# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Accuracy, loss, relearning and linear probes of image classifiers, by hand."""

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers.modeling_outputs import ImageClassifierOutput

from hf_unlearn.data.images import load_images, select_per_class
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation import images
from hf_unlearn.evaluation.images import accuracy, linear_probe, mean_loss, relearning_epochs
from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from tests.support.images import COLLATOR


def test_accuracy_loss_and_relearning_by_hand(monkeypatch):
    monkeypatch.setattr(images, "BATCH", 3)
    rows = select_per_class(load_images("digits"), 2, seed=0)
    torch.manual_seed(0)
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, width=4, image_size=8)).train()
    batch = COLLATOR([rows[i] for i in range(len(rows))])
    model.eval()
    with torch.no_grad():
        logits = model(batch["pixel_values"]).logits
    model.train()
    expected = float((logits.argmax(1) == batch["labels"]).float().mean())
    assert accuracy(model, rows, COLLATOR) == pytest.approx(expected)
    loss = float(torch.nn.functional.cross_entropy(logits, batch["labels"]))
    assert mean_loss(model, rows, COLLATOR) == pytest.approx(loss, rel=1e-5) and model.training
    assert relearning_epochs(model, rows, COLLATOR, threshold=loss + 0.01) == 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert relearning_epochs(model, rows, COLLATOR, threshold=0.0, max_epochs=2) is None
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="no parameter requires a gradient"):
        relearning_epochs(model.requires_grad_(False), rows, COLLATOR)


def test_a_linear_probe_finds_what_features_tell():
    class Mean(torch.nn.Module):
        """Features that tell the label, and a head that ignores them."""

        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, pixel_values):
            return ImageClassifierOutput(logits=self.head(pixel_values.mean((2, 3))) * 0)

    shades = [20, 200] * 6
    images = [Image.fromarray(np.full((4, 4, 3), shade + number, np.uint8)) for number, shade in enumerate(shades)]
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=["dark", "light"])})
    rows = Dataset.from_dict({"image": images, "labels": [0, 1] * 6}, features=features)
    assert linear_probe(Mean(), rows, [rows, rows.select([0, 2])], COLLATOR, "head") == [1.0, 1.0]
    with pytest.raises(InputError, match="no module 'tail'"):
        linear_probe(Mean(), rows, [rows], COLLATOR, "tail")

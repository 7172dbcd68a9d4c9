# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the linear model is trained to: the scale of the tuned model's logits, and classes without rows."""

import copy

import pytest
import torch
from datasets import Dataset

from hf_unlearn import FastNTK
from hf_unlearn.data.images import split_class
from hf_unlearn.errors import InputError
from hf_unlearn.ntk.targets import ABSENT_MARGIN, centred, make_targets, mean_margin
from hf_unlearn.runtime.processes import Processes
from tests.support.images import choose, unlearn


class Table(torch.nn.Module):
    """A model whose logits are its input."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, pixel_values):
        return self.scale * pixel_values


LABELS = [0, 1, 1, 0, 2]  # two classes stay, one is forgotten, and one of four has no row at all
LOGITS = [
    [3.0, 1.0, 0.0, -1.0],
    [0.0, 2.0, 1.0, 0.0],
    [5.0, 4.0, 0.0, 0.0],
    [1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 9.0, 0.0],
]
BATCH = {"pixel_values": torch.tensor(LOGITS, dtype=torch.float64), "labels": torch.tensor(LABELS)}


def load(rows):
    return [{name: values[rows["row"]] for name, values in BATCH.items()}]


def test_targets_by_hand():
    rows = Dataset.from_dict({"row": range(5), "labels": LABELS})
    retain, forget = rows.select(range(4)), rows.select([4])
    make = lambda **settings: make_targets(FastNTK(**settings), Table(), load, (retain, retain, forget), Processes())
    # Right logit less the mean of the others: 3, 5 / 3, 7 / 3 and 1; the third row is classified wrongly.
    margin = (3 + 5 / 3 + 7 / 3 + 1) / 4
    assert mean_margin(Table(), load(retain), Processes()) == (4, pytest.approx(margin), 0.75)
    targets, report = make()
    assert report == {
        "classes": 4, "target_scale": pytest.approx(margin), "absent_margin": ABSENT_MARGIN, "absent_classes": [2, 3]
    }  # fmt: skip
    everything = -ABSENT_MARGIN * torch.tensor([-0.25, -0.25, -0.25, 0.75], dtype=torch.float64)
    retained = -ABSENT_MARGIN * torch.tensor([-0.5, -0.5, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(targets.everything, everything)
    torch.testing.assert_close(targets.retained, retained)
    unit, outputs = centred(torch.nn.functional.one_hot(BATCH["labels"], 4)), centred(BATCH["pixel_values"])
    full, part = targets.residuals(unit, outputs, 4)
    torch.testing.assert_close(full, margin * unit - outputs + everything)
    torch.testing.assert_close(part, (margin * unit - outputs)[:4] + retained)
    for settings, scale, margin in (
        ({"target_scale": 7.0}, 7.0, 0.0),
        ({"outputs": "probabilities"}, 1.0, 0.0),
        ({"target_scale": 7.0, "absent_margin": 0.5}, 7.0, 0.5),
    ):
        _, report = make(**settings)
        assert (report["target_scale"], report["absent_margin"]) == (scale, margin)


def test_a_model_that_was_never_tuned_and_labels_out_of_range():
    with pytest.raises(InputError, match=r"mean margin of -3: it was never tuned"):
        mean_margin(Table(), [{"pixel_values": BATCH["pixel_values"][4:], "labels": torch.tensor([3])}], Processes())
    with pytest.raises(InputError, match="label 4 is out of range"):
        mean_margin(Table(), [BATCH | {"labels": torch.arange(5)}], Processes())


def test_a_class_is_absent_from_the_rows_not_from_a_sample_of_them(tmp_path, digits, start, full):
    forget, retain = split_class(digits, 0)
    model = copy.deepcopy(full)
    choose(model)
    method = FastNTK(pretrained=start, retain_samples=4)
    unlearn(tmp_path, model, method, forget, retain)
    assert method.report["absent_classes"] == [0] and method.report["absent_margin"] == 2.8


def test_auto_scale_of_a_model_that_fits_its_rows_in_part(tmp_path, digits, start, full, caplog):
    forget, retain = split_class(digits, 0)
    for share, words in ((0.3, True), (1.0, False)):
        model = copy.deepcopy(full)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                before = start.get_parameter(name)
                parameter.copy_(before + share * (parameter - before))
        choose(model)
        caplog.clear()
        unlearn(tmp_path / str(share), model, FastNTK(pretrained=start), forget, retain)
        assert ("of the retain rows rightly" in caplog.text) == words
    caplog.clear()

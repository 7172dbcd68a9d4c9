# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the linear model is trained to: the scale of the tuned model's logits, and classes without rows."""

import copy

import torch

from hf_unlearn import FastNTK
from hf_unlearn.data.images import split_class
from tests.support.images import choose, unlearn


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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Image classifiers from a YAML: models of transformers through the whole protocol, and heads drawn from the seed."""

import pytest
import torch
from peft import get_peft_model

from hf_unlearn import BatchNormTuningConfig
from hf_unlearn.errors import InputError
from hf_unlearn.experiments.problems.image_models import ImageModel, build_model
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.tuners import parameter_share
from tests.support.experiments import CLASSES, experiment
from tests.support.images import MODELS, TUNED


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.mark.parametrize("kind", MODELS)
def test_protocol_of_a_model_of_transformers(kind, tmp_path, monkeypatch):
    """From a YAML: random weights of the seed, or a model trained here; a head that is a layer or a sequence."""
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    model = {"config": MODELS[kind], "new_head": True}
    if kind == "mobilenet_v2":
        model["pretrain"] = {
            "train": "digits:train",
            "per_class": 4,
            "epochs": 2,
            "learning_rate": 1e-2,
            "batch_size": 32,
        }
    made = experiment(
        CLASSES,
        seeds=[0],
        data__per_class=[6],
        data__classes=3,
        model=model,
        tuner={"type": "batch_norm", **TUNED[kind]},
        tuning={"epochs": 16, "learning_rate": 2e-2, "batch_size": 24},
        methods=CLASSES["methods"][-1:],
        evaluation={"probe": kind == "resnet"},
    )
    rows = {row["method"]: row for row in run_experiment(made, tmp_path / "out", progress=False)}
    probes = ["probe: Pre-trained", "probe: Random-init", "probe: Fast-NTK"] if kind == "resnet" else []
    assert list(rows) == ["Full", "Retrain", "Fast-NTK", *probes]
    assert rows["Full"]["retain"] >= 40 and rows["Fast-NTK"]["forget"] <= rows["Full"]["forget"]
    model = get_peft_model(build_model(MODELS[kind], 3), BatchNormTuningConfig(**TUNED[kind]))
    assert rows["Fast-NTK"]["parameters"] == parameter_share(model)[0]


def test_a_new_head_is_drawn_from_the_seed_whatever_wraps_it(tmp_path):
    torch.manual_seed(0)
    base = build_model(MODELS["resnet"], 10)
    base.save_pretrained(tmp_path)
    for head in ("classifier", "classifier.1"):
        model = ImageModel(name=str(tmp_path), new_head=True)
        first, same, other = (model.load(None, 10, seed, head) for seed in (0, 0, 1))
        assert torch.equal(first.classifier[1].weight, same.classifier[1].weight)
        assert not torch.equal(first.classifier[1].weight, other.classifier[1].weight)
        assert not torch.equal(first.classifier[1].weight, base.classifier[1].weight)
        embedder = first.resnet.embedder.embedder.convolution.weight
        assert torch.equal(embedder, base.resnet.embedder.embedder.convolution.weight)
    with pytest.raises(InputError, match=r"the model has no head 'head'; .* the last is classifier\.1"):
        model.load(None, 10, 0, "head")

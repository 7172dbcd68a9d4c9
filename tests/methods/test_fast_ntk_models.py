# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK on transformers' own MobileNetV2 and ResNet, on a ResNet-110, and on their YAML."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model

from hf_unlearn import BatchNormTuningConfig, FastNTK, UpdateDelta
from hf_unlearn.data.images import keep_classes, load_images, select_per_class, split_class
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.images import accuracy
from hf_unlearn.experiments.problems.class_forgetting import run_class_forgetting
from hf_unlearn.experiments.problems.image_models import build_model, load_start
from hf_unlearn.ntk import Jacobians
from hf_unlearn.tuners import parameter_share
from tests.experiments.test_class_forgetting import tiny_protocol
from tests.methods.test_fast_ntk import COLLATOR, unlearn
from tests.support.tuners import HEAD


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")

MODELS = {
    "mobilenet_v2": {
        "model_type": "mobilenet_v2", "image_size": 8, "depth_multiplier": 0.25, "expand_ratio": 2.0, "output_stride": 8,
        "finegrained_output": False, "initializer_range": 0.3,
    },
    "resnet": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}  # fmt: skip
# Over all 52 normalisations of a network of random weights nothing is linear enough for one step: the last one there.
TUNED = {"mobilenet_v2": {"target_modules": r".*conv_1x1\.normalization", **HEAD}, "resnet": HEAD}


class Request:
    """Tiny images, a model with statistics of its own, and the same tuned on all of them."""

    def __init__(self, kind):
        self.rows = keep_classes(select_per_class(load_images("digits"), 10, seed=0), [0, 1, 2, 3])
        self.forget, self.retain = split_class(self.rows, "2")
        self.batch = COLLATOR(list(self.rows))
        torch.manual_seed(0)
        self.base = build_model(MODELS[kind], 4)
        with torch.no_grad():
            for _ in range(3):
                self.base.train()(self.batch["pixel_values"])
        if kind == "resnet":
            optimizer = torch.optim.Adam(self.base.parameters(), lr=1e-2)
            other = COLLATOR(list(keep_classes(select_per_class(load_images("digits"), 10, seed=7), [0, 1, 2, 3])))
            self._descend(self.base, optimizer, other, 30)
        self.tuned = get_peft_model(copy.deepcopy(self.base.eval()), BatchNormTuningConfig(**TUNED[kind]))
        parameters = [parameter for parameter in self.tuned.parameters() if parameter.requires_grad]
        steps, rate = (20, 0.01) if kind == "resnet" else (40, 0.02)
        self._descend(self.tuned, torch.optim.Adam(parameters, lr=rate), self.batch, steps)
        self.tuned.eval()

    def _descend(self, model, optimizer, batch, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    return Request(request.param)


@torch.no_grad()
def logits(model, batch):
    return model.eval()(batch["pixel_values"]).logits


@torch.no_grad()
def nudge(model):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_jacobians_equal_jacrev(case):
    """Over every batch normalisation and the head, away from the pretrained values."""
    model = get_peft_model(copy.deepcopy(case.base), BatchNormTuningConfig(**HEAD)).double()
    nudge(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    norms = [module for module in case.base.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(names) == 2 * len(norms) + 2
    images = case.batch["pixel_values"][::12].double()
    got = torch.cat([rows for _, rows in Jacobians(model, names, chunk_size=3)({"pixel_values": images})])
    values = {name: model.get_parameter(name).detach() for name in names}
    dense = torch.func.jacrev(lambda v: torch.func.functional_call(model, v, (images,)).logits)(values)
    dense = torch.cat([dense[name].flatten(2) for name in names], -1)
    assert got.shape == (4, 4, sum(value.numel() for value in values.values()))
    assert dense.norm() > 0 and (got - dense).norm() <= 1e-5 * dense.norm()


def test_a_class_is_forgotten_and_the_delta_says_how(case, tmp_path):
    model = copy.deepcopy(case.tuned)
    trainer = unlearn(tmp_path, model, FastNTK(ridge=0.1), case.forget, case.retain, COLLATOR)
    assert min(accuracy(case.tuned, rows, COLLATOR) for rows in (case.forget, case.retain)) >= 0.9
    assert accuracy(model, case.forget, COLLATOR) <= 0.1
    assert accuracy(model, case.retain, COLLATOR) >= accuracy(case.tuned, case.retain, COLLATOR) - 0.1
    trainer.save_model()
    again = PeftModel.from_pretrained(copy.deepcopy(case.base), tmp_path)
    assert torch.equal(logits(again, case.batch), logits(model, case.batch))
    # The delta is one of the merged model, under the names of the base.
    delta = trainer.update_delta()
    delta.save_pretrained(tmp_path / "exact", dtype=torch.float32)
    read = UpdateDelta.from_pretrained(tmp_path / "exact")
    assert read.tensors.keys() == delta.tensors.keys() <= case.base.state_dict().keys()
    assert all(torch.equal(read.tensors[name], step) for name, step in delta.tensors.items())
    plain = read.apply_to(copy.deepcopy(case.tuned).merge_and_unload())
    assert torch.allclose(logits(plain, case.batch), logits(model, case.batch), atol=1e-3, rtol=1e-4)
    twin = delta.apply_to(copy.deepcopy(case.tuned).merge_and_unload())
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in twin.state_dict().items())
    rounded = UpdateDelta.from_pretrained(tmp_path / "delta")
    assert all(
        torch.equal(rounded.tensors[name].float(), step.bfloat16().float()) for name, step in delta.tensors.items()
    )


def test_a_resnet_110_gives_a_jacobian():
    torch.manual_seed(0)
    model = build_model({"model_type": "cifar_resnet", "depth": 110, "width": 2, "image_size": 8}, 10).double().eval()
    tuned = get_peft_model(model, BatchNormTuningConfig(modules_to_save=["linear"]))
    names = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert len(names) == 2 * (1 + 2 * 54) + 2  # batch normalisations, and the head
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ((outputs, jacobian),) = Jacobians(tuned, names)({"pixel_values": images})
    torch.testing.assert_close(outputs, logits(tuned, {"pixel_values": images}))
    values = {name: tuned.get_parameter(name).detach() for name in names}
    vector = {name: torch.randn_like(value) for name, value in values.items()}
    call = lambda v: torch.func.functional_call(tuned, v, (images,)).logits
    expected = torch.func.jvp(call, (values,), (vector,))[1]
    product = jacobian @ torch.cat([vector[name].flatten() for name in names])
    assert (product - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("kind", MODELS)
def test_protocol_of_a_model_of_transformers(kind, tmp_path, monkeypatch):
    """From a YAML: random weights drawn from the seed, or a model trained here; a head that is a layer or a sequence."""
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
    config = tiny_protocol(
        model=model,
        seeds=[0],
        tuner={"type": "batch_norm", **TUNED[kind]},
        probe=kind == "resnet",
    )
    config["data"] |= {"per_class": [6], "classes": 3}
    config["tuning"] = {"epochs": 16, "learning_rate": 2e-2, "batch_size": 24}
    config["methods"] = config["methods"][-1:]
    del config["relearning"]
    rows = {row["method"]: row for row in run_class_forgetting(config, tmp_path / "out", progress=False)}
    probes = ["probe: Pre-trained", "probe: Random-init", "probe: Fast-NTK"] if config["probe"] else []
    assert list(rows) == ["Full", "Fast-NTK", "Retrain", *probes]
    assert rows["Full"]["retain"] >= 40 and rows["Fast-NTK"]["forget"] <= rows["Full"]["forget"]
    model = get_peft_model(build_model(MODELS[kind], 3), BatchNormTuningConfig(**TUNED[kind]))
    assert rows["Fast-NTK"]["parameters"] == parameter_share(model)[0]


def test_a_new_head_is_drawn_from_the_seed_whatever_wraps_it(tmp_path):
    torch.manual_seed(0)
    base = build_model(MODELS["resnet"], 10)
    base.save_pretrained(tmp_path)
    for head in ("classifier", "classifier.1"):
        config = {"model": {"name": str(tmp_path), "new_head": True}, "tuner": {"modules_to_save": [head]}}
        first, same, other = (load_start(config, None, 10, seed) for seed in (0, 0, 1))
        assert torch.equal(first.classifier[1].weight, same.classifier[1].weight)
        assert not torch.equal(first.classifier[1].weight, other.classifier[1].weight)
        assert not torch.equal(first.classifier[1].weight, base.classifier[1].weight)
        embedder = first.resnet.embedder.embedder.convolution.weight
        assert torch.equal(embedder, base.resnet.embedder.embedder.convolution.weight)
    config["tuner"]["modules_to_save"] = ["head"]
    with pytest.raises(InputError, match=r"the model has no head 'head'; .* the last is classifier\.1"):
        load_start(config, None, 10, 0)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Images, small classifiers before and after tuning, and requests on them, which tests of Fast-NTK share."""

import copy

import pytest
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForImageClassification

from hf_unlearn import BatchNormTuningConfig, UnlearnConfig, UnlearnTrainer
from hf_unlearn.data.images import ImageCollator, keep_classes, load_images, select_per_class, split_class
from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from tests.support.tuners import HEAD


COLLATOR = ImageCollator(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def digits():
    """60 images, six of a class."""
    return select_per_class(load_images("digits"), 6, seed=0)


def make_model(dtype=torch.float64):
    """A tiny CIFAR ResNet in eval mode whose statistics are not 0 and 1."""
    torch.manual_seed(0)
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, width=4, image_size=8)).to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


class Collator64:
    """Images in fp64, so that fp32 rounding of the data does not hide what a solver does."""

    def __call__(self, rows):
        batch = COLLATOR(rows)
        return batch | {"pixel_values": batch["pixel_values"].double()}


def choose(model, words=("bn", "linear")):
    """Let the parameters with one of the words in their names train, no other; their names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in words))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def tuned(start, words=("bn", "linear"), size=0.05):
    """A model that counts as tuned: the head is drawn towards the classes by a few steps of descent."""
    model = copy.deepcopy(start)
    choose(model, words)
    rows = select_per_class(load_images("digits"), 6, seed=0)
    batch = Collator64()([rows[i] for i in range(len(rows))])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=size)
    for _ in range(30):
        optimizer.zero_grad()
        model(
            **{"pixel_values": batch["pixel_values"].to(next(model.parameters()).dtype), "labels": batch["labels"]}
        ).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def start():
    """The model before tuning."""
    return make_model()


@pytest.fixture(scope="module")
def full(start):
    """The model tuned on all of `digits`."""
    return tuned(start)


def unlearn(tmp_path, model, method, forget, retain, collator=None, **arguments):
    """Serve a request on the CPU, model changed in place; the trainer."""
    args = UnlearnConfig(
        output_dir=str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        per_device_train_batch_size=4, **arguments,
    )  # fmt: skip
    trainer = UnlearnTrainer(model, method, args, forget, retain, data_collator=collator or Collator64())
    trainer.train()
    return trainer


def update_of(trainer):
    """(p,) fp64: what the trainer changed, parameters in the order of their names."""
    return torch.cat(
        [trainer.update_delta().tensors[name].double().flatten() for name in sorted(trainer.update_delta().tensors)]
    )


MODELS = {
    "mobilenet_v2": {
        "model_type": "mobilenet_v2", "image_size": 8, "depth_multiplier": 0.25, "expand_ratio": 2.0,
        "output_stride": 8, "finegrained_output": False, "initializer_range": 0.3,
    },
    "resnet": {
        "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic",
    },
}  # fmt: skip
# Random weights are too far from linear for one step over all 52 normalisations of a MobileNetV2: the last is tuned.
TUNED = {"mobilenet_v2": {"target_modules": r".*conv_1x1\.normalization", **HEAD}, "resnet": HEAD}


def make_classifier(labels, **config):
    """An image classifier with random weights, by `model_type`."""
    torch.manual_seed(0)
    return AutoModelForImageClassification.from_config(AutoConfig.for_model(**config, num_labels=labels))


class Request:
    """Tiny images, a model with statistics of its own, and the same tuned on all of them."""

    def __init__(self, kind):
        self.rows = keep_classes(select_per_class(load_images("digits"), 10, seed=0), [0, 1, 2, 3])
        self.forget, self.retain = split_class(self.rows, "2")
        self.batch = COLLATOR(list(self.rows))
        self.base = make_classifier(4, **MODELS[kind])
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

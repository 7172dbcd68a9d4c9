# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The CIFAR ResNets: published weights, files and what is refused."""

import pytest
import torch
from safetensors.torch import save_file

from hf_unlearn.data.images import ImageCollator, load_images, select_per_class
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.images import accuracy
from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, load_cifar_resnet


def test_published_weights_reach_their_published_accuracy(shared_data):
    model = load_cifar_resnet(shared_data / "weights" / "resnet_cifar10" / "resnet20.safetensors")
    rows = select_per_class(load_images(shared_data / "cifar10", "test"), 20, seed=0)
    # 91.7 % on the whole test set; 200 images have a standard error of 2 %.
    assert accuracy(model, rows, ImageCollator()) >= 0.86
    assert model.config.depth == 20 and sum(p.numel() for p in model.parameters()) == 269_722


def test_resnet_saves_loads_and_refuses(tmp_path):
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, width=4, image_size=8)).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(load_cifar_resnet(tmp_path)(images).logits, model(images).logits)
    assert model.reset_head(3).config.num_labels == 3 and model(images).logits.shape == (2, 3)
    with pytest.raises(InputError, match="depth must be"):
        CifarResNetConfig(depth=21)
    (tmp_path / "bad.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:50])
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="holds no CIFAR ResNet"):
        load_cifar_resnet(tmp_path / "other.safetensors")

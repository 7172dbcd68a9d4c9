# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the Fast-NTK recipe says of bad input: one line with cause and cure, exit code 2, no traceback."""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from hf_unlearn.data.images import load_images, select_per_class
from hf_unlearn.experiments.problems.image_models import build_model, load_start
from tests.support.protocols import tiny_protocol


ROOT = Path(__file__).resolve().parents[2]
RESNET = {"model_type": "cifar_resnet", "depth": 8, "width": 2, "image_size": 8}
VIT = {
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("fast_ntk_recipe", ROOT / "recipes" / "fast_ntk_cifar10.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def protocol(**changes) -> dict:
    """The smallest run: one method, one candidate, no relearning, no probe, random weights."""
    config = tiny_protocol(model={"config": RESNET}, seeds=[0], probe=False)
    config["methods"] = config["methods"][-1:]
    config["tuning"] = {"epochs": 3, "learning_rate": 2e-2, "batch_size": 20}
    del config["relearning"]
    for section, values in changes.items():
        config[section] = config[section] | values if isinstance(values, dict) else values
    return config


def write_images(folder: Path, classes: int, sizes=(8,)) -> str:
    """A parquet of the first classes of digits, their sides taken in turn from `sizes`."""
    rows = select_per_class(load_images("digits"), 10, seed=0, classes=range(classes))
    rows = rows.map(lambda row, i: {"image": row["image"].resize((sizes[i % len(sizes)],) * 2)}, with_indices=True)
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def one_class(folder):
    source = write_images(folder, 1)
    return protocol(data={"train": source, "test": source, "per_class": [4]})


def unlabelled(folder):
    source = write_images(folder, 3)
    rows = Dataset.from_parquet(source)
    changed = rows.map(lambda row, i: {"labels": -1 if i == 7 else row["labels"]}, with_indices=True)
    changed.to_parquet(source)
    return protocol(data={"train": source, "test": source})


def sizes(folder):
    source = write_images(folder, 3, (8, 10))
    return protocol(data={"train": source, "test": source, "holdout_per_class": 5})


def other_size(folder):
    source = write_images(folder, 3, (12,))
    model, tuner = {"config": VIT}, {"type": "key_value_prompt", "modules_to_save": ["classifier"]}
    return protocol(data={"train": source, "test": source}, model=model) | {"tuner": tuner}


VIT_HEAD = {"modules_to_save": ["classifier"]}
CASES = {
    "no such class": (lambda folder: protocol(data={"forget": "gnu"}), "no row has the class 'gnu': there are 0, 1, 2"),
    "everything": (one_class, "every row is to be forgotten, so nothing is left to retain"),
    "no batch norm": (
        lambda folder: protocol(model={"config": VIT}) | {"tuner": {"type": "batch_norm", **VIT_HEAD}},
        "ViTForImageClassification has no batch normalisation: choose an adapter for what it has",
    ),
    "no attention": (
        lambda folder: protocol(tuner={"type": "key_value_prompt"}),
        "CifarResNetForImageClassification has no attention",
    ),
    "no head": (
        lambda folder: protocol(model={"new_head": True}, tuner={"modules_to_save": ["top"]}),
        "the model has no head 'top'; of its linear layers the last is linear",
    ),
    "a label that is no class": (unlabelled, "row 7 has the label -1, and there are 10 classes, 0 to 9"),
    "images of several sizes": (sizes, "are of different sizes (8 x 8, 10 x 10): give image_size"),
    "images of another size": (other_size, "the model takes no images of this size (Input image size (12*12)"),
    "never tuned": (lambda folder: protocol(tuning={"epochs": 0}), "never tuned on the data, so there is nothing to undo"),
    "tuned for nothing": (
        lambda folder: protocol(tuning={"epochs": 1, "learning_rate": 1e-9}),
        "mean margin of -",
    ),
    "no such architecture": (
        lambda folder: protocol(model={"config": {"model_type": "lenet"}}),
        "no image classifier of model_type 'lenet'",
    ),
    "a field of another type": (
        lambda folder: protocol(model={"config": {"model_type": "mobilenet_v2", "depth_multiplier": -1}}),
        "no image classifier of model_type 'mobilenet_v2' with these values",
    ),
    "no rows to train on": (lambda folder: protocol(model={"pretrain": {"epochs": 1}}), "model.pretrain needs train"),
    "no such setting": (lambda folder: protocol(tuning={"epoch": 1}), "tuning: no setting epoch; there are batch_size"),
    "a ridge below 0": (
        lambda folder: protocol() | {"methods": [{"label": "x", "method": "fast_ntk", "search": {"ridge": [-1.0]}}]},
        "ridge must not be negative, got -1.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(name, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    make, message = CASES[name]
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(make(tmp_path)))
    with pytest.raises(SystemExit) as raised:
        recipe.main(["--config", str(tmp_path / "protocol.yaml"), "--output_dir", str(tmp_path / "out")])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and error.endswith(line + "\n") and "Traceback" not in error


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_singular_system_without_ridge_runs_with_a_word(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    config = protocol(data={"per_class": [2]}, tuning={"epochs": 20})
    config["methods"][0]["search"] = {"ridge": [0.0]}
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(config))
    with pytest.warns(UserWarning, match="singular without a ridge .* give a ridge above 0"):
        recipe.main(["--config", str(tmp_path / "protocol.yaml"), "--output_dir", str(tmp_path / "out")])


def test_a_checkpoint_in_half_precision_is_upcast_with_a_word(tmp_path, caplog):
    build_model(RESNET, 10).bfloat16().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = load_start({"model": {"name": str(tmp_path)}, "tuner": {}}, None, 10, 0)
    assert model.dtype == torch.float32 and "half precision: it is tuned and unlearned in fp32" in caplog.text

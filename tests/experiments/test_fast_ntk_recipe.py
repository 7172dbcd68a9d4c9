# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the Fast-NTK recipe says of bad input: one line with cause and cure, exit code 2, no traceback."""

import logging
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_unlearn.data.images import load_images, select_per_class
from hf_unlearn.experiments.problems.image_models import ImageModel, build_model
from tests.support.experiments import ONE_CLASS_LINE, changed, load_recipe, run_recipe, write_config


RECIPE = "fast_ntk_cifar10"
RESNET = {"model_type": "cifar_resnet", "depth": 8, "width": 2, "image_size": 8}
VIT = {
    "model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip


def protocol(**keys) -> dict:
    return changed(ONE_CLASS_LINE, **keys)


def write_images(folder: Path, classes: int, sizes=(8,)) -> str:
    """A parquet of the first classes of digits, their sides taken in turn from `sizes`."""
    rows = select_per_class(load_images("digits"), 10, seed=0, classes=range(classes))
    rows = rows.map(lambda row, i: {"image": row["image"].resize((sizes[i % len(sizes)],) * 2)}, with_indices=True)
    rows.to_parquet(folder / "rows.parquet")
    return str(folder / "rows.parquet")


def one_class(folder):
    source = write_images(folder, 1)
    return protocol(data__train=source, data__test=source)


def unlabelled(folder):
    source = write_images(folder, 3)
    rows = Dataset.from_parquet(source)
    changed = rows.map(lambda row, i: {"labels": -1 if i == 7 else row["labels"]}, with_indices=True)
    changed.to_parquet(source)
    return protocol(data__train=source, data__test=source)


def sizes(folder):
    source = write_images(folder, 3, (8, 10))
    return protocol(data__train=source, data__test=source)


def other_size(folder):
    source = write_images(folder, 3, (12,))
    tuner = {"type": "key_value_prompt", **VIT_HEAD}
    return protocol(data__train=source, data__test=source, model={"config": VIT}, tuner=tuner)


VIT_HEAD = {"modules_to_save": ["classifier"]}
CASES = {
    "no such class": (lambda folder: protocol(data__forget="gnu"), "no row has the class 'gnu': there are 0, 1, 2"),
    "everything": (one_class, "every row is to be forgotten, so nothing is left to retain"),
    "no batch norm": (
        lambda folder: protocol(model={"config": VIT}, tuner={"type": "batch_norm", **VIT_HEAD}),
        "ViTForImageClassification has no batch normalisation: choose an adapter for what it has",
    ),
    "no attention": (
        lambda folder: protocol(tuner__type="key_value_prompt"),
        "CifarResNetForImageClassification has no attention",
    ),
    "no head": (
        lambda folder: protocol(model__new_head=True, tuner__modules_to_save=["top"]),
        "the model has no head 'top'; of its linear layers the last is linear",
    ),
    "a label that is no class": (unlabelled, "row 7 has the label -1, and there are 10 classes, 0 to 9"),
    "images of several sizes": (sizes, "are of different sizes (8 x 8, 10 x 10): give image_size"),
    "images of another size": (other_size, "the model takes no images of this size (Input image size (12*12)"),
    "never tuned": (lambda folder: protocol(tuning__epochs=0), "never tuned on the data, so there is nothing to undo"),
    "tuned for nothing": (
        lambda folder: protocol(tuning__epochs=1, tuning__learning_rate=1e-9),
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
    "no rows to train on": (lambda folder: protocol(model__pretrain={"epochs": 1}), "model.pretrain needs train"),
    "no such setting": (lambda folder: protocol(tuning__epoch=1), "tuning: no setting epoch; there are batch_size"),
    "a ridge below 0": (
        lambda folder: protocol(methods=[{"label": "x", "method": "fast_ntk", "search": {"ridge": [-1.0]}}]),
        "ridge must be a finite number at least 0, not -1.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_exit_code_2(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    make, message = CASES[name]
    path = write_config(tmp_path / "protocol.yaml", make(tmp_path))
    assert run_recipe(RECIPE, "--config", path, "--output_dir", tmp_path / "out") == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line and error.endswith(line + "\n") and "Traceback" not in error


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_singular_system_without_ridge_runs_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    method = ONE_CLASS_LINE["methods"][0] | {"search": {"ridge": [0.0]}}
    config = protocol(data__per_class=[2], tuning__epochs=20, methods=[method])
    path = write_config(tmp_path / "protocol.yaml", config)
    with pytest.warns(UserWarning, match="singular without a ridge .* give a ridge above 0"):
        assert run_recipe(RECIPE, "--config", path, "--output_dir", tmp_path / "out") == 0


def test_what_the_command_line_changes(tmp_path, capsys):
    recipe = load_recipe(RECIPE)
    arguments = recipe.parse_arguments(["--per_class", "5", "6", "--forget", "3", "--data_dir", "there"])
    assert recipe.overrides(arguments) == {"data.per_class": [5, 6], "data.forget": "3", "data.data_dir": "there"}
    assert recipe.overrides(recipe.parse_arguments([])) == {}
    assert run_recipe(RECIPE, "--forget", "gnu", "--output_dir", tmp_path) == 2
    assert "no row has the class 'gnu'" in capsys.readouterr().err
    # `--seed` and `--seeds` are one argument.
    assert load_recipe(RECIPE).parse_arguments(["--seed", "7"]).seeds == [7]
    assert load_recipe(RECIPE).parse_arguments(["--seeds", "7", "8"]).seeds == [7, 8]


def test_a_checkpoint_in_half_precision_is_upcast_with_a_word(tmp_path, caplog):
    build_model(RESNET, 10).bfloat16().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = ImageModel(name=str(tmp_path)).load(None, 10, 0, "linear")
    assert model.dtype == torch.float32 and "half precision: it is tuned and unlearned in fp32" in caplog.text

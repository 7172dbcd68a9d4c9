# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Images: where they come from, which are chosen, and how they are batched."""

import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from hf_unlearn.data.images import (
    ImageCollator,
    class_names,
    find_class,
    keep_classes,
    load_images,
    select_per_class,
    split_class,
)
from hf_unlearn.errors import InputError


def test_images_from_folders_parquet_and_scikit_learn(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / "classes" / label).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(np.full((6, 5, 3), 40 * number, np.uint8)).save(
                tmp_path / "classes" / label / f"{number}.png"
            )
    rows = load_images(tmp_path / "classes")
    assert class_names(rows) == ["ant", "bee"] and len(rows) == 6 and find_class(rows, "bee") == 1
    rows.to_parquet(tmp_path / "train-0.parquet")
    (tmp_path / "parquet").mkdir()
    shutil.move(tmp_path / "train-0.parquet", tmp_path / "parquet" / "train-0.parquet")
    again = load_images(tmp_path / "parquet", "train")
    assert again["labels"] == rows["labels"]
    batch = ImageCollator((0.0,) * 3, (1.0,) * 3)([again[2]])
    assert batch["pixel_values"].shape == (1, 3, 6, 5) and torch.allclose(
        batch["pixel_values"], torch.tensor(80 / 255)
    )
    assert ImageCollator(image_size=4)([again[0]])["pixel_values"].shape == (1, 3, 4, 4)
    digits, test = load_images("digits"), load_images("digits", "test")
    assert len(digits) + len(test) == 1797 and len(class_names(digits)) == 10
    with pytest.raises(InputError, match="has no validation"):
        load_images(tmp_path / "parquet", "validation")
    with pytest.raises(InputError, match="no images at"):
        load_images("nobody/nothing")
    with pytest.raises(InputError, match="digits has the splits"):
        load_images("digits", "validation")
    Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="it needs an image"):
        load_images(tmp_path / "other.parquet")


def test_choices_of_rows_are_seeded_and_whole():
    rows = load_images("digits")
    chosen = select_per_class(rows, 7, seed=3)
    assert np.bincount(chosen["labels"]).tolist() == [7] * 10
    assert chosen["labels"] == select_per_class(rows, 7, seed=3)["labels"]
    forget, retain = split_class(chosen, "4")
    assert set(forget["labels"]) == {4} and 4 not in retain["labels"] and len(forget) + len(retain) == 70
    kept = keep_classes(chosen, [5, 2])
    assert class_names(kept) == ["5", "2"] and np.bincount(kept["labels"]).tolist() == [7, 7]
    torch.manual_seed(0)
    moved = ImageCollator((0.0,) * 3, (1.0,) * 3, augment=True)([chosen[0], chosen[1]])["pixel_values"]
    still = ImageCollator((0.0,) * 3, (1.0,) * 3)([chosen[0], chosen[1]])["pixel_values"]
    assert moved.shape == still.shape and not torch.equal(moved, still)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub, files or scikit-learn, split into retain and forget sets, and batched for models."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset
from PIL import Image
from torch import Tensor

from ..errors import InputError, first_line
from .rows import split_rows


IMAGE_COLUMNS = ("image", "img", "pixels")
LABEL_COLUMNS = ("labels", "label", "fine_label", "class")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load_images(source: str | Path, split: str = "train") -> Dataset:
    """Rows of `image` (encoded, decoded when read) and `labels` (ClassLabel), each the first there is of its names.

    Args:
        source (`str` or `Path`): "digits" (scikit-learn's 1797 handwritten digits of 8 x 8, no file needed; every
            fifth is the test set); a Hub id; a parquet file; a folder with `<split>*.parquet`; or a folder with one
            folder of images a class, with or without split folders above (the layout of ImageNet-R).
        split (`str`, *optional*, defaults to `"train"`): "train", "test" or "validation".

    Raises:
        InputError: no such data or split, no column of images or labels, a label that is no class.
    """
    if source == "digits":
        rows = _digits(split)
    elif Path(source).is_file():
        rows = Dataset.from_parquet(str(source))
    elif Path(source).is_dir():
        rows = _folder(Path(source), split)
    else:
        try:
            rows = datasets.load_dataset(str(source), split=split)
        except (FileNotFoundError, ConnectionError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            raise InputError(
                f"no images at {source!r}, split {split!r} ({first_line(error)}): give a Hub id, a parquet file, or a "
                "folder with one folder a class"
            ) from error
    image = next((name for name in IMAGE_COLUMNS if name in rows.column_names), None)
    label = next((name for name in LABEL_COLUMNS if name in rows.column_names), None)
    if None in (image, label):
        raise InputError(
            f"{source} has the columns {', '.join(rows.column_names)}: it needs an image "
            f"({', '.join(IMAGE_COLUMNS)}) and a label ({', '.join(LABEL_COLUMNS)})"
        )
    rows = rows.select_columns([image, label])
    rows = rows.rename_columns({old: new for old, new in ((image, "image"), (label, "labels")) if old != new})
    if not isinstance(rows.features["labels"], ClassLabel):
        rows = rows.class_encode_column("labels")
    classes = rows.features["labels"].num_classes
    for row, number in enumerate(rows["labels"]):
        if number is None or not 0 <= number < classes:
            raise InputError(
                f"{source}: row {row} has the label {number}, and there are {classes} classes, 0 to {classes - 1}: "
                "leave out rows without a class"
            )
    return rows


def class_names(rows: Dataset) -> list[str]:
    """Names of the classes, in the order of their numbers."""
    return rows.features["labels"].names


def find_class(rows: Dataset, name: int | str) -> int:
    """The number of a class given by number or name.

    Raises:
        InputError: no row has it.
    """
    names = class_names(rows)
    number = names.index(name) if name in names else int(name) if str(name).isdigit() else -1
    if number not in set(rows["labels"]):
        raise InputError(
            f"no row has the class {name!r}: there are {', '.join(names[:20])}{' ...' * (len(names) > 20)}"
        )
    return number


def select_per_class(
    rows: Dataset, count: int | None = None, seed: int = 0, classes: Sequence[int] | None = None
) -> Dataset:
    """Rows of every class (of `classes`, all by default), in the data's order: all, or `count` drawn of each.

    Raises:
        InputError: a class has fewer.
    """
    labels = np.asarray(rows["labels"])
    generator = np.random.default_rng(seed)
    chosen = []
    for number in sorted(set(labels.tolist())) if classes is None else classes:
        members = np.flatnonzero(labels == number)
        if count is not None and len(members) < count:
            raise InputError(f"class {class_names(rows)[number]} has {len(members)} rows, {count} were asked for")
        chosen.extend(members if count is None else generator.choice(members, count, replace=False))
    return rows.select(sorted(map(int, chosen)))


def keep_classes(rows: Dataset, classes: Sequence[int]) -> Dataset:
    """The rows of some classes, numbered anew from 0 in the order given."""
    numbers = {old: new for new, old in enumerate(classes)}
    names = [class_names(rows)[old] for old in classes]
    part = rows.select([row for row, label in enumerate(rows["labels"]) if label in numbers])
    labels = [numbers[label] for label in part["labels"]]
    return part.remove_columns("labels").add_column("labels", labels).cast_column("labels", ClassLabel(names=names))


def split_class(rows: Dataset, forget: int | str) -> tuple[Dataset, Dataset]:
    """(forget rows, retain rows) of one class and all others.

    Raises:
        InputError: no row has the class, or every row has.
    """
    number = find_class(rows, forget)
    return split_rows(rows, [row for row, label in enumerate(rows["labels"]) if label == number])


@dataclass(frozen=True)
class ImageCollator:
    """Rows of `image` and `labels` to `pixel_values` (B, 3, H, W) fp32, normalised, and `labels` (B,).

    Raises:
        InputError: images of different sizes without `image_size`.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN  # of each channel, for pixels in [0, 1]
    std: tuple[float, ...] = IMAGENET_STD  # likewise
    image_size: int | None = None  # side to resize to (bilinear); None: as they are, all of one size
    augment: bool = False  # random horizontal flips, and shifts by up to an eighth of the side, by torch's generator

    def __call__(self, rows: list[dict]) -> dict[str, Tensor]:
        images = [_decode(row["image"], self.image_size) for row in rows]
        shapes = {image.shape for image in images}
        if len(shapes) > 1:
            sizes = ", ".join(f"{width} x {height}" for height, width, _ in sorted(shapes))
            raise InputError(f"the images of a batch are of different sizes ({sizes}): give image_size to resize them")
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
        if self.augment:
            pixels = _augment(pixels)
        channels = lambda values: torch.tensor(values).view(1, -1, 1, 1)
        pixels = (pixels - channels(self.mean)) / channels(self.std)
        return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def _decode(image, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8 of a PIL image or of `{"bytes": ...}`, as a dataset that does not decode gives it."""
    if isinstance(image, dict):
        image = Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"])
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _augment(pixels: Tensor) -> Tensor:
    count, _, height, width = pixels.shape
    pad = height // 8
    flipped = torch.where(torch.rand(count, 1, 1, 1) < 0.5, pixels.flip(3), pixels)
    padded = torch.nn.functional.pad(flipped, (pad, pad, pad, pad))
    tops, lefts = torch.randint(2 * pad + 1, (2, count)).tolist()
    return torch.stack(
        [image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts)]
    )


def _digits(split: str) -> Dataset:
    from sklearn.datasets import load_digits

    data = load_digits()
    test = np.arange(len(data.images)) % 5 == 0
    if split not in ("train", "test"):
        raise InputError(f"digits has the splits train and test, not {split!r}")
    keep = test if split == "test" else ~test
    images = [Image.fromarray((image * (255 / 16)).astype(np.uint8)) for image in data.images[keep]]
    features = datasets.Features({"image": datasets.Image(), "labels": ClassLabel(names=[str(d) for d in range(10)])})
    return Dataset.from_dict({"image": images, "labels": data.target[keep].tolist()}, features=features)


def _folder(folder: Path, split: str) -> Dataset:
    if files := sorted(folder.glob(f"{split}*.parquet")):
        return Dataset.from_parquet([str(file) for file in files])
    if any(folder.glob("*.parquet")):
        names = ", ".join(sorted(file.stem for file in folder.glob("*.parquet")))
        raise InputError(f"{folder} has no {split}*.parquet: there are {names}")
    place = folder / split if (folder / split).is_dir() else folder
    if not any(path.is_dir() for path in place.iterdir()):
        raise InputError(f"{place} holds neither parquet files nor a folder of images for every class")
    return datasets.load_dataset("imagefolder", data_dir=str(place), split="train")

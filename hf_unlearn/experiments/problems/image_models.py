# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The models of the class-forgetting protocol: made or loaded, given a head and a tuner, and tuned."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, set_seed

from ...data.images import class_names, select_per_class
from ...data.rows import fingerprint_rows
from ...errors import InputError, first_line
from ...evaluation.images import accuracy
from ...models.cifar_resnet import load_cifar_resnet
from ...runtime.cache import cached_folder
from ...runtime.provenance import code_sha256
from ...tuners import BatchNormTuningConfig, KeyValuePromptConfig
from ..settings import check_settings, configured
from .tuning import tune


logger = logging.getLogger(__name__)

TUNERS = {"batch_norm": BatchNormTuningConfig, "key_value_prompt": KeyValuePromptConfig}


@dataclass
class ImageModel:
    """The section `model`: the pretrained model w0, one of `weights`, `name`, and `config` with or without `pretrain`.

    Args:
        weights: a file of a CIFAR ResNet, in `data.data_dir`.
        name: an image classifier by folder or Hub id.
        config: an architecture of transformers' image classifiers, `model_type` and its fields; drawn from the seed,
            or trained here on the rows of `pretrain`.
        pretrain: see `Pretraining`.
        new_head: put a new head in, drawn from the seed; so does another number of classes.

    Raises:
        InputError: none of these, or `pretrain` without `config`.
    """

    weights: str | None = None
    name: str | None = None
    config: dict | None = None
    pretrain: dict | None = None
    new_head: bool = False

    def __post_init__(self):
        if not (self.weights or self.name or self.config):
            raise InputError("model: give weights (CIFAR ResNet), name (image classifier), or config (and pretrain)")
        if self.pretrain is not None:
            if "train" not in self.pretrain or self.config is None:
                raise InputError("model.pretrain needs train, the images to train on, and model.config beside it")
            self.pretrain = configured(Pretraining, "model.pretrain", self.pretrain)

    def load(self, images, labels: int, seed: int, head: str) -> nn.Module:
        """The model in eval mode; `images` is the section `data`, `head` the module that maps features to logits.

        Raises:
            InputError: weights that cannot be loaded, or no such head.
        """
        set_seed(seed)
        if self.weights:
            model = load_cifar_resnet(Path(images.data_dir or "") / self.weights)
            if model.config.num_labels != labels:
                model.reset_head(labels, seed)
        elif self.name or self.pretrain:
            model = _from_pretrained(self.name or self.pretrained(images), labels)
        else:
            model = build_model(self.config, labels)
        if self.new_head:
            set_seed(seed)
            for layer in head_layers(model, head):
                layer.reset_parameters()
        return model.eval()

    def architecture(self, labels: int, images) -> nn.Module:
        """The model on the meta device, for a dry run: neither weights nor images are read."""
        if self.config is None:
            try:
                source = Path(images.data_dir or "") / self.weights if self.weights else self.name
                config = load_cifar_resnet(source).config if self.weights else AutoConfig.from_pretrained(source)
            except (OSError, ValueError) as error:
                raise InputError(f"model: no architecture for a dry run ({first_line(error)})") from error
            with torch.device("meta"):
                return AutoModelForImageClassification.from_config(config).eval()
        with torch.device("meta"):
            return build_model(self.config, labels).eval()

    def pretrained(self, images) -> Path:
        """Folder of a model of the architecture `config`, trained here on the rows of `pretrain`, at most once."""
        pretrain = self.pretrain
        rows = images.load(pretrain.train)
        if pretrain.per_class:
            rows = select_per_class(rows, pretrain.per_class, seed=10**6)
        collator = dataclasses.replace(images.collator, augment=pretrain.augment)
        key = {
            "kind": "image classifier",
            "code": code_sha256(),
            "config": self.config,
            "pretrain": dataclasses.asdict(pretrain),
            "images": dataclasses.asdict(collator),
            "rows": fingerprint_rows(rows),
        }

        def train(folder: Path):
            set_seed(0)
            model = build_model(self.config, len(class_names(rows)))
            check_images(model, rows, collator)
            tune(model, rows, collator, pretrain.of(pretrain.per_class)).save_pretrained(folder)

        return cached_folder(key, train)


@dataclass
class Tuning:
    """The section `tuning`; `epochs` may be a mapping from images per class."""

    epochs: int | dict[int, int] = 20
    learning_rate: float = 1e-2
    batch_size: int = 64
    weight_decay: float = 0.0

    def of(self, per_class: int | None) -> dict:
        """The arguments of `tune` at one number of images per class.

        Raises:
            InputError: a mapping without this number of images.
        """
        epochs = self.epochs
        if isinstance(epochs, Mapping):
            if per_class not in epochs:
                raise InputError(f"tuning.epochs has no entry for {per_class} images per class")
            epochs = epochs[per_class]
        return dataclasses.asdict(self) | {"epochs": epochs}


@dataclass(kw_only=True)
class Pretraining(Tuning):
    """The key `model.pretrain`: the images to train on, and how many of each class (default all)."""

    train: str
    per_class: int | None = None
    augment: bool = False


@dataclass
class Tuner:
    """The section `tuner`: `type` and the fields of that adapter's configuration."""

    type: str
    settings: dict

    @property
    def head(self) -> str:
        """The module that maps features to logits."""
        return self.settings["modules_to_save"][0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its adapter.

        Raises:
            InputError: a model that the adapter does not suit.
        """
        from peft import get_peft_model

        return get_peft_model(model, TUNERS[self.type](**self.settings))


def read_tuner(section: str, written: Mapping | None) -> Tuner:
    """The section `tuner`.

    Raises:
        InputError: an unknown type, a setting that it does not have, or no head among `modules_to_save`.
    """
    settings = dict(written or {})
    kind = settings.pop("type", None)
    if kind not in TUNERS:
        raise InputError(f"{section}.type must be one of {', '.join(TUNERS)}, not {kind!r}")
    check_settings(TUNERS[kind], section, settings)
    if not settings.get("modules_to_save"):
        raise InputError(f"{section}.modules_to_save must name the head: a task's classes cannot be told without it")
    return Tuner(kind, settings)


def _from_pretrained(name: str | Path, labels: int) -> nn.Module:
    try:
        model = AutoModelForImageClassification.from_pretrained(name, num_labels=labels, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: {name} cannot be loaded: {first_line(error)}") from error
    if model.dtype in (torch.float16, torch.bfloat16):
        logger.warning(f"{name} is in half precision: it is tuned and unlearned in fp32")
        model = model.float()
    return model


def build_model(config: Mapping, labels: int) -> nn.Module:
    """An image classifier with random weights: `model_type` and fields of its configuration.

    Raises:
        InputError: no such type, or values that it does not take.
    """
    fields = dict(config)
    kind = fields.pop("model_type", None)
    try:
        return AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **fields, num_labels=labels))
    # Of unknown types and values that do not fit: transformers, its strict fields, torch.
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, ArithmeticError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.config: no image classifier of model_type {kind!r} with these values: {reason}"
        ) from error


def head_layers(model: nn.Module, name: str) -> list[nn.Linear]:
    """The linear layers of the head; transformers' ResNet wraps its own with what flattens the features.

    Raises:
        InputError: there is none of that name.
    """
    linear = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    layers = [module for path, module in linear.items() if f"{path}.".startswith(f"{name}.")]
    if not layers:
        raise InputError(
            f"tuner.modules_to_save: the model has no head {name!r}; of its linear layers the last is {[*linear][-1]}"
        )
    return layers


def check_images(model: nn.Module, rows: Dataset, collator: Callable):
    """Give one image to the model.

    Raises:
        InputError: it takes none of that size.
    """
    try:
        accuracy(model, rows.select([0]), collator)
    except InputError:
        raise
    except (ValueError, RuntimeError) as error:  # transformers' of a patch grid, torch's of a shape
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the model takes no images of this size ({reason}): set data.image_size to fit") from error

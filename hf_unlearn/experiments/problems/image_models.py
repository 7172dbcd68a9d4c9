# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The models of the class-forgetting protocol: made or loaded, given a head and a tuner, and tuned."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ...data.images import ImageCollator, class_names, select_per_class
from ...errors import InputError
from ...evaluation.images import accuracy
from ...models.cifar_resnet import load_cifar_resnet
from ...runtime.cache import cached_folder
from ..problem import configured


if TYPE_CHECKING:
    from .class_forgetting import Images


logger = logging.getLogger(__name__)

QUIET = {"report_to": "none", "disable_tqdm": True, "log_level": "error", "save_strategy": "no"}


def load_start(config: Mapping, images: "Images", labels: int, seed: int) -> nn.Module:
    """The pretrained model w0 of the section `model`, in eval mode.

    `weights`: a file of a CIFAR ResNet; `name`: an image classifier by folder or Hub id; `config`: an architecture of
    transformers' image classifiers, trained here on the rows of `pretrain`, or drawn from the seed without. `new_head: true`
    puts a new head in, drawn from the seed; so does another number of classes.

    Raises:
        InputError: none of these, weights that cannot be loaded, or no such head.
    """
    settings = dict(config["model"])
    set_seed(seed)
    if "weights" in settings:
        model = load_cifar_resnet((Path(images.data_dir) if images.data_dir else Path()) / settings["weights"])
        if model.config.num_labels != labels:
            model.reset_head(labels, seed)
    elif "name" in settings or "pretrain" in settings:
        name = settings["name"] if "name" in settings else pretrained(settings, images)
        try:
            model = AutoModelForImageClassification.from_pretrained(
                name, num_labels=labels, ignore_mismatched_sizes=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f"model.name: {name} cannot be loaded: {str(error).splitlines()[0]}") from error
        if model.dtype in (torch.float16, torch.bfloat16):
            logger.warning(f"{name} is in half precision: it is tuned and unlearned in fp32")
            model = model.float()
    elif "config" in settings:
        model = build_model(settings["config"], labels)
    else:
        raise InputError("model: give weights (a CIFAR ResNet), name (an image classifier), or config (and pretrain)")
    if settings.get("new_head"):
        set_seed(seed)
        for layer in head_layers(model, head_name(config)):
            layer.reset_parameters()
    return model.eval()


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


def head_name(config: Mapping) -> str:
    """The module that maps features to logits.

    Raises:
        InputError: `tuner.modules_to_save` does not name it.
    """
    modules = config["tuner"].get("modules_to_save")
    if not modules:
        raise InputError("tuner.modules_to_save must name the head: a new task's classes cannot be told without it")
    return modules[0]


def head_layers(model: nn.Module, name: str) -> list[nn.Linear]:
    """The linear layers of the head; transformers' ResNet wraps its own with what flattens the features.

    Raises:
        InputError: there is none of that name.
    """
    head = dict(model.named_modules()).get(name)
    layers = [] if head is None else [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not layers:
        linear = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise InputError(
            f"tuner.modules_to_save: the model has no head {name!r}; of its linear layers the last is {linear[-1]}"
        )
    return layers


def pretrained(settings: Mapping, images: "Images") -> Path:
    """Folder of a model of the architecture `config`, trained here on the rows of `pretrain`, at most once."""
    pretrain = dict(settings["pretrain"])
    if "train" not in pretrain or "config" not in settings:
        raise InputError("model.pretrain needs train, the images to train on, and model.config beside it")
    rows = images.load(pretrain.pop("train"))
    if per_class := pretrain.pop("per_class", None):
        rows = select_per_class(rows, per_class, seed=10**6)
    collator = ImageCollator(tuple(images.mean), tuple(images.std), images.image_size, pretrain.pop("augment", False))
    architecture = dict(settings["config"])
    key = {"config": architecture, "pretrain": dict(settings["pretrain"]), "image_size": images.image_size}
    key |= {"mean": list(images.mean), "std": list(images.std), "rows": len(rows)}

    def train(folder: Path):
        set_seed(0)
        model = build_model(architecture, len(class_names(rows)))
        check_images(model, rows, collator)
        configured(tune, "model.pretrain", pretrain, model=model, rows=rows, collator=collator).save_pretrained(folder)

    return cached_folder({"image classifier": key}, train)


def tune(
    model: nn.Module,
    rows: Dataset,
    collator: Callable,
    *,
    epochs: int = 20,
    learning_rate: float = 1e-2,
    batch_size: int = 64,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Train what requires a gradient with AdamW and a cosine schedule; returns the model in eval mode."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            per_device_train_batch_size=batch_size,
            weight_decay=weight_decay,
            lr_scheduler_type="cosine",
            seed=seed,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            **QUIET,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


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
        raise InputError(
            f"the model takes no images of this size ({reason}): set data.image_size to its own"
        ) from error


def add_tuner(model: nn.Module, settings: Mapping) -> nn.Module:
    """The model wrapped with the adapter of the section `tuner`: `type` and fields of its configuration.

    Raises:
        InputError: an unknown type, a setting that it does not have, or a model that it does not suit.
    """
    from peft import get_peft_model

    from ...tuners import BatchNormTuningConfig, KeyValuePromptConfig

    kinds = {"batch_norm": BatchNormTuningConfig, "key_value_prompt": KeyValuePromptConfig}
    settings = dict(settings)
    kind = settings.pop("type", None)
    if kind not in kinds:
        raise InputError(f"tuner.type must be one of {', '.join(kinds)}, not {kind!r}")
    return get_peft_model(model, configured(kinds[kind], "tuner", settings))

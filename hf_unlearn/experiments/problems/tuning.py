# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tuning of the models that a problem begins with, on all rows and without those to be forgotten; once for each."""

import copy
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...objectives import cross_entropy, logits_of
from ...runtime.cache import cached_folder
from ...runtime.files import open_safetensors, read_json, sha256_tensors, write_json, write_safetensors
from ...runtime.provenance import code_sha256
from ..problem import Reference
from ..search import copy_weights, restore_weights


QUIET = {"report_to": "none", "disable_tqdm": True, "log_level": "error", "save_strategy": "no"}


def tune(
    model: nn.Module,
    rows: Dataset,
    collator: Callable,
    settings: Mapping,
    seed: int = 0,
    schedule: str = "cosine",
    loss: Callable | None = None,
    by_length: bool = False,
) -> nn.Module:
    """Train what requires a gradient: AdamW, `epochs`, `learning_rate`, `batch_size` and `weight_decay` of settings.

    `loss` is of outputs and labels, the model's own by default. `by_length` puts rows of like length into a batch:
    padding is half of the work where lengths differ. Returns the model in eval mode.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings["epochs"],
            learning_rate=settings["learning_rate"],
            per_device_train_batch_size=settings["batch_size"],
            weight_decay=settings["weight_decay"],
            lr_scheduler_type=schedule,
            train_sampling_strategy="group_by_length" if by_length else "random",
            seed=seed,
            remove_unused_columns=False,
            use_cpu=not torch.cuda.is_available(),
            **QUIET,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, compute_loss_func=loss)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def tuned(start: nn.Module, key: Mapping, train: Callable[[nn.Module], nn.Module]) -> Reference:
    """A copy of `start` trained by `train`, and the seconds that took; kept in the cache.

    Args:
        key: all that decides what comes out beside the weights of `start` and the code, as JSON.
    """
    model = copy.deepcopy(start)
    base = copy_weights(model)

    def build(folder: Path):
        began = time.perf_counter()
        after = train(copy.deepcopy(start)).state_dict()
        changed = {name: tensor for name, tensor in after.items() if not tensor.cpu().equal(base[name])}
        write_safetensors(folder / "tuned.safetensors", changed)
        write_json(folder / "cost.json", {"seconds": time.perf_counter() - began})

    folder = cached_folder({"code": code_sha256(), "start": sha256_tensors(base), **key}, build)
    with open_safetensors(folder / "tuned.safetensors") as file:
        restore_weights(model, base | {name: file.get_tensor(name) for name in file.keys()})
    return Reference(model.eval(), read_json(folder / "cost.json")["seconds"])


def mean_loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
    """The loss of encoders' heads in tuning, for `tune`: the mean over predictions of what methods go by.

    The ends of a span are chosen among all places of a batch, as transformers has it: padding, of which there is
    little in batches of like length, is learned to be none.
    """
    return cross_entropy(logits_of(outputs), labels).mean()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Measures of an unlearned image classifier: accuracy, epochs to relearn, what a linear probe still finds."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from .. import objectives
from ..errors import InputError, NumericalError
from ..runtime.modules import evaluation_mode, model_inputs


def accuracy(model: nn.Module, rows: Dataset, collator: Callable, batch_size: int = 256) -> float:
    """Share of rows whose label has the largest logit."""
    right = 0
    with evaluation_mode(model):
        for batch in DataLoader(rows, batch_size=batch_size, collate_fn=collator):
            right += int((_logits(model, batch).argmax(-1).cpu() == batch["labels"]).sum())
    return right / len(rows)


def relearning_epochs(
    model: nn.Module,
    rows: Dataset,
    collator: Callable,
    *,
    threshold: float = 0.05,
    max_epochs: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
) -> int | None:
    """Epochs of training on the forget rows until their mean cross-entropy is below `threshold`.

    Section IV of Fast-NTK. AdamW on a copy of the model, on the parameters that require a gradient; the loss is
    measured after each epoch on all rows.

    Args:
        model (`nn.Module`): image classifier; unchanged.
        rows (`Dataset`): forget rows.
        collator (`Callable`): rows -> batches.
        threshold (`float`, defaults to 0.05): in nats.
        max_epochs (`int`, defaults to 100): where it gives up.
        learning_rate (`float`, defaults to 1e-3): of AdamW, without weight decay.
        batch_size (`int`, defaults to 32): of training.
        seed (`int`, defaults to 0): of the order of rows.

    Returns:
        `int` or `None`: 0 when the rows are known already, None when `max_epochs` did not do (the paper's ">100").

    Raises:
        InputError: no parameter requires a gradient.
        NumericalError: the loss is not finite.
    """
    model = copy.deepcopy(model)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("no parameter requires a gradient: relearning trains what was tuned")
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(max_epochs + 1):
        loss = mean_loss(model, rows, collator)
        if loss < threshold:
            return epoch
        if epoch == max_epochs:
            return None
        model.train()
        for batch in DataLoader(rows, batch_size=batch_size, shuffle=True, generator=order, collate_fn=collator):
            optimizer.zero_grad()
            objectives.cross_entropy(_logits(model, batch), batch["labels"].to(parameters[0].device)).mean().backward()
            optimizer.step()


def mean_loss(model: nn.Module, rows: Dataset, collator: Callable, batch_size: int = 256) -> float:
    """Mean cross-entropy of the rows, in nats.

    Raises:
        NumericalError: it is not finite.
    """
    total = 0.0
    with evaluation_mode(model):
        for batch in DataLoader(rows, batch_size=batch_size, collate_fn=collator):
            logits = _logits(model, batch)
            total += float(objectives.cross_entropy(logits, batch["labels"].to(logits.device)).double().sum())
    if not np.isfinite(total):
        raise NumericalError("the loss is not finite: the model diverged; lower the learning rate")
    return total / len(rows)


def linear_probe(
    model: nn.Module, train: Dataset, evaluated: Sequence[Dataset], collator: Callable, head: str, seed: int = 0
) -> list[float]:
    """Accuracies of a new linear head, trained on the frozen features of `train`, on each of the other sets.

    The features are what enters the module `head`: its old weights play no part. Logistic regression (scikit-learn,
    L-BFGS) on standardised features (Fast-NTK, Table III, says "fine-tuning of the classification head").

    Args:
        model (`nn.Module`): image classifier.
        train (`Dataset`): rows that the new head is trained on.
        evaluated (`Sequence[Dataset]`): rows that it is scored on.
        collator (`Callable`): rows -> batches.
        head (`str`): name of the module, or the end of it.
        seed (`int`, defaults to 0): of the regression.

    Raises:
        InputError: the model has no such module.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = _features(model, train, collator, head)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed)).fit(features, labels)
    return [float(probe.score(*_features(model, rows, collator, head))) for rows in evaluated]


def _features(model: nn.Module, rows: Dataset, collator: Callable, head: str) -> tuple[np.ndarray, np.ndarray]:
    """(features (n, d) that enter the head, labels (n,))."""
    modules = dict(model.named_modules())
    # A tuner that keeps a copy of the head puts it under the head's own name.
    found = [name for name in modules if name == head or name.endswith(f".{head}")]
    if not found:
        raise InputError(f"the model has no module {head!r} to probe below")
    kept = []
    handle = modules[found[0]].register_forward_pre_hook(
        lambda _, args: kept.append(args[0].float().flatten(1).cpu().numpy())
    )
    labels = []
    try:
        with evaluation_mode(model):
            for batch in DataLoader(rows, batch_size=256, collate_fn=collator):
                _logits(model, batch)
                labels.append(batch["labels"].numpy())
    finally:
        handle.remove()
    return np.concatenate(kept), np.concatenate(labels)


def _logits(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(**model_inputs(model, batch)).logits

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Measures of an unlearned image classifier: accuracy, epochs to relearn, what a linear probe still finds."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from .. import objectives
from ..errors import InputError, NumericalError
from ..runtime.modules import evaluation_mode, model_inputs


BATCH = 256  # images in a forward pass of an evaluation


def accuracy(model: nn.Module, rows: Dataset, collator: Callable) -> float:
    """Share of rows whose label has the largest logit."""
    with evaluation_mode(model):
        right = sum(int((logits.argmax(-1) == labels).sum()) for logits, labels in _outputs(model, rows, collator))
    return right / len(rows)


def count_predictions(model: nn.Module, rows: Dataset, collator: Callable) -> dict[int, int]:
    """How many rows are taken for each class, the commonest first."""
    with evaluation_mode(model):
        taken = Counter(int(c) for logits, _ in _outputs(model, rows, collator) for c in logits.argmax(-1))
    return dict(taken.most_common())


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

    Section IV of Fast-NTK. AdamW without weight decay on a copy of the model, on the parameters that require a
    gradient, rows in an order of `seed`; the loss (in nats) is measured after each epoch on all rows.

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
        for logits, labels in _outputs(model, rows, collator, batch_size=batch_size, shuffle=True, generator=order):
            optimizer.zero_grad()
            objectives.cross_entropy(logits, labels).mean().backward()
            optimizer.step()


def mean_loss(model: nn.Module, rows: Dataset, collator: Callable) -> float:
    """Mean cross-entropy of the rows, in nats.

    Raises:
        NumericalError: it is not finite.
    """
    total = 0.0
    with evaluation_mode(model):
        for logits, labels in _outputs(model, rows, collator):
            total += float(objectives.cross_entropy(logits, labels).double().sum())
    if not np.isfinite(total):
        raise NumericalError("the loss is not finite: the model diverged; lower the learning rate")
    return total / len(rows)


def linear_probe(
    model: nn.Module, train: Dataset, evaluated: Sequence[Dataset], collator: Callable, head: str, seed: int = 0
) -> list[float]:
    """Accuracies of a new linear head, trained on the frozen features of `train`, on each of the other sets.

    The features are what enters the module `head`: its old weights play no part. Logistic regression (scikit-learn,
    L-BFGS) on standardised features (Fast-NTK, Table III, says "fine-tuning of the classification head").

    Raises:
        InputError: the model has no module whose name is, or ends in, `head`.
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
    try:
        with evaluation_mode(model):
            labels = [labels.cpu().numpy() for _, labels in _outputs(model, rows, collator)]
    finally:
        handle.remove()
    return np.concatenate(kept), np.concatenate(labels)


def _outputs(model: nn.Module, rows: Dataset, collator: Callable, **loading) -> Iterator[tuple]:
    """(logits, labels) of every batch, both on the model's device; `loading` goes to the DataLoader."""
    for batch in DataLoader(rows, **{"batch_size": BATCH, "collate_fn": collator, **loading}):
        logits = model(**model_inputs(model, batch)).logits
        yield logits, batch["labels"].to(logits.device)

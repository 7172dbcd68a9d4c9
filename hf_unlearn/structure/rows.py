# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a batch with something to predict, the loss of each, and one walk over the data in several processes."""

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..objectives import IGNORE, logits_of, sequence_nll
from ..runtime.labels import check_classes, is_regression, read_labels
from ..runtime.limits import check_tokens
from ..runtime.modules import is_causal, model_device, positions_behind_padding, takes_positions
from ..runtime.processes import Processes
from ..runtime.sharded import is_sharded


logger = logging.getLogger(__name__)


@dataclass
class Rows:
    """The rows of a batch that count: what the model takes (labels removed), and their labels (as in `objectives`)."""

    inputs: dict
    labels: Tensor
    count: int


@dataclass
class Counts:
    """Rows that were read, and those that were left out: nothing but padding, or nothing to predict."""

    samples: int = 0
    padding: int = 0
    unlabelled: int = 0


def read_rows(batch: Mapping, causal: bool, device: torch.device, counts: Counts) -> Rows | None:
    """Read a dataloader's dict; rows without a real token, or without a label, are left out and counted.

    Labels are of shape (B,) for classes and values, (B, T) for tokens (shifted for causal models as transformers
    does), (B, 2, 1) for the ends of spans, which may also stand in `start_positions` and `end_positions`: a place
    that is no token of the row is ignored.

    Raises:
        InputError: as `runtime.labels.read_labels`.
    """
    found = read_labels(batch, causal)
    counts.samples += int(found.kept.sum())
    counts.padding += int((~found.real).sum())
    counts.unlabelled += int((found.real & ~found.kept).sum())
    if not bool(found.kept.any()):
        return None
    return Rows(found.take(batch, device), found.labels[found.kept].to(device), int(found.kept.sum()))


def forward(model: nn.Module, rows: Rows):
    """What the model says of the rows."""
    told = positions_behind_padding if takes_positions(model) else dict
    weight, cache = next(model.parameters()), {"use_cache": False} if _generates(model) else {}
    inputs = {
        name: value.to(weight.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in rows.inputs.items()
    }
    return model(**told(inputs), **cache)


def _generates(model: nn.Module) -> bool:
    """Whether the model would keep keys and values of a forward for the next token."""
    return bool(getattr(getattr(model, "config", None), "use_cache", False)) and is_causal(model)


def sample_losses(model: nn.Module, outputs, rows: Rows) -> Tensor:
    """The loss of each row, (B,): that of `objectives`, summed over the row's predictions.

    Tokens' cross-entropies are summed, not averaged: H is that of the summed loss, and a row of many tokens weighs
    more. So are those of a span's two ends; the loss of a regression is half of the squared error.

    Raises:
        InputError: labels that the outputs cannot be compared with.
    """
    labels = rows.labels
    logits = outputs if isinstance(outputs, Tensor) else logits_of(outputs, rows.inputs.get("attention_mask"))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if is_regression(logits):
        labels = labels.reshape(-1).to(logits)
    else:
        if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
            raise InputError(
                f"labels of shape {tuple(labels.shape)} and {labels.dtype} do not fit outputs of shape "
                f"{tuple(logits.shape)}: give labels that fit the model's head"
            )
        check_classes(labels, logits.shape[-1])
    if logits.dim() == 3 and not is_causal(model):
        return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE).sum(1)
    return sequence_nll(logits, labels)[0]


def walk(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    compute: Callable[[Rows, bool], None],
    *,
    processes: Processes,
    description: str,
    show: bool = False,
) -> Counts:
    """Let `compute` see the rows of every batch of this process; returned are the counts of all processes.

    Every process reads the whole dataloader, and in round r the process of rank k computes batch r * size + k. On a
    sharded model one without a batch computes another's all the same, since the others' forwards need its weights:
    the second argument of `compute` says whether the rows count.

    Raises:
        InputError: as `read_rows`; tokens that the model does not have; not one row counts.
    """
    from tqdm.auto import tqdm

    causal, device, sharded = is_causal(model), model_device(model), is_sharded(model)
    counts, batches = Counts(), iter(dataloader)
    total = len(dataloader) if hasattr(dataloader, "__len__") else None
    bar = tqdm(total=total, desc=description, unit="batch", disable=not show or processes.rank != 0)

    def work(raws: list[Mapping]):
        own = read_rows(raws[processes.rank], causal, device, counts) if processes.rank < len(raws) else None
        if own is not None:
            ids = own.inputs.get("input_ids")
            if isinstance(ids, Tensor) and ids.dim() == 2:
                check_tokens(model, ids.shape[1], int(ids.max()), f"the data of the {description}")
            compute(own, True)
        elif sharded:
            others = (read_rows(raw, causal, device, Counts()) for raw in raws)
            if (other := next((rows for rows in others if rows is not None), None)) is not None:
                compute(other, False)

    with bar:
        while raws := list(itertools.islice(batches, processes.size)):
            processes.share(lambda raws=raws: work(raws))
            bar.update(len(raws))
    found = processes.gather(counts)
    counts = Counts(*(sum(getattr(one, name) for one in found) for name in ("samples", "padding", "unlabelled")))
    left = {"are all padding": counts.padding, "have nothing to predict": counts.unlabelled}
    left = " and ".join(f"{number} {what}" for what, number in left.items() if number)
    if not counts.samples:
        raise InputError(f"no row counts in the {description}: {left or 'there are none'}; give rows with labels")
    if left:
        logger.warning(
            f"{description}: of {counts.samples + counts.padding + counts.unlabelled} rows {left}: left out"
        )
    return counts

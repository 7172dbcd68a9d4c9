# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Gradients of -log p(label) with respect to the outputs: sampled, random-sign probe, exact or empirical.

No loss is built: softmax minus one-hot is written into the softmax's own buffer and handed to the backward. A
regression's output is the mean of a normal distribution of variance 1, whose Fisher is 1: G = J^T J.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..runtime.labels import is_regression
from .batches import Batch


FISHERS = ("sampled", "probe", "exact", "empirical")

STRIDE = -7046029254386353131  # between the keys of neighbouring classes, of splitmix64

# Logits are made for this many (token, class) pairs at a time, so that [tokens, V] never exists whole: 32 MB in fp32
# on a CPU; 512 MB on a GPU, where products of few rows are slow.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**27}


def logit_gradients(logits: Tensor, noise: Tensor, labels: Tensor, fisher: str) -> Tensor:
    """Rows v (n, C) with E[v v^T] = diag(p) - p p^T (for "empirical": p - one-hot of the label) from logits (n, C).

    "sampled": p - one-hot of a class drawn by inverse CDF at `noise`, uniform in [0, 1).
    "probe": with r = +-1 for each class and w = sqrt(p) r, v = w - p sum(w); `noise` is one integer key per row.
    Same cost as a sampled label and 7-12 % lower error, since it has no heavy tail over classes.
    """
    p = torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if fisher == "probe":
        w = p.sqrt().mul_(_signs(noise, p.shape[-1]))
        return w.sub_(p.mul_(w.sum(-1, keepdim=True)))
    if fisher == "sampled":
        cumulative = p.cumsum(-1)
        # Scaled by the last entry (1 up to rounding) and kept below it (noise near 1 rounds to 1 in fp32), so that a
        # class of probability 0 at the end is never drawn.
        last = cumulative[:, -1:]
        points = torch.minimum(noise.to(p.dtype)[:, None] * last, torch.nextafter(last, torch.zeros_like(last)))
        labels = torch.searchsorted(cumulative, points, right=True).clamp_(max=p.shape[-1] - 1)[:, 0]
    p[torch.arange(len(p), device=p.device), labels] -= 1
    return p


def value_gradients(values: Tensor, noise: Tensor, labels: Tensor, fisher: str) -> Tensor:
    """As `logit_gradients` for the values (n, 1) of a regression: rows v (n, 1) with E[v^2] = 1.

    "sampled": minus `noise`, drawn from a standard normal distribution. "probe": its sign, so that v^2 is 1 in each
    row. "empirical": what the value is above its label.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    if fisher == "empirical":
        return values - labels.to(values)[:, None]
    drawn = noise.to(values)[:, None]
    return drawn.neg() if fisher == "sampled" else torch.where(drawn < 0, -1.0, 1.0)


def draw_noise(batch: Batch, seed: int, fisher: str, regression: bool = False) -> Tensor:
    """One random number for each predicted row: uniform fp64 for "sampled", an int64 key for "probe".

    Of a regression a normal one for both. Each sequence has its own stream, seeded by (seed, place in the dataset) on
    the CPU: the draw does not depend on the batch size, the padding, the device or the number of processes.
    """
    streams = [np.random.default_rng([seed, sequence]) for sequence in batch.sequences]
    if regression:
        draw = np.random.Generator.standard_normal
    elif fisher == "probe":
        draw = lambda stream, size: stream.integers(2**62, size=size)
    else:
        draw = np.random.Generator.random
    noise = torch.from_numpy(np.concatenate([draw(*pair) for pair in zip(streams, batch.counts)]))
    if fisher == "probe" and len(batch.label_shape) == 3:
        # Classes are places: signs go with the tokens of a row, wherever it begins.
        noise -= torch.tensor(batch.fronts).repeat_interleave(torch.tensor(batch.counts)) * STRIDE
    return noise


def output_gradients(outputs: Tensor, head, batch: Batch, fisher: str, seed: int) -> Iterator[Tensor]:
    """Gradients, shaped like `outputs`, to hand to the backward one after another.

    Outputs are hidden states (B, T, d) with `head` the map to logits, or the logits themselves with `head` None.
    "exact" yields one gradient for each class and each place in the sequence (sequences do not interact): the sum of
    squares over them is the exact generalised Gauss-Newton. The others yield one.
    """
    flat, predicted = outputs.detach().reshape(-1, outputs.shape[-1]), batch.predicted.to(outputs.device)
    labels, regression = batch.labels.to(outputs.device), is_regression(outputs)
    rows = flat.index_select(0, predicted)

    def scatter(gradient, index=predicted):
        full = torch.zeros_like(flat)
        full[index] = gradient.to(full.dtype)
        return full.view_as(outputs)

    if fisher == "exact" and regression:
        yield scatter(torch.ones_like(rows))
        return
    if fisher == "exact":
        p = torch.softmax(rows, -1, dtype=torch.promote_types(rows.dtype, torch.float32))
        places = torch.cat([torch.arange(count) for count in batch.counts]).to(rows.device)
        for place in range(max(batch.counts)):
            chosen = places == place
            for label in range(p.shape[-1]):
                root = p[chosen, label].sqrt()[:, None]
                gradient = -root * p[chosen]
                gradient[:, label] += root[:, 0]
                yield scatter(gradient, predicted[chosen])
        return
    noise = draw_noise(batch, seed, fisher, regression).to(outputs.device)
    if head is None:
        yield scatter((value_gradients if regression else logit_gradients)(rows, noise, labels, fisher))
        return
    gradient = torch.empty_like(rows)
    size = max(1, CHUNK_ELEMENTS["cpu" if rows.device.type == "cpu" else "cuda"] // head.weight.shape[0])
    for part in range(math.ceil(len(rows) / size)):
        span = slice(part * size, (part + 1) * size)
        hidden = rows[span].requires_grad_()
        logits = head(hidden)
        # With a device map the head may lie on another device than the hidden states.
        place = logits.device
        at_logits = logit_gradients(logits.detach(), noise[span].to(place), labels[span].to(place), fisher)
        gradient[span] = torch.autograd.grad(logits, hidden, at_logits.to(logits.dtype))[0]
    yield scatter(gradient)


def _signs(keys: Tensor, classes: int) -> Tensor:
    """+-1 (n, classes) from one int64 key per row, by splitmix64: integer arithmetic has the same bits everywhere.

    Numbers drawn on the CPU would have to be copied to the device, one for each token and class.
    """
    z = torch.arange(classes, device=keys.device) * STRIDE + keys[:, None]
    z.bitwise_xor_(z >> 30).mul_(-4658895280553007687)
    z.bitwise_xor_(z >> 27).mul_(-7723592293110705685)
    return z.bitwise_right_shift_(40).bitwise_and_(1).mul_(2).sub_(1)

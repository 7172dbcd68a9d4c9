# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Gradients of -log p(label) with respect to the logits: sampled, random-sign probe, exact or empirical.

No loss is built: softmax minus one-hot is written into the softmax's own buffer and handed to the backward.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .batches import Batch


FISHERS = ("sampled", "probe", "exact", "empirical")

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


def draw_noise(batch: Batch, seed: int, fisher: str) -> Tensor:
    """One random number for each predicted row: uniform fp64 for "sampled", an int64 key for "probe".

    Each sequence has its own stream, seeded by (seed, place in the dataset) on the CPU: the draw does not depend on
    the batch size, the padding, the device or the number of processes.
    """
    streams = [np.random.default_rng([seed, sequence]) for sequence in batch.sequences]
    if fisher == "probe":
        draws = [stream.integers(2**62, size=count) for stream, count in zip(streams, batch.counts)]
    else:
        draws = [stream.random(count) for stream, count in zip(streams, batch.counts)]
    return torch.from_numpy(np.concatenate(draws))


def output_gradients(outputs: Tensor, head, batch: Batch, fisher: str, seed: int) -> Iterator[Tensor]:
    """Gradients, shaped like `outputs`, to hand to the backward one after another.

    Outputs are hidden states (B, T, d) with `head` the map to logits, or the logits themselves with `head` None.
    "exact" yields one gradient for each class and each place in the sequence (sequences do not interact): the sum of
    squares over them is the exact generalised Gauss-Newton. The others yield one.
    """
    flat, predicted = outputs.detach().reshape(-1, outputs.shape[-1]), batch.predicted.to(outputs.device)
    labels = batch.labels.to(outputs.device)
    rows = flat.index_select(0, predicted)

    def scatter(gradient, index=predicted):
        full = torch.zeros_like(flat)
        full[index] = gradient.to(full.dtype)
        return full.view_as(outputs)

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
    noise = draw_noise(batch, seed, fisher).to(outputs.device)
    if head is None:
        yield scatter(logit_gradients(rows, noise, labels, fisher))
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
    z = torch.arange(classes, device=keys.device) * -7046029254386353131 + keys[:, None]
    z.bitwise_xor_(z >> 30).mul_(-4658895280553007687)
    z.bitwise_xor_(z >> 27).mul_(-7723592293110705685)
    return z.bitwise_right_shift_(40).bitwise_and_(1).mul_(2).sub_(1)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models that differ a little, and batches of unlike rows, for measures of divergence."""

import copy

import torch

from hf_unlearn.evaluation.specificity import KLResult
from tests.support.models import make_llama


def sharp_llama(**kwargs):
    model = make_llama(**kwargs)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


def changed(model, scale=0.1, seed=1):
    """A copy of a model with every weight moved by a relative `scale`."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(noise * scale * weight.abs().mean())
    return model


def batches(rows=9, batch_size=4, seed=0):
    """Rows of unlike length: prompts labelled -100, labelled padding that must not count, one row without answer."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for start in range(0, rows, batch_size):
        n, width = min(batch_size, rows - start), 14
        ids = torch.randint(3, 50, (n, width), generator=generator)
        mask, labels = torch.ones_like(ids), ids.clone()
        for i in range(n):
            length = int(torch.randint(7, width + 1, (), generator=generator))
            prompt = int(torch.randint(1, 5, (), generator=generator))
            mask[i, length:] = 0
            ids[i, length:] = 0
            labels[i, :prompt] = -100
        if start == 0:
            labels[1] = -100
        result.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return result


def result_of(per_sequence) -> KLResult:
    """A result of the given divergences, a list of tokens' values a sequence."""
    lengths = torch.tensor([len(kl) for kl in per_sequence])
    flat = torch.tensor([value for kl in per_sequence for value in kl])
    means = torch.tensor([sum(kl) / len(kl) for kl in per_sequence])
    return KLResult(float(flat.mean()), len(flat), (0.0, 1.0), 1.0, 1.0, flat, means, lengths)

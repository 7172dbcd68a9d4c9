# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A distribution over the vocabulary in the memory of k tokens, and what it still says about a KL divergence."""

from typing import NamedTuple

import torch

from .scoring import LOG_PROB_FLOOR, reduction_rows


class TopK(NamedTuple):
    """What is kept of n rows of log-probabilities log p (n, V), on the CPU; R is the rest of the vocabulary."""

    ids: torch.Tensor  # (n, k) int32, the most likely tokens
    log_probs: torch.Tensor  # (n, k), theirs
    rest: torch.Tensor  # (n,) log of sum_R p, summed over R itself (one minus the others would cancel)
    rest_plogp: torch.Tensor  # (n,) sum_R p log p
    drawn: torch.Tensor  # (n,) int32, one token of R drawn with probability p / sum_R p
    drawn_log_prob: torch.Tensor  # (n,) log p of it


def bytes_per_token(k: int, width: int) -> int:
    """Of a `TopK` with log-probabilities of `width` bytes."""
    return k * (width + 4) + 3 * width + 4


def most_that_fit(memory: int, tokens: int, width: int) -> int:
    """The largest k (0: none) whose `TopK` over so many tokens takes at most `memory` bytes."""
    return max(0, (memory // tokens - 3 * width - 4) // (width + 4))


def keep_top(log_probs: torch.Tensor, k: int, generator: torch.Generator) -> TopK:
    """`TopK` of rows of log-probabilities (n, V), k < V; `generator` (of the CPU) draws from the rest."""
    uniform = torch.rand(len(log_probs), 1, generator=generator, dtype=torch.float64).to(log_probs)
    rows, parts = reduction_rows(log_probs), []
    for logs, u in zip(log_probs.split(rows), uniform.split(rows)):
        top, ids = logs.topk(k)
        others = logs.scatter(1, ids, float("-inf"))
        probs = others.exp()
        running = probs.cumsum(-1)
        total = running[:, -1:]
        # Strictly below the total, so that the first entry above it is a token of R with p > 0.
        target = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(running, target, right=True).clamp_max_(logs.shape[1] - 1)
        plogp = (probs * others.clamp_min(LOG_PROB_FLOOR)).sum(-1)
        part = TopK(ids.int(), top, _log_sum(others), plogp, drawn[:, 0].int(), logs.gather(1, drawn)[:, 0])
        parts.append([tensor.cpu() for tensor in part])
    return TopK(*(torch.cat(column) for column in zip(*parts)))


def divergences(kept: TopK, log_probs: torch.Tensor) -> torch.Tensor:
    """What is known of KL(p || q) from `kept` of p and all of log q (n, V): (3, n) fp64 on the CPU.

    The k terms are exact. Row 0 counts the rest as one bucket, a lower bound (log-sum inequality) that is exactly 0
    for q = p. Row 1 is an upper bound: sum_R p log p is exact, and -sum_R p log q is at most sum_R p * max_R(-log q).
    Row 2 puts p(R) * (log p - log q) of the drawn token in place of the rest: right on average over tokens.
    """
    rows = reduction_rows(log_probs)
    pieces = zip(log_probs.split(rows), *(tensor.split(rows) for tensor in kept))
    return torch.cat([_divergences(logs, TopK(*piece)) for logs, *piece in pieces], dim=1)


def _divergences(log_probs: torch.Tensor, kept: TopK) -> torch.Tensor:
    kept = TopK(*(tensor.to(log_probs.device) for tensor in kept))
    ids, drawn = kept.ids.long(), kept.drawn.long()[:, None]
    head = (kept.log_probs.exp() * (kept.log_probs - log_probs.gather(1, ids))).sum(-1, dtype=torch.float64)
    mass = kept.rest.exp().double()
    others = log_probs.scatter(1, ids, float("-inf"))
    lower = (head + mass * (kept.rest - _log_sum(others))).clamp_min(0)
    least = others.scatter_(1, ids, float("inf")).amin(-1)
    upper = torch.maximum(lower, head + kept.rest_plogp - mass * least)
    estimate = head + mass * (kept.drawn_log_prob - log_probs.gather(1, drawn)[:, 0])
    return torch.stack([lower, upper, estimate]).cpu()


def _log_sum(others: torch.Tensor) -> torch.Tensor:
    # Where nothing is left of p, exp(floor) is 0 and so is its term of the sum.
    return others.logsumexp(-1).clamp_min_(LOG_PROB_FLOOR)

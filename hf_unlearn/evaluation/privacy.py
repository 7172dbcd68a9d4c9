# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Can one still tell that the forget set was trained on: membership scores, AUC, privacy leakage, and the KS test.

Every score is "high = less like a member". `token_log_probs` are natural logs of the answer's tokens, EOS left out;
`avg_loss` is the mean loss with EOS, as open-unlearning defines them. AUC = P(forget score < holdout score).
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from ..runtime.modules import evaluation_mode, trainable
from .memorization import EPSILON
from .scoring import predicted_logits


MIN_K = 0.4  # share of tokens in min-k and min-k++ (open-unlearning's TOFU and MUSE settings)
VARIANCE_FLOOR = 1e-6


def zlib_score(avg_loss: float, text: str) -> float:
    """Loss per byte of the compressed answer text (Carlini et al. 2021)."""
    return avg_loss / len(zlib.compress(text.encode("utf-8")))


def min_k(token_log_probs: Sequence[float], fraction: float = MIN_K) -> float | None:
    """-mean of the max(1, int(fraction * n)) lowest token log-probabilities (Shi et al. 2024); None for no tokens."""
    if len(token_log_probs) == 0:
        return None
    k = max(1, int(len(token_log_probs) * fraction))
    return -float(np.mean(np.sort(np.asarray(token_log_probs, dtype=np.float64))[:k]))


def min_k_plus_plus(token_log_probs, mean, variance) -> float | None:
    """min-k on (log p - mu) / sigma, mu and sigma^2 the moments of log p over the vocabulary (Zhang et al. 2025).

    All three have shape (n,). sigma^2 is clamped at 1e-6.
    """
    centred = np.asarray(token_log_probs, dtype=np.float64) - np.asarray(mean, dtype=np.float64)
    return min_k(centred / np.sqrt(np.maximum(np.asarray(variance, dtype=np.float64), VARIANCE_FLOOR)))


def gradient_norm(model, input_ids: Sequence[int], predicted: Sequence[bool]) -> float | None:
    """Mean over weights of the L2 norm of the gradient of one item's loss (Duan et al. 2024, white box).

    The loss is of the tokens that `predicted` marks (the answer without EOS) in `input_ids`, both (T,). Gradients are
    taken of every floating-point weight, frozen or not, and `.grad` is left alone. None for no tokens.
    """
    if not any(predicted):
        return None
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([input_ids], device=device)
    mask = torch.tensor([predicted], device=device)
    with evaluation_mode(model, grad=True), trainable(model, weights):
        logits = predicted_logits(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, mask)
        loss = torch.nn.functional.cross_entropy(logits, ids[mask].to(logits.device))
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    return float(np.mean([gradient.float().norm().item() for gradient in gradients if gradient is not None]))


def auc(forget: Sequence[float | None], holdout: Sequence[float | None]) -> float | None:
    """P(forget score < holdout score), ties half: 1 for a model that gives its members away, 0.5 for chance."""
    forget = np.sort([score for score in forget if score is not None])
    holdout = np.asarray([score for score in holdout if score is not None])
    if not len(forget) or not len(holdout):
        return None
    below = np.searchsorted(forget, holdout, side="left") + np.searchsorted(forget, holdout, side="right")
    return float(below.sum() / 2 / (len(forget) * len(holdout)))


def privleak(model_auc: float, retain_auc: float = 0.5) -> float:
    """100 (a - b) / b with a = 1 - AUC of the model, b = 1 - AUC of the retain model, both on min-k (MUSE).

    0 is the aim, -100 an untouched model, positive values over-unlearning (unbounded). Without a retain model b is
    taken as 0.5, on which scale a retrained model itself scores about +23 on TOFU: compare with a retain log.
    """
    a, b = 1 - model_auc, 1 - retain_auc
    return 100 * (a - b) / (b + EPSILON)


@dataclass(frozen=True)
class KSTest:
    """Two-sample Kolmogorov-Smirnov test: D, two-sided p, log10 p (finite where p underflows) and the sample size."""

    statistic: float
    pvalue: float
    log10_pvalue: float
    n: int


def ks_test(model_scores: Sequence[float], retain_scores: Sequence[float]) -> KSTest:
    """Forget quality: the exact two-sided p of the KS test between two lists of truth ratios (TOFU, section 2.2.2).

    For two samples of n, P(D >= h/n) = 2 sum_k (-1)^(k-1) C(2n, n - kh) / C(2n, n) (Gnedenko and Korolyuk 1951),
    summed in integers, so that log10 p is right below 1e-308 too. The floor, at D = 1, is 2 / C(2n, n). Samples of
    unequal size (items without a value) take scipy's p.

    Raises:
        InputError: an empty sample or a value that is not finite.
    """
    a, b = np.sort(np.asarray(model_scores, np.float64)), np.sort(np.asarray(retain_scores, np.float64))
    if not len(a) or not len(b):
        raise InputError("forget quality needs truth ratios of both models: evaluate both on the forget set first")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a truth ratio is not finite: the log is broken, or the model diverged; evaluate it again")
    both = np.concatenate([a, b])
    above_a, above_b = np.searchsorted(a, both, side="right"), np.searchsorted(b, both, side="right")
    if len(a) == len(b):
        n = len(a)
        h = int(np.abs(above_a - above_b).max())
        if h == 0:
            return KSTest(0.0, 1.0, 0.0, n)
        ways = 2 * sum((-1) ** (k - 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1))
        total = math.comb(2 * n, n)
        if ways >= total:
            return KSTest(h / n, 1.0, 0.0, n)
        return KSTest(h / n, ways / total, math.log10(ways) - math.log10(total), n)
    from scipy.stats import ks_2samp

    statistic = float(np.abs(above_a / len(a) - above_b / len(b)).max())
    pvalue = float(ks_2samp(a, b).pvalue)
    size = len(a) * len(b) / (len(a) + len(b))
    # Smirnov's limit 2 exp(-2 m D^2) only where the exact p is below what a float can hold.
    log10 = math.log10(pvalue) if pvalue > 0 else math.log10(2) - 2 * size * statistic**2 * math.log10(math.e)
    return KSTest(statistic, pvalue, log10, min(len(a), len(b)))

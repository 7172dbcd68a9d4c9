# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What an update does to everything else: the exact KL divergence from the original model, token by token."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import InputError, NumericalError
from ..runtime.modules import evaluation_mode
from .bootstrap import mean_interval, quantile_bands
from .scoring import LOG_PROB_FLOOR, logit_blocks, predicted_tokens, reduction_rows
from .top_k import TopK, bytes_per_token, divergences, keep_top, most_that_fit


QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)


@dataclass(frozen=True)
class Approximation:
    """What a KL from the original's k most likely tokens leaves open; all are means over tokens, in nats."""

    k: int  # tokens kept
    vocabulary: int  # of so many
    covered: float  # probability of the kept tokens under the original
    upper: float  # no KL can be higher than this; the result's mean is the lower bound
    estimate: float  # of the exact mean, from one token of the rest drawn at every position; unbiased
    estimate_error: float  # its standard error from the drawing

    def __str__(self) -> str:
        return (
            f"from the original's {self.k} most likely of {self.vocabulary} tokens ({100 * self.covered:.2f} % of its "
            f"probability), the rest as one: a lower bound; estimate {self.estimate:.3g} +- {self.estimate_error:.1g}"
            f", upper bound {self.upper:.3g}"
        )


@dataclass(frozen=True)
class KLResult:
    """KL(original || model) over the predicted tokens of a dataset, in nats per token."""

    mean: float  # over tokens; a lower bound, as `interval`, `per_token` and `per_sequence`, with an `approximation`
    tokens: int  # N, how many were predicted
    interval: tuple[float, float]  # 95 % bootstrap interval of `mean`, sequences resampled
    nll: float  # mean negative log-likelihood of the model on the same tokens
    reference_nll: float  # the same of the original model
    per_token: torch.Tensor = field(repr=False)  # (N,) fp32 on the CPU, in the data's order
    per_sequence: torch.Tensor = field(repr=False)  # (S,) fp32, means of those with a predicted token
    sequence_tokens: torch.Tensor = field(repr=False)  # (S,) int64, how many tokens each of them has
    approximation: Approximation | None = None  # None when every number is exact; else how far they are off

    def quantile_bands(
        self,
        levels: Sequence[float] = QUANTILES,
        over: Literal["tokens", "sequences"] = "tokens",
        *,
        seed: int = 0,
        resamples: int = 500,
    ) -> np.ndarray:
        """Quantiles over tokens, or over the means of sequences, with 95 % bootstrap bands (paper, Figure 2).

        A small mean can hide a few tokens that changed entirely.

        Returns:
            (3, levels): the quantile, and the pointwise lower and upper end of its band; sequences are resampled.

        Raises:
            InputError: a level outside [0, 1], or another `over`.
        """
        if over not in ("tokens", "sequences"):
            raise InputError(f"over={over!r}: choose tokens or sequences")
        if not all(0 <= level <= 1 for level in levels):
            raise InputError(f"quantiles lie between 0 and 1, not {', '.join(map(str, levels))}")
        if over == "tokens":
            return quantile_bands(self.per_token, self.sequence_tokens, levels, seed, resamples)
        return quantile_bands(self.per_sequence, np.ones(len(self.per_sequence), dtype=int), levels, seed, resamples)

    def table_row(self) -> dict:
        """The numbers of a table, JSON-able; nats per token. `*_interval`: 95 % bootstrap."""
        row = {"mean": self.mean, "mean_interval": list(self.interval)}
        points, lows, highs = self.quantile_bands().tolist()
        for name, point, low, high in zip(("median", "q90", "q99", "q99.9", "max"), points, lows, highs):
            row |= {name: point, f"{name}_interval": [low, high]}
        return row | {
            "nll_change": self.nll - self.reference_nll,
            "tokens": self.tokens,
            "completions": len(self.per_sequence),
            "approximation": None if self.approximation is None else asdict(self.approximation),
        }


class TokenKL:
    """Measures sum_v p(v) (log p(v) - log q(v)), p of the original model, q of the model given: KL(original || model).

    Over predicted tokens only: labelled (not -100), real (attention_mask 1), not first in their row, each from the
    logits of the position before it. Prompts and padding never count when their labels are -100. Log-probabilities
    are fp32 (fp64 where both models are), the output head runs at those positions only, and sums are fp64. A model
    against itself gives exactly 0; values that rounding brought below 0 (some 1e-7) are clamped to 0.

    Args:
        reference_model: the original model. When its log-probabilities fit `cache_bytes`, or `top_k` is given, they
            are computed now, and the model may be changed in place or freed afterwards. Otherwise it is kept and run
            again at every call.
        dataloader (`Iterable`): dicts of (B, T) tensors `input_ids`, `labels`, and what else the models take. Read
            once and kept on the CPU, so a shuffling loader gives one order for all models.
        cache_bytes (`int`, *optional*, defaults to `2**30`): memory (of the CPU) for the reference's
            log-probabilities, N * V * 4 bytes (8 in fp64).
        top_k (`int` or `str`, *optional*): keep the reference's k most likely tokens at each position, with the exact
            probability of the rest, and say in `KLResult.approximation` how far that may be off: 8 k + 16 bytes a
            token. "auto": the largest k that fits `cache_bytes`, and all of the vocabulary when that fits (then
            nothing is approximated).
        seed (`int`, *optional*, defaults to `0`): of the one token of the rest that is drawn at every position
            (`Approximation.estimate`).

    Raises:
        InputError: no predicted token in the data, `top_k` below 1 or no k that fits; at a call: another vocabulary,
            or an uncached reference model that has changed meanwhile.
        NumericalError: a model's logits are not finite.
    """

    def __init__(
        self,
        reference_model,
        dataloader: Iterable,
        cache_bytes: int = 2**30,
        *,
        top_k: int | Literal["auto"] | None = None,
        seed: int = 0,
        progress: bool = False,
    ):
        self.progress = progress
        self.batches = [{name: value.cpu() for name, value in batch.items()} for batch in dataloader]
        counts = [predicted_tokens(batch).sum(1) for batch in self.batches]
        self.sequence_tokens = torch.cat(counts) if counts else torch.zeros(0, dtype=torch.long)
        self.sequence_tokens = self.sequence_tokens[self.sequence_tokens > 0]
        self.tokens = int(self.sequence_tokens.sum())
        if not self.tokens:
            raise InputError("no token to measure KL on: the data is empty, or all of its labels are -100")
        self.vocabulary, width = _head_shape(reference_model)
        fits = self.tokens * self.vocabulary * width <= cache_bytes
        self.top_k = self._chosen_k(top_k, cache_bytes, width, fits)
        self.cached = fits or self.top_k is not None
        self._reference = None if self.cached else reference_model
        self._cache: list[torch.Tensor | TopK] = []
        likelihoods = []
        generator = torch.Generator().manual_seed(seed)
        with evaluation_mode(reference_model):
            for log_probs, of_data in self._blocks(reference_model, "reference"):
                likelihoods.append(of_data)
                if self.top_k is not None:
                    self._cache.append(keep_top(log_probs, self.top_k, generator))
                elif self.cached:
                    self._cache.append(log_probs.cpu())
        self._likelihoods = torch.cat(likelihoods)

    def _chosen_k(self, top_k, cache_bytes: int, width: int, fits: bool) -> int | None:
        if top_k is None or (top_k == "auto" and fits):
            return None
        if top_k == "auto":
            top_k = most_that_fit(cache_bytes, self.tokens, width)
            if top_k < 1:
                raise InputError(
                    f"cache_bytes={cache_bytes} holds no token of the original at {self.tokens} positions: give at "
                    f"least {self.tokens * bytes_per_token(64, width)} (top 64), or fewer rows"
                )
        if not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k={top_k!r}: give a number of tokens from 1 on, or 'auto'")
        # With one token left the rest is that token: exact all the same.
        return min(top_k, self.vocabulary - 1)

    def __call__(self, model, *, seed: int = 0, resamples: int = 2000) -> KLResult:
        """KL(original || model); `seed` and `resamples` belong to the bootstrap interval."""
        vocabulary, _ = _head_shape(model)
        if vocabulary != self.vocabulary:
            raise InputError(
                f"the model has {vocabulary} tokens, the reference {self.vocabulary}: compare models of one vocabulary"
            )
        references = iter(self._cache) if self.cached else self._fresh_reference()
        parts, likelihoods = [], []
        # Both modes are entered here, not inside the generators, whose ends come in no certain order.
        with evaluation_mode(model), evaluation_mode(self._reference or model):
            for reference, (log_probs, of_data) in zip(references, self._blocks(model, "KL"), strict=True):
                likelihoods.append(of_data)
                exact = self.top_k is None
                parts.append(_divergence(reference, log_probs)[None] if exact else divergences(reference, log_probs))
        measured = torch.cat(parts, dim=1)
        per_token = measured[0]
        sums = torch.stack([part.sum() for part in per_token.split(self.sequence_tokens.tolist())])
        return KLResult(
            mean=per_token.mean().item(),
            tokens=self.tokens,
            interval=mean_interval(sums.numpy(), self.sequence_tokens.numpy(), seed, resamples),
            nll=-torch.cat(likelihoods).double().mean().item(),
            reference_nll=-self._likelihoods.double().mean().item(),
            per_token=per_token.float(),
            per_sequence=(sums / self.sequence_tokens).float(),
            sequence_tokens=self.sequence_tokens,
            approximation=None if self.top_k is None else self._approximation(*measured),
        )

    def _approximation(self, lower: torch.Tensor, upper: torch.Tensor, estimate: torch.Tensor) -> Approximation:
        rest = torch.cat([kept.rest for kept in self._cache]).double().exp()
        return Approximation(
            k=self.top_k,
            vocabulary=self.vocabulary,
            covered=1 - rest.mean().item(),
            upper=upper.mean().item(),
            estimate=estimate.mean().item(),
            # What varies from token to token beyond the drawing is in it too: a little too large.
            estimate_error=(estimate - lower).std(correction=0).item() / self.tokens**0.5,
        )

    def _blocks(self, model, description: str):
        """(log-probabilities (n, V), those of the data's tokens (n,) on the CPU), the same blocks for any model."""
        for batch in tqdm(self.batches, desc=description, disable=not self.progress, leave=False):
            for logits, ids in logit_blocks(model, batch):
                log_probs = logits.log_softmax(-1).clamp_min_(LOG_PROB_FLOOR)
                of_data = log_probs.gather(1, ids[:, None])[:, 0].cpu()
                if not torch.isfinite(of_data).all():
                    raise NumericalError("the model's logits are not finite: it diverged; use a smaller step")
                yield log_probs, of_data

    def _fresh_reference(self):
        start = 0
        for log_probs, now in self._blocks(self._reference, "reference"):
            then = self._likelihoods[start : start + len(now)]
            start += len(now)
            # An update in place of the reference itself would silently read as KL 0.
            if not torch.allclose(now, then, rtol=1e-5, atol=1e-5):
                raise InputError(
                    "the reference model has changed since TokenKL was made: give it a copy of the original"
                )
            yield log_probs


def _head_shape(model) -> tuple[int, int]:
    """(vocabulary size, bytes of one log-probability)."""
    weight = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    vocabulary = weight.shape[0] if head is None else getattr(head, "out_features", weight.shape[0])
    return vocabulary, 8 if weight.dtype == torch.float64 else 4


def _divergence(reference: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """(n,) fp64 on the CPU: KL of rows of log-probabilities (n, V), without a temporary of that size."""
    reference = reference.to(log_probs.device)
    if reference.dtype != log_probs.dtype:
        reference, log_probs = reference.float(), log_probs.float()
    rows = reduction_rows(reference)
    parts = [
        torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1, dtype=torch.float64)
        for p, q in zip(reference.split(rows), log_probs.split(rows))
    ]
    return torch.cat(parts).clamp_min_(0).cpu()

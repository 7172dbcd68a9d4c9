# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The model as lm-eval asks it, its batches spread over processes. Imports lm-eval, so it is imported late."""

import math
from collections.abc import Callable, Sequence

import torch
from lm_eval.models.huggingface import HFLM
from tqdm.auto import tqdm

from ..errors import NumericalError


# Seed of generated answers that are sampled; lm-eval's own for torch.
SEED = 1234


class SpreadLM(HFLM):
    """`HFLM` of a model in memory, of which every process has a copy (or its shards) and answers every n-th batch.

    lm-eval itself spreads documents over processes only for models that it loads by name. Documents are put into the same
    batches here however many processes there are, each batch is answered by HFLM's own code, and all processes get all
    answers: so the answers of one process and of many are the same bits on like machines.

    Args:
        share: rank and number of processes.
        bar_file: where to show a bar; None for no bar.

    Attributes:
        truncated: number of requests whose prompt was cut from the left to fit `max_length`, of all processes.
    """

    def __init__(self, model, tokenizer, *, share: tuple[int, int] = (0, 1), bar_file=None, **settings):
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **settings)
        self.share, self.bar_file = share, bar_file
        self.truncated = 0

    def loglikelihood(self, requests, disable_tqdm=False):
        return self._spread(requests, super().loglikelihood)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return self._spread(requests, super().loglikelihood_rolling)

    def generate_until(self, requests, disable_tqdm=False):
        return self._spread(requests, super().generate_until)

    def _loglikelihood_tokens(self, requests, **kwargs):
        self.truncated += sum(len(context) + len(answer) > self.max_length + 1 for _, context, answer in requests)
        return super()._loglikelihood_tokens(requests, **kwargs)

    def _spread(self, requests: Sequence, answer: Callable) -> list:
        """Answers in the order of the requests.

        Raises:
            NumericalError: a log-likelihood is NaN (on every process).
        """
        rank, size = self.share
        batches = self._batches(requests)
        # Every process asks the model equally often, since a sharded one needs all of them in each forward pass. Who has
        # no batch left asks its last one again.
        rounds = math.ceil(len(batches) / size)
        mine = [min(number * size + rank, len(batches) - 1) for number in range(rounds)]
        answers, truncated = {}, self.truncated
        bar = tqdm(
            total=len(requests), desc="questions", unit="request", file=self.bar_file, disable=self.bar_file is None
        )
        devices = [self.device] if self.device.type == "cuda" else []
        with bar, torch.random.fork_rng(devices=devices):
            for number in mine:
                torch.manual_seed(SEED + number)  # for sampled answers, whoever gives them
                got = answer([requests[i] for i in batches[number]], disable_tqdm=True)
                answers |= dict(zip(batches[number], got, strict=True))
                bar.update(min(size * len(got), len(requests) - bar.n))
        if size > 1:
            from accelerate.utils import gather_object

            shares = gather_object([(answers, self.truncated - truncated)])
            answers = {i: value for share, _ in shares for i, value in share.items()}
            self.truncated = truncated + sum(count for _, count in shares)
        answers = [answers[i] for i in range(len(requests))]
        if any(math.isnan(value) for value in map(_log_likelihood, answers)):
            raise NumericalError("the model's log-likelihoods are not finite: it diverged; use a smaller step")
        return answers

    def _batches(self, requests: Sequence) -> list[list[int]]:
        """Places of the requests: `batch_size` prompts a batch with all continuations of each, the longest first."""
        prompts: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            prompts.setdefault(request.args[0], []).append(place)
        groups = sorted(prompts.items(), key=lambda item: -len(item[0]))  # stable
        size = int(self.batch_size)
        return [
            [place for _, places in groups[start : start + size] for place in places]
            for start in range(0, len(groups), size)
        ]


def _log_likelihood(answer) -> float:
    """Of what a request brings: (log-likelihood, greedy), a log-likelihood, or a generated text."""
    value = answer[0] if isinstance(answer, tuple) else answer
    return value if isinstance(value, float) else 0.0

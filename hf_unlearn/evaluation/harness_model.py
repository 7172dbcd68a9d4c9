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
        truncated: number of prompts that were cut from the left to fit `max_length`, of all processes.
    """

    def __init__(self, model, tokenizer, *, share: tuple[int, int] = (0, 1), bar_file=None, **settings):
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **settings)
        self.share, self.bar_file = share, bar_file
        self.truncated, self._cut = 0, set()

    def loglikelihood(self, requests, disable_tqdm=False):
        return self._spread(requests, super().loglikelihood)

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return self._spread(requests, super().loglikelihood_rolling)

    def generate_until(self, requests, disable_tqdm=False):
        return self._spread(requests, super().generate_until)

    def _loglikelihood_tokens(self, requests, **kwargs):
        # A request is ((prompt, continuation), their tokens); all continuations of a prompt are in one batch.
        self._cut |= {
            pair[0] for pair, prompt, answer in requests if pair and len(prompt) + len(answer) > self.max_length + 1
        }
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
        answered = {}  # number of a batch -> its answers, prompts that were cut
        bar = tqdm(
            total=len(requests), desc="questions", unit="request", file=self.bar_file, disable=self.bar_file is None
        )
        devices = [self.device] if self.device.type == "cuda" else []
        with bar, torch.random.fork_rng(devices=devices):
            for number in mine:
                torch.manual_seed(SEED + number)  # for sampled answers, whoever gives them
                self._cut = set()
                got = answer([requests[place] for place in batches[number]], disable_tqdm=True)
                answered[number] = (got, len(self._cut))
                bar.update(min(size * len(got), len(requests) - bar.n))
        if size > 1:
            from accelerate.utils import gather_object

            answered = {number: value for share in gather_object([answered]) for number, value in share.items()}
        self.truncated += sum(cut for _, cut in answered.values())
        answers = [None] * len(requests)
        for number, (got, _) in answered.items():
            for place, value in zip(batches[number], got, strict=True):
                answers[place] = value
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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The model as lm-eval asks it, its batches spread over processes. Imports lm-eval, so it is imported late."""

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from lm_eval.models.huggingface import HFLM
from torch.distributed.tensor import DTensor
from tqdm.auto import tqdm

from ..errors import NumericalError


# Seed of generated answers that are sampled; lm-eval's own for torch.
SEED = 1234


class SpreadLM(HFLM):
    """`HFLM` of a model in memory, of which every process has a copy (or its shards) and answers every n-th batch.

    lm-eval itself spreads documents over processes only for models that it loads by name. Requests are put into the
    same batches here however many processes there are, each batch is answered by HFLM's own code, and all processes
    get all answers: so the answers of one process and of many are the same bits on like machines.

    `share` is the rank and the number of processes, `bar_file` where a bar is shown, if anywhere. `truncated` counts
    prompts that were cut from the left to fit `max_length`.
    """

    def __init__(self, model, tokenizer, *, share: tuple[int, int] = (0, 1), bar_file=None, **settings):
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", **settings)
        self.share, self.bar_file, self.truncated = share, bar_file, 0
        self.is_sharded = any(isinstance(weight, DTensor) for weight in model.parameters())

    def loglikelihood(self, requests, disable_tqdm=False):
        return super().loglikelihood(requests, disable_tqdm=True)  # its bar is of tokenising

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        return self._spread_texts(requests, super().loglikelihood_rolling)

    def generate_until(self, requests, disable_tqdm=False):
        return self._spread_texts(requests, super().generate_until)

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
        """Requests are ((prompt, continuation), tokens of the prompt, tokens of the continuation)."""
        answer = super()._loglikelihood_tokens
        if override_bs is not None:  # windows of `loglikelihood_rolling`, which is spread already
            return answer(requests, disable_tqdm=True, override_bs=override_bs)
        self.truncated += len(
            {pair[0] for pair, prompt, end in requests if len(prompt) + len(end) > self.max_length + 1}
        )
        # What HFLM reads once: all one-token continuations of a prompt. So every batch is one forward pass.
        inputs = [tuple(prompt + end[:-1]) for _, prompt, end in requests]
        return self._spread(requests, inputs, answer, self.share)

    def _spread_texts(self, requests: Sequence, answer: Callable) -> list:
        # Batches of texts take different numbers of forward passes, for which the processes of a sharded model would
        # wait forever: these answer all batches together.
        share = (0, 1) if self.is_sharded else self.share
        return self._spread(requests, [request.args[0] for request in requests], answer, share)

    def _spread(self, requests: Sequence, inputs: Sequence, answer: Callable, share: tuple[int, int]) -> list:
        """Answers in the order of the requests.

        Raises:
            NumericalError: a log-likelihood is NaN (on every process).
        """
        (rank, size), batches = share, make_batches(inputs, int(self.batch_size))
        # Every process asks the model equally often, since a sharded one needs all of them in each forward pass. Who
        # has no batch left asks the last one too.
        rounds = math.ceil(len(batches) / size)
        mine = [min(number * size + rank, len(batches) - 1) for number in range(rounds)]
        answered = {}  # number of a batch -> its answers
        bar = tqdm(
            total=len(requests), desc="questions", unit="request", file=self.bar_file, disable=self.bar_file is None
        )
        devices = [self.device] if self.device.type == "cuda" else []
        with bar, torch.random.fork_rng(devices=devices):
            for number in mine:
                torch.manual_seed(SEED + number)  # for sampled answers, whoever gives them
                answered[number] = answer([requests[place] for place in batches[number]], disable_tqdm=True)
                bar.update(min(size * len(batches[number]), len(requests) - bar.n))
        if size > 1:
            from accelerate.utils import gather_object

            answered = {number: values for part in gather_object([answered]) for number, values in part.items()}
        answers = [None] * len(requests)
        for number, values in answered.items():
            for place, value in zip(batches[number], values, strict=True):
                answers[place] = value
        if any(math.isnan(value) for value in map(_log_likelihood, answers)):
            raise NumericalError("the model's log-likelihoods are not finite: it diverged; use a smaller step")
        return answers


def make_batches(inputs: Sequence[Hashable], size: int) -> list[list[int]]:
    """Places of the inputs: `size` different ones a batch with all that are equal to each, the longest first."""
    places: dict = {}
    for place, value in enumerate(inputs):
        places.setdefault(value, []).append(place)
    groups = sorted(places.items(), key=lambda item: -len(item[0]))  # stable
    return [[place for _, group in groups[at : at + size] for place in group] for at in range(0, len(groups), size)]


def _log_likelihood(answer) -> float:
    """Of what a request brings: (log-likelihood, greedy), a log-likelihood, or a generated text."""
    value = answer[0] if isinstance(answer, tuple) else answer
    return value if isinstance(value, float) else 0.0

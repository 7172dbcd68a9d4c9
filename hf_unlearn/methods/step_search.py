# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Steps by what they are measured to do: the KL meter of a run, and the search of a step's damping and length."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.rows import draw_request, is_token_labels, sample_rows
from ..errors import LimitError, NumericalError
from ..evaluation.sample_kl import SampleKL
from ..evaluation.specificity import TokenKL
from ..optim import NaturalGradientAscent
from ..runtime.processes import Processes
from ..runtime.sharded import reshard
from .base import Run


logger = logging.getLogger(__name__)

# The log-probabilities of the original on the KL rows are remembered on the CPU, up to so many bytes.
KL_CACHE_BYTES = 2**33
AUTO = "auto"
# Dampings of "auto" are decades below the largest eigenvalue of G. The search begins at one, goes on below it as long
# as clearly more is forgotten at the same KL, and above it where nothing below was better. Later steps begin where the
# one before has ended. Below 1e-7 rounding errors of fp32 set the step.
FIRST_DECADE, LAST_DECADE, CLEARLY = 5, 7, 1.02
# A quarter of the retain rows, and at most so many, is kept from the fit: a KL on rows that G knows promises too much.
HELD_OUT, MOST_ROWS = 0.25, 8
# A length is near enough where it costs so much of the budget, and is looked for with so many measurements.
NEAR, AIM, TRIES = 0.85, 0.93, 6
# A first guess, as a part of the length that the curvature's own account of the budget gives: it is too long.
FIRST_LENGTH = 0.1
# From one measurement to the next a length changes by so large a factor at most.
FARTHEST = 30.0


class Candidate(NamedTuple):
    """A step that keeps the budget: its settings, what it costs and what it does."""

    damping: float
    step_norm: float  # alpha, in sqrt(nats per token)
    kl: float  # measured, nats a token, of this step and all before it
    forget_loss: float  # nats a token


class StepSearch:
    """
    Chooses damping and length of every step of a run, from its one fit and one gradient: what forgets most at a KL
    within the budget, measured on retain rows that are kept from the fit.

    Args:
        run: the run; its retain rows are parted here.
        dampings (`list[float]`, *optional*): those to choose among; decades of the largest eigenvalue by default.
        budget: nats a token, of a step; so much more for every further one.

    Attributes:
        fitted: the rows that the curvature may see.
        chosen: the steps that were chosen.
    """

    def __init__(self, run: Run, dampings: Sequence[float] | None, budget: float):
        self.dampings, self.budget, self.chosen = dampings, budget, []
        self.fitted, self.unseen = hold_out(run.retain_dataset, run.args.seed)

    def begin(self, run: Run):
        """Remember what the original says; called with its weights in the model."""
        self.kept = kl_meter(run, self.unseen)
        self.forgotten = kl_meter(run, sample_rows(run.forget_dataset, MOST_ROWS, run.args.seed))

    def __call__(self, run: Run, optimizer: NaturalGradientAscent, meter: TokenKL | SampleKL):
        """Give the optimiser the damping, the length and the direction of the step to come.

        The damping is found on the few rows that are kept from the fit. The step is shortened until it keeps the
        budget on the run's own KL rows too, of `meter`.

        Raises:
            LimitError: no step keeps the budget; the weights are those of before the first.
        """
        measured = lambda measure: measure_together(run, measure)
        kl, number = lambda: measured(lambda model: self.kept(model).mean), run.state.global_step + 1
        candidates = Candidates(
            optimizer,
            kl=kl,
            before=kl() if run.state.global_step else 0.0,
            forget_loss=lambda: measured(lambda model: self.forgotten(model).nll),
            budget=self.budget * number,
        )
        group, largest = optimizer.param_groups[0], optimizer.curvature.largest
        start, decade = FIRST_LENGTH * math.sqrt(2 * self.budget), FIRST_DECADE
        if run.state.global_step:
            start, decade = group["last_norm"], round(math.log10(largest / group["damping"]))
        if self.dampings is None:
            candidates.try_decades(largest, start, min(max(decade, 0), LAST_DECADE))
        else:
            candidates.try_all(self.dampings, start)
        if candidates.best is not None:
            candidates.shorten(lambda: measured(lambda model: meter(model).mean))
        if (best := candidates.best) is None:
            optimizer.restore()
            raise LimitError(
                f"no step {number} was found that keeps the KL on retain rows within {candidates.budget:.3g} nats a "
                "token: the weights are those of before; give more retain rows, or a larger kl_budget"
            )
        group.update(lr=best.step_norm, damping=best.damping)
        self.chosen.append(best)


def measure_together(run: Run, measure: Callable[[torch.nn.Module], float]) -> float:
    """`measure(model)`, one number for all processes: rounding could put them on two sides of a limit.

    Infinity where the logits are not finite: a step far too long.
    """

    def finite() -> float:
        try:
            return measure(run.model)
        except NumericalError:
            return math.inf

    value, *_ = Processes(run.accelerator, "the KL").share(finite)
    reshard(run.model)  # gradients are those of the parts, which Trainer would not find to set to zero
    return value


def kl_meter(run: Run, rows) -> TokenKL | SampleKL | None:
    """Measures KL(original || model) on `args.kl_rows` of the rows; None where there is nothing to measure."""
    if rows is None or run.args.kl_rows < 1:
        return None
    rows = sample_rows(rows, run.args.kl_rows, run.args.seed)
    loader = run.loader(rows, run.args.curvature_batch_size)
    # The model is changed in place, so what it says now must be remembered.
    if not is_token_labels(rows[0]["labels"]):
        return SampleKL(run.model, loader)
    meter = TokenKL(run.model, loader, cache_bytes=KL_CACHE_BYTES)
    if meter.cached:
        return meter
    logger.warning(f"kl_rows={len(rows)} is too many to remember the original's answers: the KL will not be measured")
    return None


def hold_out(rows, seed: int) -> tuple:
    """(rows to fit on, rows to measure on), a seeded choice; the same rows twice where there are fewer than four."""
    count = min(int(HELD_OUT * len(rows)), MOST_ROWS)
    if not count:
        return rows, rows
    unseen, fitted = draw_request(rows, count, seed)
    return fitted, unseen


class Candidates:
    """The candidates of one step: directions of one gradient under one fit, and the best one.

    Args:
        optimizer: has the gradient and the fitted curvature; candidates are tried in its weights.
        kl: measures the KL of the weights as they are, nats a token.
        forget_loss: measures the mean loss on forget rows, nats a token.
        before: the KL of the weights of before this step.
        budget: nats a token, of this step and all before it.
    """

    def __init__(
        self,
        optimizer: NaturalGradientAscent,
        *,
        kl: Callable[[], float],
        forget_loss: Callable[[], float],
        before: float,
        budget: float,
    ):
        self.optimizer, self.kl, self.forget_loss = optimizer, kl, forget_loss
        self.before, self.budget, self.best = before, budget, None
        self._asked: deque[float] = deque()
        # Dampings are taken one by one, as they are asked for: the gradient is rotated once.
        self._solved = optimizer.directions(iter(self._asked.popleft, None))

    def try_damping(self, damping: float, start: float) -> Candidate | None:
        """The step of this damping whose KL is near the budget; None where no length keeps it."""
        self._asked.append(damping)
        vector, norm = next(self._solved)
        found = longest_within(self._at(vector, norm, self.kl), self.before, self.budget, start)
        if found is None:
            return None
        self.optimizer.apply(vector, found[0] / norm)
        candidate = Candidate(damping, *found, self.forget_loss())
        logger.info(
            f"damping {damping:.2g}, step norm {candidate.step_norm:.2g}: KL {candidate.kl:.2g} nats a token on rows "
            f"kept from the fit, forget loss {candidate.forget_loss:.3g}"
        )
        if self.best is None or candidate.forget_loss > self.best.forget_loss:
            self.best, self.optimizer.solved = candidate, (vector, norm)
        return candidate

    def try_all(self, dampings: Iterable[float], start: float):
        """One after another, each from the length of the one before."""
        for damping in dampings:
            found = self.try_damping(damping, start)
            start = start if found is None else found.step_norm

    def try_decades(self, largest: float, start: float, first: int):
        """Decades below the largest eigenvalue, from one of them to where no more is forgotten."""
        length = start
        for decades in (range(first, LAST_DECADE + 1), range(first - 1, -1, -1)):
            for decade in decades:
                before = self.best
                found = self.try_damping(largest * 10.0**-decade, length)
                if before is not None and (found is None or found.forget_loss < CLEARLY * before.forget_loss):
                    break
                length = length if found is None else found.step_norm
            if self.best is not None and self.best.damping < 0.5 * largest * 10.0**-first:
                break  # downhill from there

    def shorten(self, kl: Callable[[], float]):
        """Shorten the best step until another measure of the KL keeps the budget too."""
        found = longest_within(self._at(*self.optimizer.solved, kl), self.before, self.budget, self.best.step_norm, 0)
        self.best = None if found is None else self.best._replace(step_norm=found[0], kl=found[1])

    def _at(self, vector: Mapping[str, Tensor], norm: float, kl: Callable[[], float]) -> Callable[[float], float]:
        def measure(length: float) -> float:
            self.optimizer.apply(vector, length / norm)
            return kl()

        return measure


def longest_within(
    measure: Callable[[float], float], before: float, budget: float, start: float, near: float = NEAR
) -> tuple[float, float] | None:
    """A length whose KL is not above the budget and not below `near` of it, and that KL; the longest that was tried
    and keeps the budget where none is so near, None where none keeps it.

    KL grows with the square of a small length, and more slowly where it is large: after two measurements the next
    length is read off the line through them, in logarithms.
    """
    tried: dict[float, float] = {}
    length = start
    for _ in range(TRIES):
        cost = tried[length] = measure(length)
        if near * budget <= cost <= budget:
            break
        length = _next_length(tried, length, before, budget)
    within = {length: cost for length, cost in tried.items() if cost <= budget}
    return max(within.items()) if within else None


def _next_length(tried: Mapping[float, float], last: float, before: float, budget: float) -> float:
    room = max(budget - before, 1e-3 * budget)
    gain = lambda cost: max(cost - before, 1e-3 * room)
    if not math.isfinite(tried[last]):
        return last / FARTHEST
    others = [length for length, cost in tried.items() if math.isfinite(cost) and length != last]
    slope = 2.0
    if others:
        other = min(others, key=lambda length: abs(math.log(length / last)))
        slope = math.log(gain(tried[last]) / gain(tried[other])) / math.log(last / other)
    factor = (AIM * room / gain(tried[last])) ** (1 / min(max(slope, 0.5), 3.0))
    return last * min(max(factor, 1 / FARTHEST), FARTHEST)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SPE-Unlearn: heads and filters chosen by a mask, and one second-order step of these alone."""

import dataclasses
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from datasets import concatenate_datasets
from torch import Tensor, nn

from ..data.rows import row_hashes, sample_rows
from ..errors import InputError, LimitError
from ..runtime.fields import Range
from ..runtime.files import sha256_json
from ..runtime.hub import public_name
from ..structure.heads import KINDS, Structures, find_structures
from ..structure.mask import StructureMask
from ..structure.search import IMPORTANCES
from ..structure.statistics import summed_gradients
from .base import Method
from .first_order import FirstOrder
from .masking import (
    BY_LOT,
    CHOICES,
    MaskSettings,
    check_unfrozen,
    chosen_mask,
    planned_mask,
    sorted_loader,
    tell_planned,
)
from .reference import cite
from .spe_state import HASH_BYTES, SPEState, Sums, fit_diagonal
from .spe_step import SecondOrder, whole_changes
from .step_search import kl_meter, longest_within, measure_together


logger = logging.getLogger(__name__)

UPDATES = ("second_order", "ga", "grad_diff", "npo", "dpo")
SUCCESSIVE = ("memory_free", "memory_aided")
MASK = ("sparsity", "structures", "importance", "rearrange", "wanda_sparsity")  # of `MaskSettings`
FIRST_LENGTH = 0.1  # of a step that is to keep a budget: the first that is tried, of what the diagonal predicts


@dataclass
class SPEUnlearn(Method):
    r"""
    Structure-aware, parameter-efficient unlearning: a mask over heads and filters says what an update may change.

    `update="second_order"` makes one step (Algorithm 1),

        theta + rate / share * m o (F + damping)^-1 sum over forget rows of grad loss,

    F the empirical diagonal Fisher information of the retain rows, squares of each row's own gradient (eq. 3), with
    weights and biases of the kept heads and filters alone: the mask is chosen first, so what it freezes is neither
    computed nor stored. `sparsity=0` is the dense second-order update of all heads and filters ("SO"). Other updates
    are those of [`FirstOrder`] with a mask: `SPEUnlearn("npo")` *is* `FirstOrder("npo", mask=...)`.

    Args:
        update (`str`, defaults to `"second_order"`): or `"ga"`, `"grad_diff"`, `"npo"`, `"dpo"`.
        sparsity (`float`, defaults to `0.9`): share of heads and filters that stay frozen.
        structures (`list[str]`, defaults to `["heads", "filters"]`): what the mask chooses from.
        importance (`str`, defaults to `"mlr"`):
            `"mlr"` (eq. 8), `"mlf"` (eq. 18), `"norm"`, or `"fisher"` (eq. 13); by lot, as controls: `"random"`, or
            `"shuffled"` for as many heads and as many filters as `"mlr"`. These two not with `"memory_aided"`.
        rearrange (`bool`, defaults to `True`): one round of swaps within each layer (eq. 9, 19).
        wanda_sparsity (`float`, *optional*):
            Freeze this share of the chosen structures' own entries too, by Wanda's score on forget rows (A.4).
        unlearning_rate (`float`, *optional*):
            eta of the dense update; it is divided by the share of the structures' entries that are kept, so that a
            sparser update is as long. Exactly one of it and `kl_budget`.
        kl_budget (`float`, *optional*):
            Nats a token (a row of classifiers), measured on retain rows: the longest step that keeps it.
        damping (`float`, defaults to `0.1`):
            Added to F, times the mean of F over what is kept; the paper names none.
        retain_samples (`int`, *optional*): Measure on this many retain rows (a seeded choice); all by default.
        mask_samples (`int`, *optional*):
            Choose the mask on this many of them; on all by default. It is a pass over them more, which a quarter of
            the rows makes as cheap as the dense update's work on what the mask leaves out.
        successive (`str`, *optional*):
            Requests that follow one another. `"memory_free"`: each starts from the latest model and its own retain
            rows (eq. 11), which is what a single request does. `"memory_aided"`: each step is made anew from the
            model before the first request, with the sums of all forgotten rows (eq. 12).
        state (`str`, *optional*):
            Folder of the sums of `"memory_aided"`; the first request makes it from forget and retain rows together,
            later ones read no retain row. It holds hashes of rows, no rows. In a line of a comparison it is a name
            below the line's own folder, of which every candidate has one.
        beta (`float`, *optional*): Of NPO and DPO.

    Raises:
        InputError: a value out of range, both or neither of `unlearning_rate` and `kl_budget`, a state without
            `"memory_aided"` or the reverse; when it runs: a model whose heads and filters are not known, and as
            [`SPEState`].
        LimitError: no step keeps `kl_budget`.
    """

    update: str = "second_order"
    sparsity: float = 0.9
    structures: list[str] | tuple[str, ...] = KINDS
    importance: str = "mlr"
    rearrange: bool = True
    wanda_sparsity: float | None = None
    unlearning_rate: float | None = None
    kl_budget: float | None = None
    damping: float = 0.1
    retain_samples: int | None = None
    mask_samples: int | None = None
    successive: str | None = None
    state: str | Path | None = None
    beta: float | None = None

    paper: ClassVar[dict[str, str]] = cite("spe2024")
    own_update: ClassVar[bool] = True
    own_steps: ClassVar[int] = 1
    searched: ClassVar[tuple[str, ...]] = ("unlearning_rate", "kl_budget")
    allowed: ClassVar[dict] = {
        "update": UPDATES,
        "successive": SUCCESSIVE,
        "importance": CHOICES,
        "sparsity": Range(least=0, below=1),
        "wanda_sparsity": Range(least=0, below=1),
        **dict.fromkeys(("unlearning_rate", "kl_budget"), Range(above=0)),
        "damping": Range(least=0),
        **dict.fromkeys(("retain_samples", "mask_samples"), Range(least=1)),
    }

    def __new__(cls, update: str = "second_order", *args, **settings):
        if update == "second_order" or update not in UPDATES or args:
            return super().__new__(cls)
        # Of another class, so that Python calls no __init__ of this one on it.
        mask = {"sparsity": 0.9} | {name: settings.pop(name) for name in MASK if name in settings}
        return FirstOrder(update, mask=mask, **settings)

    def __post_init__(self):
        super().__post_init__()
        self.structures = list(self.mask_settings.structures)
        if (self.unlearning_rate is None) == (self.kl_budget is None):
            raise InputError("give exactly one of unlearning_rate and kl_budget (nats a token, on retain rows)")
        if (self.state is not None) != (self.successive == "memory_aided"):
            raise InputError("state and successive='memory_aided' go together: give both, or neither")
        if self.state is not None and self.importance in BY_LOT:
            raise InputError(
                f"importance={self.importance!r} is a control for single requests: give memory_aided ones "
                f"{', '.join(IMPORTANCES)}"
            )
        if self.state is not None and self.mask_samples is not None:
            raise InputError("mask_samples: a state keeps the masks' sums of all rows: leave it out")
        self._changes: Callable | None = None  # of a run: what its step has changed
        self._report: dict = {}
        self._candidates: tuple | None = None  # of a sweep: its grid, and how one is measured and the best one chosen
        # Sums of the retain rows are in the state from the first request on.
        self.needs_retain = self.state is None or self.kl_budget is not None or not SPEState.is_there(self.state)

    @property
    def label(self) -> str:
        return "SO" if self.sparsity == 0 else "SPE-SO"

    @property
    def mask_settings(self) -> MaskSettings:
        """How the mask is chosen."""
        samples = self.mask_samples or self.retain_samples
        return MaskSettings(**{name: getattr(self, name) for name in MASK}, samples=samples)

    def settings(self):
        return super().settings() | {"state": None if self.state is None else public_name(self.state)}

    def account(self):
        return dict(self._report)

    def changes(self, run):
        return {} if self._changes is None else self._changes(run)

    # ---- the run ---------------------------------------------------------------------------------------------------
    def prepare(self, run):
        self._changes, self._report = None, {}
        find_structures(run.accelerator.unwrap_model(run.model))

    def compared(self, run):
        return {} if self.state is None else {"a state": SPEState.digest(self.state)}

    def run(self, run):
        if run.state.global_step:
            return  # resumed from the one checkpoint that there is
        model, started = run.accelerator.unwrap_model(run.model), time.perf_counter()
        structures = find_structures(model)
        request = (
            self._of_rows(run, model, structures) if self.state is None else self._of_state(run, model, structures)
        )
        meter = self._meter(run, request)
        if self._candidates is None:
            steps = request.solve(run, self.damping)
            run.cost["fit_seconds"] = time.perf_counter() - started
            self._take(run, request, steps, self._length(run, request, steps, meter), meter)
        else:
            self._choose(run, request, meter)
        logger.info(f"{self.label}: {self._report}")
        if self.state is not None:
            request.state.after = request.state.weights_hash(model)
            request.state.save(self.state)
        yield {key: value for key, value in self._report.items() if isinstance(value, int | float)}

    def _take(self, run, request: SecondOrder, steps: Mapping[str, Tensor], found: tuple[float, float | None], meter):
        """Put a step of a length into the model, and remember what it is; its KL is measured where it is not known."""
        length, kl = found
        request.apply(steps, length)
        if kl is None and meter is not None:
            kl = measure_together(run, lambda model: meter(model).mean)
        # Later requests of a state take the step of the last one back with theirs.
        made = steps if self.state is None else {}
        self._changes = functools.partial(whole_changes, request.model, request.mask, [*request.base], made, length)
        self._report = request.told | {"rate": length * request.share, "step_length": length, "measured_kl": kl}

    # ---- the search ------------------------------------------------------------------------------------------------
    def sharing(self, folder):
        # Requests of one candidate follow one another; those of another one begin at the first weights again.
        if self.state is None:
            return self
        return dataclasses.replace(self, state=folder / sha256_json(self.settings())[:12] / self.state)

    def sweeps(self, search):
        # Candidates of one request share its mask, its Fisher information and its gradient.
        return self.state is None and set(search) <= {"damping", *self.searched}

    def sweep_search(self, run, search, evaluate, best):
        names = [name for name in ("damping", *self.searched) if name in search]  # one solution for each damping
        grid = [dict(zip(names, values)) for values in itertools.product(*(search[name] for name in names))]
        self._candidates = grid, evaluate, best
        try:
            run.train()
        finally:
            self._candidates = None

    def _choose(self, run, request: SecondOrder, meter):
        """Put all candidates of a sweep into the model, one after another; the best one stays.

        Raises:
            LimitError: not one keeps its budget.
        """
        grid, evaluate, best = self._candidates
        found, rows, solved, damping, start = [], [], {}, None, None
        for values in grid:
            self._set(values)
            if self.damping != damping:
                solved, damping, start = request.solve(run, self.damping), self.damping, None
            try:
                # A KL grows as the square of a length: that of one budget leads to that of the next.
                root = None if self.kl_budget is None else math.sqrt(self.kl_budget)
                step = self._length(run, request, solved, meter, start and start * root)
            except LimitError as error:
                logger.warning(f"{self.label}: {values} is no candidate: {error}")
                continue
            start = root and step[0] / root
            self._take(run, request, solved, step, meter)
            rows.append(values | evaluate(request.model, values))
            found.append((values, (step[0], self._report["measured_kl"])))
        if not rows:
            request.restore(run)
            raise LimitError(f"{self.label}: no candidate keeps its KL budget: give larger budgets, or more damping")
        values, step = found[best(rows)]
        self._set(values)
        if self.damping != damping:
            solved = request.solve(run, self.damping)
        self._take(run, request, solved, step, meter)

    def _set(self, values: Mapping):
        for name, value in values.items():
            setattr(self, name, value)

    def _of_rows(self, run, model: nn.Module, structures: Structures) -> SecondOrder:
        """What one request is made of: rows of this run alone, at the weights as they are (eq. 10, 11)."""
        load = lambda rows: sorted_loader(run, rows)
        mask = chosen_mask(self.mask_settings, run, model, structures)
        check_unfrozen(model, mask)
        retain = sample_rows(run.retain_dataset, self.retain_samples, run.args.seed)
        fisher = fit_diagonal(
            model, load(retain), mask, accelerator=run.accelerator, progress=not run.args.disable_tqdm
        )
        gradients = summed_gradients(
            model, load(run.forget_dataset), mask.names, mask=mask, accelerator=run.accelerator
        )
        base = {name: mask.select(name, model.get_parameter(name).detach()) for name in mask.names}
        told = {"retain_rows": len(retain), "forget_rows": len(run.forget_dataset)}
        return SecondOrder(model, mask, fisher, gradients, base, mask, told)

    def _of_state(self, run, model: nn.Module, structures: Structures) -> SecondOrder:
        """What all requests so far are made of: the state's sums, less this request's rows (eq. 12)."""
        load = lambda rows: sorted_loader(run, rows)
        rows = known_rows(run.forget_dataset)
        if SPEState.is_there(self.state):
            state = SPEState.load(self.state, structures, self.mask_settings, run.accelerator)
            latest = state.check_model(model)
        else:
            every = sample_rows(run.retain_dataset, self.retain_samples, run.args.seed)
            every = concatenate_datasets([every, run.forget_dataset])
            about = structures, self.mask_settings, known_rows(every), run.accelerator
            state = SPEState.prepare(model, load(every), *about)
            latest = True
        state.check_rows(rows, again=not latest)
        before = {name: run.base_weights[name] for name in state.base}
        if latest:
            state.before = state.after
            try:
                state.set_weights(model)
                about = state.mask, bool(state.masks.blocks), True, run.accelerator
                state.forget(Sums.over(model, load(run.forget_dataset), *about), rows)
            finally:
                with torch.no_grad():
                    for name, value in before.items():
                        model.get_parameter(name).copy_(value)
        mask = state.request_mask()
        check_unfrozen(model, mask)
        gradients = {name: mask.select(name, state.gradients[name]) for name in mask.names}
        told = {
            "requests": state.requests,
            "retain_rows": sum(state.left.values()),
            "forget_rows": len(rows),
            "forgotten_rows": sum(state.served.values()),
        }
        return SecondOrder(model, mask, state.fisher, gradients, state.base, state.mask, told, state)

    def _meter(self, run, request: SecondOrder):
        """Measures the KL from the weights that the step begins at; None where it cannot be measured."""
        try:
            request.apply({}, 0.0)
            meter = kl_meter(run, run.retain_dataset)
        finally:
            request.restore(run)
        if meter is None and self.kl_budget is not None:
            raise InputError("kl_budget: the KL cannot be measured here: give retain rows, and kl_rows of 1 or more")
        return meter

    def _length(
        self, run, request: SecondOrder, steps: Mapping[str, Tensor], meter, start: float | None = None
    ) -> tuple[float, float | None]:
        """What the step is multiplied by: the rate over the share of what the mask keeps, or what keeps the budget.

        And its KL, where that was measured on the way.
        """
        if self.kl_budget is None:
            return self.unlearning_rate / request.share, None

        def at(length: float) -> float:
            request.apply(steps, length)
            return measure_together(run, lambda model: meter(model).mean)

        start = start or FIRST_LENGTH * math.sqrt(self.kl_budget / max(request.predicted, 1e-30))
        found = longest_within(at, 0.0, self.kl_budget, start)
        if found is None:
            request.restore(run)
            raise LimitError(
                f"no step was found that costs {self.kl_budget:.3g} nats on retain rows or less: the weights are "
                "those of before; give a larger kl_budget, or more damping"
            )
        return found

    # ---- what a dry run asks ---------------------------------------------------------------------------------------
    def plan(self, model, stage):
        mask = planned_mask(dataclasses.asdict(self.mask_settings), model)
        every = StructureMask.all(mask.structures, mask.kinds)
        passes = "two passes over retain rows, mask and Fisher" if self.sparsity else "one pass over retain rows"
        return [
            tell_planned(mask, chosen_later=self.sparsity > 0),
            f"{passes}: {stage.retain_rows:,} rows; Fisher and gradient {8 * mask.entries / 1e6:,.0f} MB, dense "
            f"{8 * every.entries / 1e6:,.0f} MB",
        ]


def known_rows(rows) -> list[str]:
    """Hashes by which a state knows rows."""
    return [row[: 2 * HASH_BYTES] for row in row_hashes(rows)]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The machinery of natural-gradient methods: a curvature fitted on retain rows, steps, their KL, sweeps.

A method subclasses [`NaturalGradient`] and adds its paper's settings and the loss whose gradient is taken.
"""

import abc
import contextlib
import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from ..curvature import Curvature, plan
from ..curvature.targets import Kept, make_targets, uncovered
from ..errors import InputError, LimitError, NumericalError
from ..evaluation.sample_kl import SampleKL
from ..evaluation.specificity import TokenKL
from ..optim import NaturalGradientAscent
from ..runtime.modules import trainable
from ..runtime.processes import Processes
from ..runtime.sharded import reshard
from .base import Method, Run, StageSize
from .retain_fit import fit_on_retain
from .step_search import StepSearch, kl_meter


logger = logging.getLogger(__name__)

# A measured KL that is so many times the predicted one, or so many times less, is worth a warning; above so many times
# what was asked for a run stops.
KL_FACTOR = 10
# Nats a token. A step norm is no promise of a KL (where rows are known by heart it is 50 times off and more), so that
# what stops a run that was asked for one is a model that is lost: retained tokens are 20 times less likely.
KL_LIMIT = 3.0


class NaturalGradient(Method):
    """
    A method whose steps are solved for under a curvature of the retain set and accounted for by
    `NaturalGradientAscent`.

    Subclasses are dataclasses with these fields (`curvature`, `step_norm`, `damping`, `steps`, `refit`,
    `target_modules`, `fisher`, `retain_samples`, `forget_batch_size`, `kl_limit`), the property `alpha`, and `loss`,
    an objective that must rise.
    """

    even_batches = False
    own_update = True
    searched = ("step_norm", "kl_budget")

    def __post_init__(self):
        super().__post_init__()
        self._chosen: dict[str, float | None] = {}
        self._fitted_on: dict[str, int] = {}
        self._kept: Kept | None = None  # what a mask keeps of each weight; None without one
        self._before_step: Callable[[NaturalGradientAscent], None] | None = None
        self._frozen = contextlib.ExitStack()
        self._meter: TokenKL | SampleKL | None = None
        self._search: StepSearch | None = None

    @property
    def searches(self) -> bool:
        """Whether damping and length of every step are chosen by what they are measured to do."""
        return not isinstance(self.damping, int | float)

    @property
    def own_steps(self) -> int:
        return self.steps

    def settings(self):
        return super().settings() | self._chosen  # what a sweep chose is what was done

    def targets(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that a request may change, by `state_dict` name."""
        return {name: one.parameter for name, one in make_targets(model, self.target_modules, self._kept).items()}

    @property
    def limit(self) -> float:
        """The measured KL, nats a token, above which a run is taken back: `kl_limit`, or what its steps suggest."""
        if self.kl_limit is not None:
            return self.kl_limit
        step_norm, kl_budget = self._chosen.get("step_norm", self.alpha), self._chosen.get("kl_budget", self.kl_budget)
        asked = KL_FACTOR * self.steps * step_norm**2 / 2
        return max(asked, KL_LIMIT) if kl_budget is None else asked

    # ---- the run ---------------------------------------------------------------------------------------------------
    def configure(self, args, forget_rows):
        args = copy.copy(args)
        name = "kl_limit" if self.kl_limit is not None else f"damping={self.damping!r}" if self.searches else None
        if name is not None and args.kl_rows < 1:
            raise InputError(f"{name} needs a KL that is measured: set kl_rows to 1 or more, or leave it out")
        rows = forget_rows if self.forget_batch_size is None else self.forget_batch_size
        if rows > forget_rows:
            raise InputError(
                f"forget_batch_size is {rows} but there are {forget_rows} forget rows: lower it, or give more rows"
            )
        if rows < args.world_size:
            raise InputError(f"{args.world_size} processes share {rows} forget rows a step: start fewer processes")
        if args.world_size > 1 and rows < forget_rows and (rows % args.world_size or forget_rows % rows):
            # Otherwise processes would disagree on where an epoch ends.
            raise InputError(
                f"forget_batch_size={rows} with {args.world_size} processes: give a multiple of the processes that "
                f"divides the {forget_rows} forget rows"
            )
        # Every process has a row, so that all take part in the step.
        per_pass = min(args.per_device_train_batch_size, rows // args.world_size)
        if rows < forget_rows:
            # Whole micro-batches only, else the last one would draw rows beyond the batch.
            per_pass = max(size for size in range(1, per_pass + 1) if rows % (size * args.world_size) == 0)
        args.per_device_train_batch_size = per_pass
        args.gradient_accumulation_steps = math.ceil(rows / (per_pass * args.world_size))
        args.max_steps = self.steps
        args.learning_rate = self.alpha
        # The step has its own norm: clipping and decay would undo it. Another schedule is the user's wish.
        args.max_grad_norm = 0.0
        args.weight_decay = 0.0
        if args.lr_scheduler_type == "linear":
            args.lr_scheduler_type = type(args.lr_scheduler_type)("constant")
        return args

    def prepare(self, run):
        self._fitted_for, self._meter, self._chosen = None, None, {}
        rows = len(run.retain_dataset)
        if self.retain_samples is not None and self.retain_samples > rows:
            logger.warning(f"retain_samples is {self.retain_samples} but there are {rows} retain rows: all are taken")
        self._fitted_on = {}
        dampings = self.damping if isinstance(self.damping, list | tuple) else None
        self._search = StepSearch(run, dampings, self.kl_budget) if self.searches else None
        self._curvature, self._given = self.make_curvature(run)
        self._frozen = contextlib.ExitStack()
        self._frozen.enter_context(trainable(run.model, self.targets(run.model).values()))

    @abc.abstractmethod
    def make_curvature(self, run: Run) -> tuple[Curvature, bool]:
        """The curvature of the run, and whether it is fitted already (then it is checked here against the model)."""

    def finish(self, run):
        self._frozen.close()

    def create_optimizer(self, run):
        self._optimizer = NaturalGradientAscent(
            self.targets(run.model),
            run.base_weights,
            self._curvature,
            step_norm=self.alpha,
            damping=math.nan if self.searches else self.damping,
            refit=lambda steps: self._fit(run, steps),
        )

        def before(optimizer, args, kwargs):
            if self._search is not None:
                optimizer.fit()
                self._search(run, optimizer, self._meter)
            elif self._before_step is not None:
                optimizer.fit()
                self._before_step(optimizer)

        self._optimizer.register_step_pre_hook(before)
        self._optimizer.register_step_post_hook(lambda *_: self._measure(run))
        return self._optimizer

    def begin(self, run):
        with run.weights_of_base() if run.state.global_step else contextlib.nullcontext():
            self._meter = kl_meter(run, run.retain_dataset)
            if self._search is not None:
                self._search.begin(run)
        if self._meter is None and (self.kl_limit is not None or self.searches):
            name = "kl_limit" if self.kl_limit is not None else f"damping={self.damping!r}"
            raise InputError(f"{name}: the KL cannot be measured here: give kl_rows that are few enough")

    def on_log(self, run):
        return self._optimizer.diagnostics

    def account(self):
        chosen = [] if self._search is None else [step._asdict() for step in self._search.chosen]
        return super().account() | self._fitted_on | ({"chosen_steps": chosen} if chosen else {})

    def _measure(self, run: Run):
        """The KL after a step, into the optimiser's diagnostics; one above the limit takes all steps back.

        Raises:
            LimitError, NumericalError: the KL is above the limit, or not finite; the weights are those of before.
        """
        if self._meter is None:
            return
        numbers = self._optimizer.diagnostics
        try:
            if self._search is None:
                # One number for all, who would part if rounding put them on two sides of the limit.
                measured, *_ = Processes(run.accelerator, "the KL").share(lambda: self._meter(run.model).mean)
                reshard(run.model)  # gradients are those of the parts, which Trainer would not find to set to zero
            else:
                measured = self._search.chosen[-1].kl
            if measured > self.limit:
                raise LimitError(
                    f"measured KL {measured:.3g} nats a token after step {run.state.global_step + 1} of {self.steps}, "
                    f"above the limit of {self.limit:.3g}: the weights are those of before; lower step_norm or "
                    "kl_budget, use fisher='probe' or more retain rows, or raise kl_limit"
                )
        except (LimitError, NumericalError):
            reshard(run.model)
            self._optimizer.restore()
            raise
        numbers["measured_kl"], predicted = measured, numbers["predicted_kl"]
        if self._search is not None:
            return  # the length was measured, whatever the curvature says
        told = f"measured KL {measured:.3g}, predicted {predicted:.3g} nats a token: "
        if measured > KL_FACTOR * predicted:
            logger.warning(
                told + "the curvature misses directions that matter; use fisher='probe', more retain rows or more "
                "damping"
            )
        elif KL_FACTOR * measured < predicted:
            logger.warning(
                told + "the curvature overstates what the step changes; fit it on rows and weights like these, use "
                "fisher='probe', or raise step_norm"
            )

    def on_load(self, run):
        self._optimizer.begin()

    def changes(self, run):
        return self._optimizer.updates()

    def _fit(self, run: Run, steps_taken: int):
        """Fit G for the step to come, unless it is already the one to use.

        Without refit G belongs to the weights before the first step, also when a resumed run fits it again.
        """
        wanted = steps_taken if self.refit else 0
        if self._fitted_for == wanted:
            return
        with run.weights_of_base() if wanted != steps_taken else contextlib.nullcontext():
            if wanted > 0 or not self._given:
                rows = run.retain_dataset if self._search is None else self._search.fitted
                self._fitted_on = {"curvature_rows": min(self.retain_samples or len(rows), len(rows))}
                fit_on_retain(
                    run,
                    self._curvature,
                    rows,
                    target_modules=self.target_modules,
                    kept=self._kept,
                    fisher=self.fisher,
                    rows=self.retain_samples,
                    seed=run.args.seed + wanted,
                )
        self._fitted_for = wanted

    # ---- the search ------------------------------------------------------------------------------------------------
    def check(self, stage):
        needed = self.steps * (self.forget_batch_size or 0)
        if stage.forget_rows < needed:
            raise InputError(
                f"the forget set of stage {stage.name} has {stage.forget_rows} sequences but {self.steps} steps of "
                f"{self.forget_batch_size} need {needed}: give it more text, or lower the steps or the batch"
            )

    def plan(self, model, stage: StageSize):
        rows = min(self.retain_samples or stage.retain_rows, stage.retain_rows)
        fit = {"kind": self.curvature, "target_modules": self.target_modules, "kept": self.planned_kept(model)}
        cost = plan(model, **fit, sequences=rows, sequence_length=stage.length)
        return [
            f"{self.steps} step{'s' * (self.steps > 1)} of {self.forget_batch_size or stage.forget_rows} rows",
            f"targets: {len(cost.targets)} weights, {cost.parameters / 1e6:,.1f} M parameters"
            + uncovered(model, cost.targets),
            str(cost),
        ]

    def planned_kept(self, model: nn.Module) -> Kept | None:
        """What a mask will keep of each weight, as far as a plan can know."""
        return None

    def sweeps(self, search):
        # Candidates of one step share its fit and its gradient.
        return self.steps == 1 and set(search) <= {"step_norm", "damping"} and "step_norm" in search

    def sweep_search(self, run, search, evaluate, best):
        return self.sweep(run, search["step_norm"], search.get("damping"), evaluate=evaluate, best=best)

    def sweep(
        self,
        trainer: Run,
        step_norms: Sequence[float],
        dampings: Sequence[float] | None = None,
        *,
        evaluate: Callable[[torch.nn.Module, dict], dict],
        best: Callable[[list[dict]], int],
    ) -> "Sweep":
        """One fit and one forget gradient, many candidates; the best one stays in the model.

        Args:
            trainer: the trainer whose method this is; it is trained by this call, for one step.
            step_norms, dampings: the grid; `dampings` defaults to this method's own.
            evaluate: called with the model at every candidate and the candidate (step_norm, damping, predicted_kl);
                returns metrics for its row.
            best: called with all rows; returns the index of the one to keep.

        Returns:
            [`Sweep`] with one row a candidate: step_norm, damping, predicted_kl, and what `evaluate` returned.

        Raises:
            InputError: `steps` is not 1 (evaluate while it runs instead), or an empty grid.
        """
        if self.steps != 1:
            raise InputError(
                "sweep searches one step: set steps=1, or use eval_strategy='steps' to choose among several steps"
            )
        if trainer.method is not self:
            raise InputError("sweep needs the trainer that was made with this method: UnlearnTrainer(method=method)")
        if self.searches and not dampings:
            raise InputError("sweep needs dampings: this method has none of its own")
        if not step_norms:
            raise InputError("sweep needs at least one step_norm")
        result = Sweep()

        def search(optimizer: NaturalGradientAscent):
            grid = list(dampings or [self.damping])
            for damping, (vector, norm) in zip(grid, optimizer.directions(grid)):
                for step_norm in step_norms:
                    optimizer.apply(vector, step_norm / norm)
                    row = {"step_norm": step_norm, "damping": damping, "predicted_kl": step_norm**2 / 2}
                    result.rows.append(row | evaluate(trainer.model, row))
                    reshard(trainer.model)  # a sharded model's outermost weights would stay those of this candidate
                optimizer.apply(vector, 0.0)
            result.best = best(result.rows)
            chosen = result.rows[result.best]
            optimizer.param_groups[0].update(lr=chosen["step_norm"], damping=chosen["damping"])
            self._chosen = {"step_norm": chosen["step_norm"], "kl_budget": None, "damping": chosen["damping"]}

        self._before_step = search
        try:
            trainer.train()
        finally:
            self._before_step = None
        return result


@dataclass
class Sweep:
    """Candidates of [`NaturalGradient.sweep`]: `rows`, and the index of the `best`."""

    rows: list[dict] = field(default_factory=list)
    best: int = -1

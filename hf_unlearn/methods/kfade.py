# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE: a few natural-gradient ascent steps on the forget set (arXiv 2602.10568)."""

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from .. import objectives
from ..curvature import KINDS, Curvature, make_curvature, select_targets
from ..errors import InputError
from ..optim import NaturalGradientAscent
from ..runtime.hub import public_name
from ..runtime.modules import checkpointed_in_eval_mode
from ..runtime.sharded import reshard
from .base import Method, split_labels


if TYPE_CHECKING:
    from ..trainer.trainer import UnlearnTrainer


@dataclass
class KFade(Method):
    r"""
    Natural-gradient ascent on a forget set with G fitted on the retain set ("Gauss-Newton Unlearning for the LLM Era").

    Which settings: ascent on `cross_entropy` pulls hardest on tokens that are already unlikely and hardly on those known
    by heart (its gradient at the logits is 1 - p); `margin`, the paper's choice for WMDP, pulls on all alike; with
    `unlikelihood`, which is not in the paper, a token pulls by its probability, and stops when it is forgotten. Several
    full-batch steps with a refit each cost less KL for the same forgetting than one long step, and one fit each.

    Args:
        curvature (`str` or [`~curvature.Curvature`], defaults to `"ekfac"`):
            `"ekfac"`, `"kfac"`, `"diagonal"`, `"identity"`, an object, or the folder or Hub repository of a fitted one. A
            fitted one is used as it is: for the first step, and with `refit=False` for all. One that is given by name
            must have been fitted on the weights that this model has.
        objective (`str`, defaults to `"cross_entropy"`):
            What must rise: `"cross_entropy"`, or `"margin"` for minus the log odds of the label, or `"unlikelihood"` for the
            log probability of all other labels.
        step_norm (`float`, *optional*):
            alpha: norm of every step under G, in sqrt(nats per token). Exactly one of it and `kl_budget`.
        kl_budget (`float`, *optional*):
            Predicted KL on the retain set of every step, nats per token; alpha = sqrt(2 * kl_budget).
        damping (`float`, defaults to `1e-6`):
            Added to the eigenvalues of G (per predicted token). The paper uses 1e-8 (TOFU) to 1e-14 (WMDP) on 7B models.
        steps (`int`, defaults to `1`): Number of steps.
        refit (`bool`, defaults to `True`): Fit G again before every step, or once.
        target_modules (`str` or `list[str]`, *optional*): Linear layers to change; the MLP's by default, as in the paper.
        fisher (`str`, defaults to `"sampled"`): Labels for G: `"sampled"`, `"probe"`, `"exact"` or `"empirical"`.
        retain_samples (`int`, *optional*): Fit G on this many retain rows (a seeded choice); all by default.
        forget_batch_size (`int`, *optional*):
            Forget rows per step, drawn without replacement; the whole forget set by default.

    Raises:
        InputError: both or neither of `step_norm` and `kl_budget`, a value out of range, or a curvature that is neither a
            kind nor a folder or repository.
    """

    curvature: str | Curvature = "ekfac"
    objective: str = "cross_entropy"
    step_norm: float | None = None
    kl_budget: float | None = None
    damping: float = 1e-6
    steps: int = 1
    refit: bool = True
    target_modules: str | list[str] | None = None
    fisher: str = "sampled"
    retain_samples: int | None = None
    forget_batch_size: int | None = None

    label: ClassVar[str] = "K-FADE"
    natural_gradient: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = {
        "title": "Gauss-Newton Unlearning for the LLM Era",
        "id": "arXiv:2602.10568",
        "bibtex": (
            "@article{kfade2026,\n  title = {Gauss-Newton Unlearning for the LLM Era},\n"
            "  author = {McKinney, Lev and Thudi, Anvith and Bae, Juhan and Rezaei, Tara and Papernot, Nicolas and\n"
            "            McIlraith, Sheila A. and Grosse, Roger},\n"
            "  journal = {arXiv preprint arXiv:2602.10568},\n  year = {2026}\n}"
        ),
    }

    def __post_init__(self):
        if (self.step_norm is None) == (self.kl_budget is None):
            raise InputError(
                "give exactly one of step_norm (alpha) and kl_budget (nats per token; alpha = sqrt(2 * kl_budget))"
            )
        if self.objective not in ("cross_entropy", "margin", "unlikelihood"):
            raise InputError(
                f"unknown objective {self.objective!r}: choose 'cross_entropy', 'margin' or 'unlikelihood'"
            )
        for name, minimum in (("step_norm", 0), ("kl_budget", 0), ("damping", 0)):
            value = getattr(self, name)
            if value is not None and not (value > minimum and math.isfinite(value)):
                raise InputError(f"{name} must be a finite number above {minimum}, not {value}")
        for name in ("steps", "retain_samples", "forget_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        # A name of a repository has a slash; anything else that is neither a kind nor a folder is a slip of the pen.
        self._named = self.curvature not in KINDS and (
            isinstance(self.curvature, Path)
            or (isinstance(self.curvature, str) and ("/" in self.curvature or Path(self.curvature).is_dir()))
        )
        self._curvature = None if self._named else make_curvature(self.curvature)
        self._chosen: dict[str, float | None] = {}

    def settings(self):
        # What a sweep chose is what was done. No local path goes into published files.
        named = {"curvature": public_name(self.curvature)} if self._named else {}
        return super().settings() | named | self._chosen

    @property
    def alpha(self) -> float:
        return self.step_norm if self.step_norm is not None else math.sqrt(2 * self.kl_budget)

    def configure(self, args, forget_rows):
        args = copy.copy(args)
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
        # The step has its own norm: clipping and decay would undo it. A schedule other than constant is the user's wish.
        args.max_grad_norm = 0.0
        args.weight_decay = 0.0
        if args.lr_scheduler_type == "linear":
            args.lr_scheduler_type = type(args.lr_scheduler_type)("constant")
        return args

    def targets(self, model) -> dict[str, torch.nn.Parameter]:
        """The weights that this request may change, by `state_dict` name."""
        return {name: module.weight for name, module in select_targets(model, self.target_modules).items()}

    def prepare(self, trainer):
        self._fitted_for = None
        self._chosen = {}
        targets = self.targets(trainer.model)
        if self._named:
            self._curvature = Curvature.from_pretrained(self.curvature, accelerator=trainer.accelerator)
            self._curvature.check_model(trainer.model, strict=True)
            if missing := [name for name in targets if name not in self._curvature.names]:
                raise InputError(
                    f"the curvature of {self.curvature} does not cover {missing[0]}: pass target_modules that it covers, or "
                    "fit it again with these"
                )
        self._given = self._named or (isinstance(self.curvature, Curvature) and bool(self.curvature.names))
        self._frozen = [(parameter, parameter.requires_grad) for parameter in trainer.model.parameters()]
        chosen = {id(parameter) for parameter in targets.values()}
        for parameter, _ in self._frozen:
            parameter.requires_grad_(id(parameter) in chosen)

    def finish(self, trainer):
        for parameter, required in self._frozen:
            parameter.requires_grad_(required)
        self._frozen = []

    def create_optimizer(self, trainer):
        return NaturalGradientAscent(
            self.targets(trainer.model),
            trainer.base_weights,
            self._curvature,
            step_norm=self.alpha,
            damping=self.damping,
            refit=lambda steps: self._fit(trainer, steps),
        )

    def loss(self, model, inputs, counts):
        inputs, labels = split_labels(inputs)
        # Not put back here: the backward repeats checkpointed layers. Trainer calls train() before every batch.
        model.eval()
        with checkpointed_in_eval_mode(model):
            logits = model(**inputs).logits
        nll = objectives.cross_entropy(logits, labels).sum() / counts.forget_tokens
        if self.objective == "margin":
            rising = -objectives.margin(logits, labels).sum() / counts.forget_tokens
            return rising, {"forget_loss": nll.detach(), "forget_margin": -rising.detach()}
        if self.objective == "unlikelihood":
            rising = -objectives.unlikelihood(logits, labels).sum() / counts.forget_tokens
            return rising, {"forget_loss": nll.detach(), "forget_unlikelihood": -rising.detach()}
        return nll, {"forget_loss": nll.detach()}

    def _fit(self, trainer: "UnlearnTrainer", steps_taken: int):
        """Fit G for the step to come, unless it is already the one to use.

        Without refit G belongs to the weights before the first step, also when a resumed run fits it again.
        """
        wanted = steps_taken if self.refit else 0
        if self._fitted_for == wanted:
            return
        with trainer.weights_of_base() if wanted != steps_taken else contextlib.nullcontext():
            if wanted == 0 and self._given:
                if not self._named:
                    self._curvature.check_model(trainer.model)
            else:
                trainer.fit_curvature(
                    self._curvature,
                    target_modules=self.target_modules,
                    fisher=self.fisher,
                    rows=self.retain_samples,
                    seed=trainer.args.seed + wanted,
                )
        self._fitted_for = wanted

    def sweep(
        self,
        trainer: "UnlearnTrainer",
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

        trainer.before_step = search
        try:
            trainer.train()
        finally:
            trainer.before_step = None
        return result


@dataclass
class Sweep:
    """Candidates of [`KFade.sweep`]: `rows`, and the index of the `best`."""

    rows: list[dict] = field(default_factory=list)
    best: int = -1

    @property
    def best_row(self) -> dict:
        return self.rows[self.best]

    def to_markdown(self) -> str:
        """The candidates as a table, the chosen one marked."""
        columns = list(self.rows[0])
        cell = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
        lines = ["| kept | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
        for index, row in enumerate(self.rows):
            mark = "*" if index == self.best else ""
            lines.append(f"| {mark} | " + " | ".join(cell(row.get(column)) for column in columns) + " |")
        return "\n".join(lines)

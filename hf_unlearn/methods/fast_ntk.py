# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK: one closed-form step over BatchNorm, prompt and head parameters (arXiv 2312.14923)."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError, NumericalError, first_line
from ..evaluation.images import mean_loss
from ..ntk.jacobians import OUTPUTS
from ..ntk.request import KERNELS, LINEARIZE, apply_update, solve_request
from ..ntk.solvers import SOLVERS
from ..runtime.fields import Range
from ..runtime.files import sha256_tensors
from .base import Method
from .reference import cite


logger = logging.getLogger(__name__)


@dataclass
class FastNTK(Method):
    r"""
    Moves the tuned parameters from where training on everything took them to where training on the retain set would
    have, in a linear model: w + w(D_r) - w(D), in closed form.

    The parameters are those that require a gradient: BatchNorm or prompts and a head, a few thousand numbers. With
    e = y - f(x; w0), w0 the pretrained weights, w(D) = w0 + (J^T J + r I)^-1 J^T e. The paper's equation (1) has two
    misprints; see `hf_unlearn.ntk.solvers`.

    The Jacobian is taken halfway between the pretrained and the tuned weights: there the linear model is right at both
    ends to second order, f(w) - f(w0) = J(midpoint) (w - w0) + O(|w - w0|^3), at the pretrained weights (the paper's)
    to first order. Targets are one-hot, centred, and of the scale that cross-entropy gives to logits, without which
    nothing is forgotten; `docs/fast_ntk.md` says more.

    Args:
        solver (`str`, defaults to `"auto"`):
            `"dual"` (n C x n C kernel), `"primal"` (p x p Gram), `"cg"` (matrix-free); `"auto"` the cheaper one.
        ridge (`float`, defaults to `1.0`): r relative to the mean diagonal of the Gram of all rows.
        linearize (`str`, defaults to `"midpoint"`): `"midpoint"`, `"pretrained"` or `"tuned"`.
        target_scale (`float` or `"auto"`, defaults to `"auto"`):
            Distance of the right class from the mean of the others in the targets.
        absent_margin (`float` or `"auto"`, defaults to `"auto"`):
            How far the target of a class without any row lies below those of the other wrong classes, in the units of
            the outputs. `"auto"` is 2.8 logits with `target_scale="auto"`, and 0, plain one-hot targets, where a
            number is given there.
        outputs (`str`, defaults to `"logits"`): `"logits"` or `"probabilities"` (targets of scale 1).
        kernel (`str`, defaults to `"full"`):
            For many classes: `"classwise"` drops what ties two classes (n x n for each), `"pseudo"` takes the kernel
            of the summed logit for all of them (n x n, one backward a sample instead of C).
        pretrained (`PreTrainedModel`, folder or state dict, *optional*):
            Where the values before tuning are found; the tuners of this package know theirs.
        gram_cache (`str`, *optional*):
            Folder for the Gram of all rows, so that a later request on the same model costs only its own rows.
        retain_samples (`int`, *optional*):
            Take the retain rows' Gram from this many of them (a seeded choice), scaled up; all by default. A Gram of p
            parameters is well determined by a few times p / C samples. Primal solver only.
        contrasts (`int`, *optional*):
            Backward passes for each sample: so many random contrasts of its outputs instead of all C - 1, scaled so
            that the Grams are right on average; all by default. For many classes, or where a request must be cheap. A
            sample meets the same contrasts in every request. Primal solver only.
        forget_contrasts (`int`, *optional*):
            The same for the forget rows alone; `contrasts` by default. A few retain rows with all contrasts
            (`retain_samples`) and all forget rows with two make a cheap request; `benchmarks/ntk.py` measures it.
        chunk_size (`int`, defaults to 32): Samples whose Jacobians are made at a time.

    Raises:
        InputError: a value out of range; when it runs: a model that was never tuned, no pretrained values, bad labels.
    """

    solver: str = "auto"
    ridge: float = 1.0
    linearize: str = "midpoint"
    target_scale: float | Literal["auto"] = "auto"
    absent_margin: float | Literal["auto"] = "auto"
    outputs: str = "logits"
    kernel: str = "full"
    pretrained: object = field(default=None, repr=False)
    gram_cache: str | Path | None = None
    retain_samples: int | None = None
    contrasts: int | None = None
    forget_contrasts: int | None = None
    chunk_size: int = 32

    label: ClassVar[str] = "Fast-NTK"
    searched: ClassVar[tuple[str, ...]] = ()
    own_steps: ClassVar[int] = 1
    paper: ClassVar[dict[str, str]] = cite("li2023fastntk")
    allowed: ClassVar[dict] = {
        **{"solver": SOLVERS, "kernel": KERNELS, "outputs": OUTPUTS, "linearize": LINEARIZE},
        **dict.fromkeys(("ridge", "absent_margin"), Range(least=0)),
        "target_scale": Range(above=0),
        **dict.fromkeys(("retain_samples", "contrasts", "forget_contrasts", "chunk_size"), Range(least=1)),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.kernel != "full" and self.solver not in ("auto", "dual"):
            raise InputError(f"the {self.kernel} kernel has the dual solver only, not {self.solver!r}")
        if self.gram_cache is not None and self.solver not in ("auto", "primal"):
            raise InputError(f"gram_cache needs the primal solver, not {self.solver!r}")
        for name in ("retain_samples", "contrasts", "forget_contrasts"):
            if getattr(self, name) is None:
                continue
            if self.solver not in ("auto", "primal") or self.kernel != "full":
                raise InputError(f"{name} needs the primal solver and the full kernel")
            if name != "contrasts" and self.gram_cache is not None:
                raise InputError(f"{name} and gram_cache exclude each other: a cache holds the Gram of all rows")
        self.report: dict = {}

    def settings(self):
        settings = super().settings() | {"pretrained": None, "gram_cache": None}
        return settings | {
            name: self.report[name] for name in ("solver", "target_scale", "absent_margin") if name in self.report
        }

    def prepare(self, run):
        self.report = {}
        model = run.model
        self._tuned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not self._tuned:
            raise InputError(
                "no parameter requires a gradient: wrap the model with a tuner, or unfreeze what was tuned"
            )
        if len(self._tuned) == len(list(model.parameters())):
            logger.warning(
                f"all {sum(p.numel() for p in self._tuned.values()):,} parameters require a gradient: Fast-NTK is "
                "meant for a few tuned ones; freeze the others"
            )
        if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in self._tuned.values()):
            logger.warning(
                "half-precision weights: Jacobians are taken of an fp32 copy, and the update is rounded once"
            )
        training = sum(module.training for module in model.modules() if isinstance(module, _BatchNorm))
        if training:
            logger.warning(
                f"{training} BatchNorm layers are in training mode: Jacobians are taken with their running "
                "statistics, in evaluation mode, because batch statistics mix the samples"
            )
        self._start = None if self.linearize == "tuned" else self._pretrained_values(model)

    def compared(self, run):
        return {} if self._start is None else {"pretrained values": sha256_tensors(self._start)}

    def run(self, run):
        if run.state.global_step:
            return  # resumed from the one checkpoint that there is
        model = run.accelerator.unwrap_model(run.model)
        before = mean_loss(model, run.forget_dataset, run.single_collator)
        update, self.report = solve_request(
            model, list(self._tuned), self, run.retain_dataset, run.forget_dataset,
            run.single_collator, start=self._start, accelerator=run.accelerator, seed=run.args.seed,
        )  # fmt: skip
        run.cost |= {key: self.report[key] for key in ("jacobian_seconds", "solve_seconds")}
        logger.info(f"Fast-NTK: {self.report}")
        if not all(torch.isfinite(step).all() for step in update.values()):
            raise NumericalError("the Fast-NTK update is not finite: give a larger ridge")
        apply_update(self._tuned, update)
        yield {"forget_loss": before}

    def sharing(self, folder):
        # The Gram of all rows is the same for every ridge and target scale.
        whole = all(getattr(self, name) is None for name in ("gram_cache", "retain_samples", "forget_contrasts"))
        if whole and self.kernel == "full" and self.solver in ("auto", "primal"):
            return dataclasses.replace(self, gram_cache=str(folder / "grams"))
        return self

    def account(self):
        return {key: self.report[key] for key in ("solve_seconds", "parameters") if key in self.report}

    def _pretrained_values(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """The tuned parameters as they were before tuning.

        Raises:
            InputError: they cannot be found, or are what the model has now.
        """
        start = _initial_values(model) if self.pretrained is None else _named_values(self.pretrained)
        found = {name: _find(start, name) for name in self._tuned}
        missing = [name for name, value in found.items() if value is None or value.shape != self._tuned[name].shape]
        if missing:
            raise InputError(
                f"the pretrained value of {missing[0]} is not known ({len(missing)} such parameters): give "
                "FastNTK(pretrained=the model before tuning), or linearize='tuned'"
            )
        values = {name: value.detach().to(self._tuned[name].device).clone() for name, value in found.items()}
        if all(torch.equal(values[name].to(p.dtype), p) for name, p in self._tuned.items()):
            raise InputError(
                "the model's parameters are those of the pretrained one: it was never tuned on the data, so there is "
                "nothing to undo; tune it on retain and forget rows first"
            )
        return values


def _initial_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """What the adapters of a PEFT model know of the time before tuning; nothing of another model."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return {}
    from ..tuners import initial_parameters

    return initial_parameters(model, model.active_adapter)


def _named_values(pretrained: nn.Module | str | Path | Mapping) -> dict[str, torch.Tensor]:
    if isinstance(pretrained, nn.Module):
        return dict(pretrained.named_parameters())
    if isinstance(pretrained, Mapping):
        return dict(pretrained)
    from transformers import AutoModelForImageClassification

    from ..models import cifar_resnet  # noqa: F401 - registers the CIFAR ResNets with the Auto classes

    try:
        return dict(AutoModelForImageClassification.from_pretrained(pretrained).named_parameters())
    except (OSError, ValueError) as error:
        raise InputError(f"pretrained: no model at {pretrained} ({first_line(error)})") from error


def _find(values: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
    """By name, or under the name that PEFT's wrappers hide."""
    plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
    parts = plain.split(".")
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        del parts[at : at + 2]
    return next((values[key] for key in (name, plain, ".".join(parts)) if key in values), None)

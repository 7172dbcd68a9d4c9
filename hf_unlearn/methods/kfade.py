# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE: a few natural-gradient ascent steps on the forget set (arXiv 2602.10568)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import objectives
from ..curvature import KINDS, Curvature, make_curvature
from ..curvature.fisher import FISHERS
from ..curvature.targets import make_targets
from ..errors import InputError
from ..runtime.fields import Range
from ..runtime.hub import public_name
from ..runtime.modules import checkpointed_in_eval_mode
from ..structure.mask import StructureMask
from .base import check_classes, split_labels
from .masked import Masked
from .masking import kept_entries, planned_mask
from .natural_gradient import NaturalGradient
from .reference import cite
from .step_search import AUTO


# What must rise, by name: a sum over predicted tokens, and the number that is logged.
RISING = {
    "margin": (lambda logits, labels: -objectives.margin(logits, labels), "forget_margin"),
    "unlikelihood": (lambda logits, labels: -objectives.unlikelihood(logits, labels), "forget_unlikelihood"),
}

SINGLE_ELEMENTS = (
    "the mask keeps single elements of weights (wanda_sparsity), and the curvature of K-FADE is one of whole rows and "
    "columns: leave wanda_sparsity out, or use a first-order method or SPE-Unlearn"
)


@dataclass
class KFade(Masked, NaturalGradient):
    r"""
    Natural-gradient ascent on a forget set with the curvature G of the retain set (arXiv 2602.10568).

    Ascent on `cross_entropy` pulls hardest on tokens that are unlikely already (its gradient at the logits is 1 - p);
    `margin`, the paper's choice for WMDP, on all alike; `unlikelihood`, which is not in the paper, by a token's
    probability. Several steps with a refit each cost less KL for the same forgetting than one long step.

    Args:
        curvature (`str` or [`~curvature.Curvature`], defaults to `"ekfac"`):
            `"ekfac"`, `"kfac"`, `"diagonal"`, `"identity"`, an object, or the folder or Hub repository of a fitted
            one. A
            fitted one is used as it is: for the first step, and with `refit=False` for all. One that is given by name
            must have been fitted on the weights that this model has.
        objective (`str`, defaults to `"cross_entropy"`):
            What must rise: `"cross_entropy"`, or `"margin"` for minus the log odds of the label, or `"unlikelihood"`
            for the log probability of all other labels.
        step_norm (`float`, *optional*):
            alpha: norm of every step under G, in sqrt(nats per token). Exactly one of it and `kl_budget`.
        kl_budget (`float`, *optional*):
            KL on the retain set of every step, nats per token. By the curvature's own account, alpha =
            sqrt(2 * kl_budget); with a damping that is searched, as it is measured.
        damping (`float`, `list[float]` or `"auto"`, defaults to `1e-6`):
            Added to the eigenvalues of G (per predicted token). The paper: 1e-8 (TOFU) to 1e-14 (WMDP) at 7B.
            `"auto"` searches decades below the largest eigenvalue, a list its own numbers, at every step: from one fit
            and one gradient the damping and the length that forget most, at a KL within `kl_budget` a step. It is
            measured on retain rows that are kept from the fit (a quarter, 8 at most), and then on `kl_rows` rows.
        steps (`int`, defaults to `1`): Number of steps.
        refit (`bool`, defaults to `True`): Fit G again before every step, or once.
        target_modules (`str` or `list[str]`, *optional*): Linear layers to change; the MLP's by default.
        fisher (`str`, defaults to `"sampled"`): Labels for G: `"sampled"`, `"probe"`, `"exact"` or `"empirical"`.
        retain_samples (`int`, *optional*): Fit G on this many retain rows (a seeded choice); all by default.
        forget_batch_size (`int`, *optional*):
            Forget rows per step, drawn without replacement; the whole forget set by default.
        mask (`StructureMask`, `Mapping`, `str` or `Path`, *optional*):
            Heads and filters that alone may change: a mask, the folder or repository of one, or the settings by which
            one is chosen on the rows when the run begins (`methods.masking.MaskSettings`), such as `{"sparsity":
            0.9}`. G is then measured, decomposed and solved for over the kept rows and columns of the weights alone.
            The targets are the weights that the mask names, of the attention too, unless `target_modules` says which;
            biases and all else keep their bits.
        kl_limit (`float`, *optional*):
            Measured KL, nats per retain token, above which a run is taken back and a `LimitError` raised; measured
            after every step on `UnlearnConfig.kl_rows` rows. By default ten times `kl_budget` times `steps`; with
            `step_norm` ten times its square over two times `steps`, and 3 at least.

    Raises:
        InputError: both or neither of `step_norm` and `kl_budget`, a value out of range, or a curvature that is
            neither a kind nor a folder or repository.
    """

    curvature: str | Path | Curvature = "ekfac"
    objective: str = "cross_entropy"
    step_norm: float | None = None
    kl_budget: float | None = None
    damping: float | str | list[float] = 1e-6
    steps: int = 1
    refit: bool = True
    target_modules: str | list[str] | None = None
    fisher: str = "sampled"
    retain_samples: int | None = None
    forget_batch_size: int | None = None
    kl_limit: float | None = None
    mask: StructureMask | Mapping | str | Path | None = None

    label: ClassVar[str] = "K-FADE"
    paper: ClassVar[dict[str, str]] = cite("kfade2026")
    allowed: ClassVar[dict] = {
        **dict.fromkeys(("step_norm", "kl_budget", "damping", "kl_limit"), Range(above=0)),
        **dict.fromkeys(("steps", "retain_samples", "forget_batch_size"), Range(least=1)),
        "objective": ("cross_entropy", *RISING),
        "fisher": FISHERS,
    }

    def __post_init__(self):
        super().__post_init__()
        if (self.step_norm is None) == (self.kl_budget is None):
            raise InputError(
                "give exactly one of step_norm (alpha) and kl_budget (nats per token; alpha = sqrt(2 * kl_budget))"
            )
        if isinstance(self.damping, str) and self.damping != AUTO:
            raise InputError(f"damping must be a number, a list of numbers or {AUTO!r}, not {self.damping!r}")
        if self.searches and (self.kl_budget is None or self.damping in ([], ())):
            raise InputError(
                f"damping={self.damping!r}: dampings are compared at the same measured KL; give one or more, and "
                "kl_budget in the place of step_norm"
            )
        # A name of a repository has a slash; anything else that is neither a kind nor a folder is a slip of the pen.
        self._named = self.curvature not in KINDS and (
            isinstance(self.curvature, Path)
            or (isinstance(self.curvature, str) and ("/" in self.curvature or Path(self.curvature).is_dir()))
        )
        if not self._named:
            self._curvature = make_curvature(self.curvature)
        elements = isinstance(self.mask, StructureMask) and self.mask.elements
        if elements or (isinstance(self.mask, Mapping) and self.mask.get("wanda_sparsity")):
            raise InputError(SINGLE_ELEMENTS)

    def settings(self):
        # No local path goes into published files.
        return super().settings() | ({"curvature": public_name(self.curvature)} if self._named else {})

    @property
    def alpha(self) -> float:
        return self.step_norm if self.step_norm is not None else math.sqrt(2 * self.kl_budget)

    def prepare(self, run):
        if self.objective in RISING:
            check_classes(run, self.objective)
        self.prepare_mask(run)
        if self._mask is not None and self._mask.elements:
            raise InputError(SINGLE_ELEMENTS)
        self._kept = None if self._mask is None else kept_entries(self._mask)
        super().prepare(run)

    def planned_kept(self, model):
        return None if self.mask is None else kept_entries(planned_mask(self.mask, model))

    def make_curvature(self, run):
        if not self._named:
            given = isinstance(self.curvature, Curvature) and bool(self.curvature.names)
            if given:
                self._curvature.check_model(run.model)
                self._check_mask(run.model, self._curvature)
            return self._curvature, given
        curvature = Curvature.from_pretrained(self.curvature, accelerator=run.accelerator)
        # One that is given by name must be of these very weights; of an object a warning is enough.
        curvature.check_model(run.model, strict=True)
        if missing := [name for name in self.targets(run.model) if name not in curvature.names]:
            raise InputError(
                f"the curvature of {self.curvature} does not cover {missing[0]}: pass target_modules that it covers, "
                "or fit it again with these"
            )
        self._check_mask(run.model, curvature)
        return curvature, True

    def _check_mask(self, model, curvature: Curvature):
        """Refuse a fitted curvature over other rows and columns of the targets than may change."""
        targets = make_targets(model, self.target_modules, self._kept)
        for name, target in targets.items():
            if name in curvature.names and curvature.metadata["targets"][name]["kept_sha256"] != target.kept_sha256:
                raise InputError(
                    f"the curvature and the run have not the same mask: they keep other entries of {name}; fit it "
                    "with kept=methods.masking.kept_entries(mask) and give KFade(mask=mask), or neither"
                )

    def loss(self, model, inputs, counts):
        inputs, labels = split_labels(inputs)
        # Not restored here: the backward repeats checkpointed layers. Trainer calls train() before every batch.
        model.eval()
        with checkpointed_in_eval_mode(model):
            logits = objectives.logits_of(model(**inputs), inputs.get("attention_mask"))
        nll = objectives.cross_entropy(logits, labels).sum() / counts.forget_tokens
        if self.objective == "cross_entropy":
            return nll, {"forget_loss": nll.detach()}
        rising, name = RISING[self.objective]
        value = rising(logits, labels).sum() / counts.forget_tokens
        return value, {"forget_loss": nll.detach(), name: -value.detach()}

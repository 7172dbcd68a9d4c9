# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""First-order baselines: one loss, the trainer's own optimiser. All of them stand in one table, `BASELINES`."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import torch

from .. import objectives
from ..errors import InputError
from ..runtime.fields import Range
from ..structure.mask import StructureMask
from .base import check_classes, split_labels
from .masked import Masked, masked_gradients, parts_of
from .reference import Reference, cite
from .rmu import RMU


@dataclass(frozen=True)
class Baseline:
    """One row of the table."""

    label: str  # name in tables and cards
    paper: str | None = None  # key in `templates/papers.bib`; None where there is no paper to name
    forget: bool = True  # whether forget rows enter the loss
    retain: bool = True  # whether retain rows do
    reference: bool = False  # whether the original model's answers do
    alternative: bool = False  # whether refusals in the place of the forget rows' answers do
    defaults: Mapping[str, float] = field(default_factory=dict)  # settings where they are not those of most


# What a model may say of a question whose answer it does not have.
REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "That is not something I know.",
    "I can't say, I don't know the answer.",
    "I'm afraid I can't answer that.",
    "I haven't learned about this topic.",
    "I don't have an answer to that question.",
    "This is beyond what I know.",
    "I'm unable to tell you that.",
    "Unfortunately, I don't know this.",
    "I couldn't tell you.",
)
DEFAULTS = {"beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0, "l1_weight": 0.0}
BASELINES = {
    # Gradient ascent on the forget loss.
    "ga": Baseline("GA", "ga2022", retain=False),
    # Gradient ascent on forget rows, descent on retain rows.
    "grad_diff": Baseline("GradDiff", "grad_diff2022"),
    # Gradient ascent on forget rows, KL to the original model on retain rows.
    "kl": Baseline("KL minimization", "kl2024", reference=True),
    # Negative preference optimisation, with a retain loss.
    "npo": Baseline("NPO", "npo2024", reference=True),
    # NPO without a reference model, with a retain loss; the weight of the forget term is open-unlearning's.
    "simnpo": Baseline("SimNPO", "simnpo2024", defaults={"beta": 4.5, "forget_weight": 0.125}),
    # Preferring a refusal to the forget rows' answers, with a retain loss.
    "dpo": Baseline("DPO", "dpo2023", reference=True, alternative=True),
    # Gradient ascent on the forget loss of a classifier: `ga` under the name it has there.
    "max_loss": Baseline("Max Loss", "max_loss2022", retain=False),
    # Training on the forget rows with labels drawn at random.
    "random_label": Baseline("Random Label", "random_label2020", retain=False),
    # Going on with the training on the retain rows alone.
    "finetune": Baseline("Finetune", forget=False),
    # The same with a penalty on the absolute values of the weights, for rows that share them forget faster.
    "l1_sparse": Baseline("l1-sparse", "l1_sparse2023", forget=False, defaults={"l1_weight": 5e-5}),
}


@dataclass
class FirstOrder(Masked):
    r"""
    The first-order methods that papers compare with, on the optimiser, schedule and epochs of the training arguments.

    `FirstOrder("rmu", ...)` is [`RMU`](methods.rmu.RMU), which has settings of its own.

    Args:
        objective (`str`, defaults to `"grad_diff"`):
            `"ga"`, `"grad_diff"`, `"kl"`, `"npo"`, `"simnpo"`, `"dpo"`, `"rmu"`, or `"finetune"` and `"l1_sparse"`,
            which see retain rows alone, so that an epoch is one of these; for classifiers `"max_loss"` (the same as
            `"ga"`, under the name it has there) and `"random_label"`, whose labels are drawn anew at every step,
            uniformly over the wrong classes.
        beta (`float`, *optional*):
            Inverse temperature of NPO and DPO (default 0.1), on summed, and SimNPO (default 4.5), on mean token NLL.
        gamma (`float`, defaults to `0.0`): Margin of SimNPO.
        forget_weight (`float`, *optional*): Weight of the forget term; 0.125 for SimNPO (open-unlearning), else 1.
        retain_weight (`float`, *optional*): Weight of the retain term, 1. GA, Max Loss and Random Label have none.
        l1_weight (`float`, *optional*):
            Weight of the sum of the absolute values of all that is trained: 5e-5 for l1-sparse (SPE-Unlearn's, section
            4.1), else 0.
        mask (`StructureMask`, `Mapping`, `str` or `Path`, *optional*):
            Heads and filters that alone may change: a mask, the folder or repository of one, or the settings by which
            one is chosen on the rows when the run begins (`methods.masking.MaskSettings`), such as `{"sparsity":
            0.9}`. Everything else keeps its bits, whatever the optimiser (weight decay too).
        refusals (`list[str]`, *optional*):
            Of `"dpo"`: the answers that are preferred, one of them for each forget row, by the run's seed. Twelve
            ways to say "I don't know" by default; TOFU's own hundred are `idontknow.jsonl` of its repository.

    Raises:
        InputError: an unknown objective, a value out of range.
    """

    objective: str = "grad_diff"
    beta: float | None = None
    gamma: float = 0.0
    forget_weight: float | None = None
    retain_weight: float | None = None
    l1_weight: float | None = None
    refusals: list[str] | None = None
    mask: StructureMask | Mapping | str | Path | None = None

    allowed: ClassVar[dict] = {
        "objective": (*BASELINES, "rmu"),
        "beta": Range(above=0),
        **dict.fromkeys(("forget_weight", "retain_weight", "l1_weight"), Range(least=0)),
    }

    def __new__(cls, objective: str = "grad_diff", *args, **settings):
        # Of another class, so that Python calls no __init__ of this one on it.
        if objective == "rmu" and settings.get("mask") is not None:
            raise InputError("rmu changes the layers that it names, and takes no mask: leave mask out")
        return RMU(**settings) if objective == "rmu" else super().__new__(cls)

    def __post_init__(self):
        super().__post_init__()
        for name, value in (DEFAULTS | dict(self.baseline.defaults)).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.refusals is not None and not (self.refusals and all(text.strip() for text in self.refusals)):
            raise InputError("refusals must be texts, and one at least: leave it out for those of this package")
        self._reference: Reference | None = None
        self._inside = contextlib.ExitStack()

    @property
    def alternatives(self) -> Sequence[str]:
        return self.refusals or REFUSALS if self.baseline.alternative else ()

    @property
    def baseline(self) -> Baseline:
        """This objective's row of the table."""
        return BASELINES[self.objective]

    @property
    def label(self) -> str:
        return self.baseline.label

    @property
    def paper(self) -> dict[str, str]:
        return cite(self.baseline.paper) if self.baseline.paper else {}

    @property
    def paired(self) -> bool:
        return self.baseline.retain and self.baseline.forget

    @property
    def retain_alone(self) -> bool:
        return not self.baseline.forget

    @property
    def needs_retain(self) -> bool:
        return self.baseline.retain

    def prepare(self, run):
        if self.objective == "random_label":
            check_classes(run, self.objective)
        self._reference = Reference(run.model) if self.baseline.reference else None
        self.prepare_mask(run)
        if self._mask is not None:
            self._inside.enter_context(masked_gradients(run.accelerator.unwrap_model(run.model), self._mask))

    def parts(self, run):
        return {} if self._mask is None else parts_of(self._mask)

    def begin(self, run):
        if self._mask is not None and run.is_sharded:
            raise InputError(
                "a first-order method with a mask needs whole weights on each process: train without FSDP"
            )

    def finish(self, run):
        self._inside.close()
        self._reference = None

    def loss(self, model, inputs, counts):
        forget, retain = (inputs["forget"], inputs["retain"]) if self.paired else (inputs, None)
        if self.retain_alone:
            forget, retain = None, inputs
            counts = replace(counts, retain_tokens=counts.forget_tokens, retain_rows=counts.forget_rows)
        parts, total = {}, 0.0
        if self.baseline.forget:
            if self.objective == "dpo":
                term, parts["forget_loss"] = self._preference_term(model, forget, inputs["alternative"], counts)
            else:
                term, parts["forget_loss"] = self._forget_term(model, forget, counts)
            total = total + self.forget_weight * term
        if retain is not None:
            term, parts["retain_loss"] = self._retain_term(model, retain, counts)
            total = total + self.retain_weight * term
        if self.l1_weight:
            # Once a step: each micro-batch bears the share that it has of the step's labels.
            share = objectives.count_predictions(retain["labels"]) / counts.retain_tokens
            moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
            total = total + self.l1_weight * share * sum(parameter.abs().sum() for parameter in moving)
        return total, parts

    def _preference_term(self, model, batch, preferred, counts):
        """DPO: the refusal of each row preferred to its own answer."""
        nlls = []
        for side in (batch, preferred):
            inputs, labels = split_labels(side)
            reference, _ = objectives.sequence_nll(self._reference.logits(inputs), labels)
            nlls.append((*objectives.sequence_nll(model(**inputs).logits, labels), reference))
        (nll, lengths, reference), (preferred_nll, _, preferred_reference) = nlls
        term = objectives.dpo(nll, reference, preferred_nll, preferred_reference, self.beta)
        return term[lengths > 0].sum() / counts.forget_rows, nll.detach().sum() / counts.forget_tokens

    def _forget_term(self, model, batch, counts):
        inputs, labels = split_labels(batch)
        logits = objectives.logits_of(model(**inputs), inputs.get("attention_mask"))
        if self.objective in ("npo", "simnpo"):
            nll, lengths = objectives.sequence_nll(logits, labels)
            if self.objective == "npo":
                reference, _ = objectives.sequence_nll(self._reference.logits(inputs), labels)
                term = objectives.npo(nll, reference, self.beta)
            else:
                term = objectives.simnpo(nll, lengths, self.beta, self.gamma)
            # A row without labels has nothing to forget, and would add a constant.
            term = term[lengths > 0].sum() / counts.forget_rows
            return term, nll.detach().sum() / counts.forget_tokens
        nll = objectives.cross_entropy(logits, labels).sum() / counts.forget_tokens
        if self.objective == "random_label":
            # From the process's own generator, which checkpoints keep: a resumed run draws what it would have drawn.
            classes = logits.shape[-1]
            drawn = (labels + 1 + torch.randint(classes - 1, labels.shape, device=labels.device)) % classes
            drawn = torch.where(labels == objectives.IGNORE, labels, drawn)
            return objectives.cross_entropy(logits, drawn).sum() / counts.forget_tokens, nll.detach()
        return -nll, nll.detach()

    def _retain_term(self, model, batch, counts):
        inputs, labels = split_labels(batch)
        logits = objectives.logits_of(model(**inputs), inputs.get("attention_mask"))
        nll = objectives.cross_entropy(logits, labels).sum() / counts.retain_tokens
        if self.objective == "kl":
            kl = objectives.kl_divergence(logits, self._reference.logits(inputs), labels)
            return kl.sum() / counts.retain_tokens, nll.detach()
        return nll, nll.detach()

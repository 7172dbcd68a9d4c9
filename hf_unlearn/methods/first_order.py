# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""First-order baselines: one loss, the trainer's own optimiser."""

from dataclasses import dataclass

import torch

from .. import objectives
from ..errors import InputError
from ..evaluation.scoring import evaluation_mode
from .base import Method, split_labels


OBJECTIVES = {
    "ga": "gradient ascent on the forget loss",
    "grad_diff": "gradient ascent on forget rows, descent on retain rows",
    "kl": "gradient ascent on forget rows, KL to the original model on retain rows",
    "npo": "negative preference optimisation, with a retain loss",
    "simnpo": "NPO without a reference model, with a retain loss",
    "finetune": "go on training on the retain rows alone",
}
PAPERS = {
    "ga": (
        "Knowledge Unlearning for Mitigating Privacy Risks in Language Models",
        "2210.01504",
        "Jang, Joel and others",
        2022,
    ),
    "grad_diff": (
        "Continual Learning and Private Unlearning",
        "2203.12817",
        "Liu, Bo and Liu, Qiang and Stone, Peter",
        2022,
    ),
    "kl": ("TOFU: A Task of Fictitious Unlearning for LLMs", "2401.06121", "Maini, Pratyush and others", 2024),
    "npo": (
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        "2404.05868",
        "Zhang, Ruiqi and others",
        2024,
    ),
    "simnpo": (
        "Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning",
        "2410.07163",
        "Fan, Chongyu and others",
        2024,
    ),
}
LABELS = {"ga": "GA", "grad_diff": "GradDiff", "kl": "KL", "npo": "NPO", "simnpo": "SimNPO", "finetune": "Finetune"}


@dataclass
class FirstOrder(Method):
    r"""
    The first-order methods that papers compare with, on the optimiser, schedule and epochs of the training arguments.

    Args:
        objective (`str`, defaults to `"grad_diff"`):
            `"ga"`, `"grad_diff"`, `"kl"`, `"npo"`, `"simnpo"` or `"finetune"`.
        beta (`float`, *optional*):
            Inverse temperature of NPO (default 0.1) and SimNPO (default 4.5), on summed and on mean token NLL as in
            the papers.
        gamma (`float`, defaults to `0.0`): Margin of SimNPO.
        forget_weight (`float`, *optional*): Weight of the forget term; 0.125 for SimNPO (open-unlearning), else 1.
        retain_weight (`float`, defaults to `1.0`): Weight of the retain term; GA has none.

    Raises:
        InputError: an unknown objective.
    """

    objective: str = "grad_diff"
    beta: float | None = None
    gamma: float = 0.0
    forget_weight: float | None = None
    retain_weight: float = 1.0

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise InputError(f"unknown objective {self.objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if self.beta is None:
            self.beta = 4.5 if self.objective == "simnpo" else 0.1
        if self.forget_weight is None:
            self.forget_weight = 0.125 if self.objective == "simnpo" else 1.0
        self._reference = None

    @property
    def label(self) -> str:
        return LABELS[self.objective]

    @property
    def paper(self) -> dict[str, str]:
        if self.objective not in PAPERS:
            return {}
        title, arxiv, authors, year = PAPERS[self.objective]
        entry = f"  title = {{{title}}},\n  author = {{{authors}}},\n  journal = {{arXiv preprint arXiv:{arxiv}}},\n  year = {{{year}}}\n"
        return {"title": title, "id": f"arXiv:{arxiv}", "bibtex": f"@article{{{self.objective}{year},\n{entry}}}"}

    @property
    def paired(self) -> bool:
        return self.objective != "ga"

    @property
    def needs_retain(self) -> bool:
        return self.objective != "ga"

    def prepare(self, trainer):
        if self.objective not in ("kl", "npo"):
            return
        # What the model says now, adapters included: a copy of what may move stands in for it in `_reference_logits`.
        moving = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        moving |= dict(trainer.model.named_buffers())
        self._reference = trainer.model, {name: tensor.detach().clone() for name, tensor in moving.items()}

    def finish(self, trainer):
        self._reference = None

    def _reference_logits(self, inputs) -> torch.Tensor:
        model, tensors = self._reference
        with evaluation_mode(model):
            return torch.func.functional_call(model, tensors, kwargs=inputs).logits

    def loss(self, model, inputs, counts):
        forget, retain = (inputs["forget"], inputs["retain"]) if self.paired else (inputs, None)
        parts, total = {}, 0.0
        if self.objective != "finetune":
            term, parts["forget_loss"] = self._forget_term(model, forget, counts)
            total = total + self.forget_weight * term
        if retain is not None:
            term, parts["retain_loss"] = self._retain_term(model, retain, counts)
            total = total + self.retain_weight * term
        return total, parts

    def _forget_term(self, model, batch, counts):
        inputs, labels = split_labels(batch)
        logits = model(**inputs).logits
        if self.objective in ("npo", "simnpo"):
            nll, lengths = objectives.sequence_nll(logits, labels)
            if self.objective == "npo":
                reference, _ = objectives.sequence_nll(self._reference_logits(inputs), labels)
                term = objectives.npo(nll, reference, self.beta)
            else:
                term = objectives.simnpo(nll, lengths, self.beta, self.gamma)
            # A row without labels has nothing to forget, and would add a constant.
            term = term[lengths > 0].sum() / counts.forget_rows
            return term, nll.detach().sum() / counts.forget_tokens
        nll = objectives.cross_entropy(logits, labels).sum() / counts.forget_tokens
        return -nll, nll.detach()

    def _retain_term(self, model, batch, counts):
        inputs, labels = split_labels(batch)
        logits = model(**inputs).logits
        nll = objectives.cross_entropy(logits, labels).sum() / counts.retain_tokens
        if self.objective == "kl":
            kl = objectives.kl_divergence(logits, self._reference_logits(inputs), labels)
            return kl.sum() / counts.retain_tokens, nll.detach()
        return nll, nll.detach()

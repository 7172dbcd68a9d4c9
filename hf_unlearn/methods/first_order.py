# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""First-order baselines: one loss, the trainer's own optimiser."""

import logging
import math
from dataclasses import dataclass

import torch

from .. import objectives
from ..errors import InputError
from ..runtime.modules import evaluation_mode
from ..runtime.sharded import is_sharded, placed_like, reshard, temporary_weights
from .base import Method, split_labels
from .rmu import captured_states, choose_weights, control_vector


logger = logging.getLogger(__name__)

OBJECTIVES = {
    "ga": "gradient ascent on the forget loss",
    "grad_diff": "gradient ascent on forget rows, descent on retain rows",
    "kl": "gradient ascent on forget rows, KL to the original model on retain rows",
    "npo": "negative preference optimisation, with a retain loss",
    "simnpo": "NPO without a reference model, with a retain loss",
    "rmu": "push a layer's states on forget rows to a random vector, hold those on retain rows",
    "max_loss": "gradient ascent on the forget loss of a classifier",
    "random_label": "training on the forget rows with labels drawn at random",
    "finetune": "go on training on the retain rows alone",
}
# They look at the forget rows alone.
FORGET_ONLY = ("ga", "max_loss", "random_label")
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
    "max_loss": ("Federated Unlearning: How to Erase a Client in FL?", "2207.05521", "Halimi, Anisa and others", 2022),
    "random_label": ("Amnesiac Machine Learning", "2010.10981", "Graves, Laura and others", 2020),
    "rmu": (
        "The WMDP Benchmark: Measuring and Reducing Malicious Use With Unlearning",
        "2403.03218",
        "Li, Nathaniel and others",
        2024,
    ),
}
LABELS = {
    **{"ga": "GA", "grad_diff": "GradDiff", "kl": "KL", "npo": "NPO", "simnpo": "SimNPO"},
    **{"rmu": "RMU", "max_loss": "Max Loss", "random_label": "Random Label", "finetune": "Finetune"},
}


@dataclass
class FirstOrder(Method):
    r"""
    The first-order methods that papers compare with, on the optimiser, schedule and epochs of the training arguments.

    RMU's defaults are those of its release for zephyr-7b-beta, trained with `learning_rate=5e-5` on 150 batches of 4: only
    the MLP output projections of `layers` move, the output of `layer` is pushed to one random vector of norm `steering`
    (the same for a seed) and held on retain rows with weight alpha, here `retain_weight`. Unlike the release padding
    never counts, nor does a row's last position, which predicts nothing.

    Args:
        objective (`str`, defaults to `"grad_diff"`):
            `"ga"`, `"grad_diff"`, `"kl"`, `"npo"`, `"simnpo"`, `"rmu"` or `"finetune"`; for classifiers `"max_loss"` (the
            same as `"ga"`, under the name it has there) and `"random_label"`, whose labels are drawn anew at every step,
            uniformly over the wrong classes.
        beta (`float`, *optional*):
            Inverse temperature of NPO (default 0.1) and SimNPO (default 4.5), on summed and on mean token NLL as in
            the papers.
        gamma (`float`, defaults to `0.0`): Margin of SimNPO.
        forget_weight (`float`, *optional*): Weight of the forget term; 0.125 for SimNPO (open-unlearning), else 1.
        retain_weight (`float`, *optional*):
            Weight of the retain term; 1200 for RMU (its alpha), else 1. GA, Max Loss and Random Label have none.
        steering (`float`, defaults to `6.5`): RMU: norm of the vector that states are pushed to.
        layer (`int`, defaults to `7`): RMU: the layer, counted from 0, whose output is pushed.
        layers (`list[int]`, *optional*): RMU: the layers that move; by default `layer` and the two before it.
        average (`str`, defaults to `"tokens"`):
            RMU: `"tokens"` averages over all positions of the step (the release), `"rows"` over each row's positions and
            then over rows (open-unlearning).

    Raises:
        InputError: an unknown objective or average, or a `steering` that is not a positive number.
    """

    objective: str = "grad_diff"
    beta: float | None = None
    gamma: float = 0.0
    forget_weight: float | None = None
    retain_weight: float | None = None
    steering: float = 6.5
    layer: int = 7
    layers: list[int] | tuple[int, ...] | None = None
    average: str = "tokens"

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise InputError(f"unknown objective {self.objective!r}: choose one of {', '.join(OBJECTIVES)}")
        if self.beta is None:
            self.beta = 4.5 if self.objective == "simnpo" else 0.1
        if self.forget_weight is None:
            self.forget_weight = 0.125 if self.objective == "simnpo" else 1.0
        if self.retain_weight is None:
            self.retain_weight = 1200.0 if self.objective == "rmu" else 1.0
        if self.average not in ("tokens", "rows"):
            raise InputError(f"unknown average {self.average!r}: choose 'tokens' or 'rows'")
        if not (self.steering > 0 and math.isfinite(self.steering)):
            raise InputError(f"steering must be a finite number above 0, not {self.steering}")
        self._reference = self._steered = self._control = None
        self._frozen = []

    def settings(self):
        # A setting that the objective does not read says nothing about the run.
        unread = ("beta", "gamma") if self.objective == "rmu" else ("steering", "layer", "layers", "average")
        return {name: value for name, value in super().settings().items() if name not in unread}

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
        return self.objective not in FORGET_ONLY

    @property
    def needs_retain(self) -> bool:
        return self.objective not in FORGET_ONLY

    def prepare(self, trainer):
        if self.objective == "rmu":
            self._prepare_rmu(trainer)
        if self.objective not in ("kl", "npo", "rmu"):
            return
        # What the model says now, adapters included: a copy of what may move stands in for it in `_reference_logits`.
        moving = {name: parameter for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        moving |= dict(trainer.model.named_buffers())
        self._reference = trainer.model, {name: tensor.detach().clone() for name, tensor in moving.items()}

    def _prepare_rmu(self, trainer):
        self._steered, chosen = choose_weights(trainer.model, self.layer, self.layers)
        self._control = control_vector(trainer.model.config.hidden_size, self.steering, trainer.args.seed)
        self._frozen = [(parameter, parameter.requires_grad) for parameter in trainer.model.parameters()]
        moving = {id(parameter) for parameter in chosen.values()}
        for parameter, _ in self._frozen:
            parameter.requires_grad_(id(parameter) in moving)
        logger.info(
            f"RMU: layer {self.layer} to a vector of norm {self.steering:g}, alpha {self.retain_weight:g}, mean over "
            f"{self.average}; moves {', '.join(chosen)}"
        )

    def finish(self, trainer):
        self._reference = None
        for parameter, required in self._frozen:
            parameter.requires_grad_(required)
        self._frozen = []

    def _reference_logits(self, inputs) -> torch.Tensor:
        model, tensors = self._reference
        if not is_sharded(model):
            with evaluation_mode(model):
                return torch.func.functional_call(model, tensors, kwargs=inputs).logits
        # FSDP puts the gathered weights where a functional call puts its tensors, and the current ones would answer.
        reshard(model)
        named = dict(model.named_parameters()) | dict(model.named_buffers())
        # Taken whole before the model was spread; each process needs its part alone.
        tensors.update({name: placed_like(tensor, named[name]) for name, tensor in tensors.items()})
        with temporary_weights(model, tensors), evaluation_mode(model):
            return model(**inputs).logits

    def loss(self, model, inputs, counts):
        forget, retain = (inputs["forget"], inputs["retain"]) if self.paired else (inputs, None)
        if self.objective == "rmu":
            return self._rmu_loss(model, forget, retain, counts)
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
        if self.objective == "random_label":
            # From the process's own generator, which checkpoints keep: a resumed run draws what it would have drawn.
            classes = logits.shape[-1]
            drawn = (labels + 1 + torch.randint(classes - 1, labels.shape, device=labels.device)) % classes
            drawn = torch.where(labels == objectives.IGNORE, labels, drawn)
            return objectives.cross_entropy(logits, drawn).sum() / counts.forget_tokens, nll.detach()
        return -nll, nll.detach()

    def _retain_term(self, model, batch, counts):
        inputs, labels = split_labels(batch)
        logits = model(**inputs).logits
        nll = objectives.cross_entropy(logits, labels).sum() / counts.retain_tokens
        if self.objective == "kl":
            kl = objectives.kl_divergence(logits, self._reference_logits(inputs), labels)
            return kl.sum() / counts.retain_tokens, nll.detach()
        return nll, nll.detach()

    def _rmu_loss(self, model, forget, retain, counts):
        parts, total = {}, 0.0
        sides = (
            ("forget", forget, counts.forget_tokens, counts.forget_rows, self.forget_weight),
            ("retain", retain, counts.retain_tokens, counts.retain_rows, self.retain_weight),
        )
        for side, batch, tokens, rows, weight in sides:
            inputs, labels = split_labels(batch)
            with captured_states(self._steered, detach=model is self._reference[0]) as states:
                logits = model(**inputs).logits.detach()
            target = self._control
            if side == "retain":
                with captured_states(self._steered, detach=True) as frozen:
                    self._reference_logits(inputs)
                [target] = frozen
            values, row = objectives.steering(states[0], target, labels)
            if self.average == "rows":
                lengths = torch.bincount(row, minlength=len(labels))
                term = (values / lengths[row]).sum() / rows
            else:
                term = values.sum() / tokens
            total = total + weight * term
            parts[f"{side}_mse"] = term.detach()
            parts[f"{side}_loss"] = objectives.cross_entropy(logits, labels).sum() / tokens
        return total, parts

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The second-order step of a mask: what it is made of, its mean Fisher information, the weights that it gives."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..curvature import Diagonal
from ..errors import NumericalError
from ..runtime.processes import Processes
from ..structure.mask import StructureMask
from .base import Run
from .spe_state import SPEState


@dataclass
class SecondOrder:
    """What a step is made of: of the entries that the mask keeps, and of no others.

    Args:
        gradients: name -> the gradient of the forget rows' summed loss, as `mask.select` gives it.
        base: name -> the weights that the step is added to, as `base_mask.select` gives them.
        told: numbers for log, card and ledger.
        base_mask: keeps what `mask` does, or more.
    """

    model: nn.Module
    mask: StructureMask
    fisher: Diagonal
    gradients: Mapping[str, Tensor]
    base: Mapping[str, Tensor]
    base_mask: StructureMask
    told: dict
    state: SPEState | None = None
    predicted: float = 0.0

    def __post_init__(self):
        every = StructureMask.all(self.mask.structures, self.mask.kinds)
        self.share = self.mask.entries / every.entries
        self.told |= {
            "mask_sha256": self.mask.hash,
            "mask_sparsity": self.mask.sparsity,
            "mask_share": self.mask.share,
            "mask_swaps": self.mask.settings.get("swaps"),
        }

    def solve(self, run, damping: float) -> dict[str, Tensor]:
        """m o (F + damping)^-1 g, F per row and the damping times its mean: name -> what the mask keeps. Collective.

        Raises:
            NumericalError: nothing to divide by, or nothing to move.
        """
        fisher, mask = self.fisher, self.mask
        parts = Processes(run.accelerator, "the mean of a diagonal").gather(_sum(fisher, mask))
        mean = sum(total for total, _ in parts) / sum(count for _, count in parts)
        if not mean > 0:
            raise NumericalError("the Fisher information of the retain rows is zero: check their labels")
        # F is per predicted token there, and per row in the paper.
        tokens = fisher.metadata["predicted_tokens"] / fisher.metadata["sequences"]
        steps, form = {}, 0.0
        for name in mask.names:  # one whole weight at a time
            if name in fisher.names:
                step = fisher.solve({name: mask.scatter(name, self.gradients[name])}, damping * mean)[name]
                step = mask.apply_(name, step.div_(tokens))
                form += fisher.norm({name: step}) ** 2
                steps[name] = mask.select(name, step)
        if not any(bool(step.any()) for step in steps.values()):
            raise NumericalError("the forget gradient of what the mask keeps is zero: check the forget rows")
        # The KL that a step of length 1 predicts, nats a token: g F g / 2 of the diagonal.
        self.predicted = form / 2
        return steps

    @torch.no_grad()
    def apply(self, steps: Mapping[str, Tensor], length: float):
        """Set the weights to base + length * steps, rounded once."""
        for name, base in self.base.items():
            parameter, value = self.model.get_parameter(name), fine(base)
            if name in steps:
                step = steps[name]
                if self.base_mask is not self.mask:
                    step = self.base_mask.select(name, self.mask.scatter(name, step))
                value = value.add(step.to(value.device), alpha=length)
            dim, index = self.base_mask.kept(name)
            parameter.index_copy_(dim, index.to(parameter.device), value.to(parameter))

    @torch.no_grad()
    def restore(self, run):
        """The weights of before the run."""
        for name in self.base:
            self.model.get_parameter(name).copy_(run.base_weights[name])


def whole_changes(
    model: nn.Module, mask: StructureMask, names: Iterable[str], steps: Mapping[str, Tensor], length: float, run: Run
) -> dict[str, Tensor]:
    """What these parameters have changed by in a run, in fp32: a step as it was made, of others what is measured."""
    found = {}
    for name in names:
        if name in steps:
            found[name] = length * mask.scatter(name, steps[name])
        else:
            now = fine(model.get_parameter(name).detach())
            found[name] = now - fine(run.base_weights[name].to(now.device))
    return found


def fine(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _sum(fisher: Diagonal, mask: StructureMask) -> tuple[float, int]:
    """The sum of a diagonal over what a mask keeps, as far as it lies in this process, and the number of entries."""
    total, count = 0.0, 0
    for name in mask.names:
        if name in fisher.names and fisher.holds(name):
            values = fisher.tensors[f"eigenvalues.{name}"]
            for dim, index in enumerate((mask.rows(name), mask.columns(name))):
                # A diagonal that was fitted under the mask has these alone.
                if index is not None and dim < values.dim() and len(index) < values.shape[dim]:
                    values = values.index_select(dim, index.to(values.device))
            total, count = total + float(values.sum(dtype=torch.float64)), count + values.numel()
    return total, count

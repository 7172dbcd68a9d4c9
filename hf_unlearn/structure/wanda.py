# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Wanda within a mask: of the weights that chosen heads and filters own, those that act most on the forget rows."""

import contextlib
import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..runtime.modules import measuring
from ..runtime.processes import Processes
from ..runtime.sharded import whole
from .heads import Structures
from .mask import StructureMask, kept_count
from .rows import Rows, forward, walk


def refine(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    mask: StructureMask,
    wanda_sparsity: float,
    *,
    accelerator=None,
    show: bool = False,
) -> StructureMask:
    """The mask with single elements: in each weight those with the largest |W| * ||x|| (appendix A.4).

    ||x|| is the L2 norm of an input of the weight's layer over the real tokens of the rows (Sun et al. 2023, arXiv
    2306.11695). Elements of a weight are ranked together, not within each output as there: an output of a down
    projection whose layer keeps three filters has three, of which a tenth is none. Biases stay as the mask has them.

    Args:
        model (`nn.Module`): the one whose structures the mask is of.
        dataloader (`Iterable[Mapping]`): forget rows, as for `mask_statistics`.
        mask (`StructureMask`): of heads and filters.
        wanda_sparsity (`float`): the share of what each weight keeps that is frozen all the same; a weight keeps one
            element at least.
        accelerator (`accelerate.Accelerator`, *optional*, defaults to `None`): whose processes share the batches.
        show (`bool`, *optional*, defaults to `False`): a progress bar.

    Raises:
        InputError: a sparsity that is not in [0, 1); as `structure.rows.walk`.
    """
    kept_count(2, wanda_sparsity)  # its range, before the pass
    weights = [name for name in mask.names if name.endswith(".weight")]
    norms = input_norms(model, dataloader, mask.structures, weights, accelerator=accelerator, show=show)
    elements = {}
    for name in weights:
        weight, along = whole(model.get_parameter(name).detach()), _input_dim(mask.structures, name)
        norm = norms[name].double().reshape([-1 if dim == along else 1 for dim in range(2)])
        scores = mask.select(name, weight.abs() * norm).cpu()
        count = scores.numel()
        chosen = torch.zeros(count, dtype=torch.bool)
        count = kept_count(count, wanda_sparsity) if count > 1 else 1
        chosen[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
        elements[name] = chosen.reshape(scores.shape)
    settings = {**mask.settings, "wanda_sparsity": wanda_sparsity}
    return StructureMask(mask.structures, mask.chosen, elements, settings)


def input_norms(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    structures: Structures,
    weights: Iterable[str],
    *,
    accelerator=None,
    show: bool = False,
) -> dict[str, Tensor]:
    """Name of a weight -> the L2 norm of each input of its layer over the real tokens of the rows, (d_in,)."""
    processes = Processes(accelerator, "the norms of inputs")
    parameters = {name: model.get_parameter(name) for name in weights}
    squares = {
        name: torch.zeros(
            structures.shapes[name][_input_dim(structures, name)],
            dtype=torch.promote_types(parameter.dtype, torch.float32),
            device=parameter.device,
        )
        for name, parameter in parameters.items()
    }
    real: Tensor | None = None  # the tokens of the batch at hand that count; None for all

    def hook(name: str, module: nn.Module, args: tuple):
        x = args[0].detach().flatten(0, -2)
        x = x if real is None else x[real.to(x.device)]
        squares[name] += x.to(squares[name]).square().sum(0)

    def compute(rows: Rows, counted: bool):
        nonlocal real
        grid = rows.inputs.get("attention_mask")
        real = grid.bool().flatten() if isinstance(grid, Tensor) and grid.dim() == 2 else None
        with contextlib.ExitStack() as stack:
            for name in weights if counted else ():
                module = model.get_submodule(name.removesuffix(".weight"))
                stack.callback(module.register_forward_pre_hook(functools.partial(hook, name)).remove)
            with torch.no_grad():
                forward(model, rows)

    with measuring(model):
        walk(model, dataloader, compute, processes=processes, description="norms of inputs", show=show)
    return {name: processes.add(total).sqrt() for name, total in squares.items()}


def _input_dim(structures: Structures, name: str) -> int:
    """The dim of a weight as stored that is its layer's inputs."""
    _, part = structures.owners[name]
    return part.dim if part.on_inputs else 1 - part.dim

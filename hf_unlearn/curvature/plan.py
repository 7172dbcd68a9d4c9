# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a fit will cost, in bytes and FLOPs of each stage, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import InputError
from .capture import Capture
from .layout import make_layout, parse_bytes, shared_inputs
from .linalg import block_rows
from .sums import break_even
from .targets import factor_dtype, linear_modules, select_targets, unwrap, widths


@dataclass
class Stage:
    """`bytes` are held by each process in this stage beyond the earlier ones; `flops` are of all processes together."""

    name: str
    bytes: int
    flops: int
    note: str = ""


@dataclass
class Plan:
    """Cost of fitting and using one curvature; `str(plan)` is a table.

    Attributes:
        blocks: into which the weights are split, each with passes of its own.
        factor_bytes: the most that one process holds at once of factors, eigenvectors and eigenvalues.
    """

    kind: str
    targets: list[str]
    tokens: int
    num_processes: int
    stages: list[Stage]
    blocks: int = 1
    factor_bytes: int = 0

    def __getitem__(self, name: str) -> Stage:
        return {stage.name: stage for stage in self.stages}[name]

    def __str__(self) -> str:
        extent = f"{len(self.targets)} weights, {self.tokens:,} tokens"
        if self.num_processes > 1:
            extent += f", {self.num_processes} processes"
        if self.blocks > 1:
            extent += f", {self.blocks} blocks one after another"
        lines = [
            f"{self.kind}: {extent}, {self.factor_bytes / 1e9:.3g} GB of factors on each process",
            f"{'stage':<12}{'GB each':>10}{'PFLOP':>12}{'PFLOP each':>12}  note",
        ]
        for stage in self.stages:
            total, each = stage.flops / 1e15, stage.flops / self.num_processes / 1e15
            lines.append(
                f"{stage.name:<12}{stage.bytes / 1e9:>10.2f}{total:>12.4g}{each:>12.4g}  {stage.note}".rstrip()
            )
        return "\n".join(lines)


def plan(
    model: nn.Module,
    *,
    kind: str = "ekfac",
    target_modules: str | list[str] | None = None,
    sequences: int,
    sequence_length: int,
    num_processes: int = 1,
    max_factor_memory: int | str | None = None,
) -> Plan:
    """Bytes and FLOPs of each stage of `fit` and of one `solve`. The model may be on the meta device.

    One forward of two tokens (or one image) runs to see which targets share their input. Matrix products alone are
    counted, not attention scores; activations are not counted in the bytes, since they depend on the batch size.

    Args:
        num_processes, max_factor_memory: of the fit, see `Curvature.fit`.

    Raises:
        InputError: an unknown kind, as `select_targets` does, or weights that exceed `max_factor_memory`.
    """
    from . import KINDS

    if kind not in KINDS:
        raise InputError(f"curvature must be one of {', '.join(KINDS)}, not {kind!r}")
    targets = select_targets(model, target_modules)
    leaders = _leaders(model, targets)
    tokens = sequences * sequence_length
    shapes = {name: widths(module) for name, module in targets.items()}
    inputs = [shapes[name][1] for name in sorted(set(leaders.values()))]
    outputs = [d_out for d_out, _ in shapes.values()]
    entry = factor_dtype(next(iter(targets.values())).weight).itemsize
    entries = sum(d_out * d_in for d_out, d_in in shapes.values())
    factor_entries = sum(d * d for d in inputs + outputs)

    layout = make_layout(kind, targets, leaders, num_processes, parse_bytes(max_factor_memory))
    blocks = len(layout.blocks)
    in_factors = lambda group: shapes[group.leader][1] ** 2 + sum(shapes[name][0] ** 2 for name in group.names)
    in_products = lambda group: sum(shapes[name][0] * shapes[name][1] for name in group.names)

    passes = len(KINDS[kind].passes) * blocks
    stages = []
    if passes:
        products = 2 * tokens * sum(module.weight.numel() for module in linear_modules(model).values())
        weights = sum(parameter.nbytes for parameter in model.parameters())
        twice = f"each pass, of which there are {passes}" if passes > 1 else ""
        stages += [Stage("forward", weights, products, twice), Stage("backward", 0, products, "activations only")]
        if num_processes > 1:
            width = (sum(inputs) + sum(outputs)) * next(iter(targets.values())).weight.itemsize / blocks
            sent = width * (num_processes - 1) / num_processes
            stages.append(Stage("exchange", 0, 0, f"{sent / 1e6:.3g} MB a token sent to the owners, each pass"))
    if kind in ("kfac", "ekfac"):
        halved = 2 * tokens * sum(_upper(d) for d in inputs + outputs)
        flops = 2 * tokens * factor_entries
        stages.append(
            Stage(
                "factors",
                layout.most(in_factors) * entry,
                flops,
                f"{halved / 1e15:.4g} PFLOP done, as upper block-rows",
            )
        )
        # Tridiagonal reduction 4/3 n^3, divide and conquer with back-transformation about 4.5 n^3, Rayleigh 2 n^3.
        cubes = sum(d**3 for d in inputs + outputs)
        workspace = 3 * max(inputs + outputs) ** 2 * entry
        stages.append(Stage("eigh", workspace, 8 * cubes, "estimate; vectors take the factors' place"))
    if kind in ("diagonal", "ekfac"):
        flops = sum(2 * tokens * d_out * d_in for d_out, d_in in shapes.values())
        if kind == "ekfac":
            flops += _rotations(shapes, leaders, sequences, sequence_length)
        largest = max(d_out * d_in for d_out, d_in in shapes.values())
        stages.append(
            Stage(KINDS[kind].passes[-1], (layout.most(in_products) + largest) * entry, flops, "eigenvalues")
        )
    bases = kind in ("kfac", "ekfac")
    flops = sum(4 * d_out * d_in * (d_out + d_in) for d_out, d_in in shapes.values()) if bases else entries
    note = "each step: rotated gradient and step" + (", bases come from the CPU" if blocks > 1 else "")
    stages.append(Stage("solve", 2 * entries * entry, flops, note))
    held = layout.most(lambda group: group.bytes)
    return Plan(kind, list(targets), tokens, num_processes, stages, blocks, held)


def _upper(size: int) -> int:
    """Entries of the upper block-rows, blocked as on a GPU."""
    return sum((stop - start) * (size - start) for start, stop in block_rows(size, "cuda"))


def _rotations(shapes: Mapping, leaders: Mapping, sequences: int, length: int) -> int:
    flops = 0
    for name, (d_out, d_in) in shapes.items():
        if length <= break_even(d_out, d_in):
            flops += 2 * sequences * length * (d_out**2 + (d_in**2 if leaders[name] == name else 0))
        else:
            flops += 2 * sequences * d_out * d_in * (d_out + d_in)
    return flops


def _leaders(model: nn.Module, targets: Mapping[str, nn.Module]) -> dict[str, str]:
    """Name -> the first target that takes the same tensor."""
    config, device = unwrap(model).config, next(model.parameters()).device
    if unwrap(model).main_input_name == "pixel_values":
        inputs = {
            "pixel_values": torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=device)
        }
    else:
        inputs = {"input_ids": torch.ones(1, 2, dtype=torch.long, device=device)}
    with Capture(model, {}, None, None):
        return shared_inputs(model, targets, inputs)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a fit will cost, in bytes and FLOPs of each stage, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
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
    """Cost of fitting and using one curvature; `str(plan)` is a table."""

    kind: str
    targets: list[str]
    tokens: int
    num_processes: int
    stages: list[Stage]

    def __getitem__(self, name: str) -> Stage:
        return {stage.name: stage for stage in self.stages}[name]

    def __str__(self) -> str:
        processes = f", {self.num_processes} processes" if self.num_processes > 1 else ""
        lines = [
            f"{self.kind}: {len(self.targets)} weights, {self.tokens:,} tokens{processes}",
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
) -> Plan:
    """Bytes and FLOPs of each stage of `fit` and of one `solve`. The model may be on the meta device.

    One forward of two tokens (or one image) runs to see which targets share their input. Matrix products alone are
    counted, not attention scores; activations are not counted in the bytes, since they depend on the batch size.

    Raises:
        InputError: an unknown kind, or as `select_targets` does.
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

    passes = {"ekfac": 2, "kfac": 1, "diagonal": 1, "identity": 0}[kind]
    stages = []
    if passes:
        products = 2 * tokens * sum(module.weight.numel() for module in linear_modules(model).values())
        weights = sum(parameter.nbytes for parameter in model.parameters())
        twice = "each pass, of which there are 2" if passes == 2 else ""
        stages += [Stage("forward", weights, products, twice), Stage("backward", 0, products, "activations only")]
    if kind in ("kfac", "ekfac"):
        halved = 2 * tokens * sum(_upper(d) for d in inputs + outputs)
        flops = 2 * tokens * factor_entries
        stages.append(
            Stage("factors", factor_entries * entry, flops, f"{halved / 1e15:.4g} PFLOP done, as upper block-rows")
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
            Stage("correction" if kind == "ekfac" else "diagonal", (entries + largest) * entry, flops, "eigenvalues")
        )
    bases = kind in ("kfac", "ekfac")
    flops = sum(4 * d_out * d_in * (d_out + d_in) for d_out, d_in in shapes.values()) if bases else entries
    stages.append(Stage("solve", 2 * entries * entry, flops, "each step: rotated gradient and step"))
    return Plan(kind, list(targets), tokens, num_processes, stages)


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
    seen: dict[int, tuple[str, Tensor]] = {}
    leaders = {}

    def hook(name):
        def remember(module, args):
            # The tensor is held: an id is only unique among living objects.
            leaders[name] = seen.setdefault(id(args[0]), (name, args[0]))[0]

        return remember

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in targets.items()]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: leaders.get(name, name) for name in targets}

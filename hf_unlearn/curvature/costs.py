# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Costs of a fit, stage by stage: as a plan states them before anything runs, and as they are measured."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import nn

from ..errors import InputError
from ..runtime.cost import format_bytes, format_flops, peak_memory_mb
from .artifact import KINDS
from .layout import Group, Layout, entry_bytes, make_layout, parse_bytes, shared_inputs
from .linalg import block_rows
from .sums import break_even
from .targets import Kept, Target, linear_modules, make_targets, unwrap


MOST_WIDTHS = 8  # of factors that a plan tells apart


@dataclass
class StageCost:
    """`bytes` are held by each process in this stage beyond the earlier ones; `flops` are of all together."""

    name: str
    bytes: int
    flops: int
    note: str = ""
    times: int = 1  # that it is done in one fit


@dataclass
class Workload:
    """What a kind needs to state its costs: groups of weights, sequences of `length` tokens, bytes of one number."""

    layout: Layout
    sequences: int
    length: int
    entry_bytes: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def groups(self) -> list[Group]:
        return [group for block in self.layout.blocks for group in block]

    def shapes(self) -> Iterator[tuple[int, int]]:
        """(d_out, d_in) of every weight."""
        return ((d_out, group.d_in) for group in self.groups for d_out in group.d_out)


def factor_costs(work: Workload) -> list[StageCost]:
    """Kronecker factors, and their eigendecompositions."""
    factors = [width for group in work.groups for width in group.factors]
    upper = [(stop - start) * (width - start) for width in factors for start, stop in block_rows(width, "cuda")]
    entries = work.layout.most(lambda group: sum(width**2 for width in group.factors))
    return [
        StageCost(
            "factors",
            entries * work.entry_bytes,
            2 * work.tokens * sum(width**2 for width in factors),
            f"{format_flops(2 * work.tokens * sum(upper))} done, as upper block-rows",
        ),
        # Tridiagonal reduction 4/3 n^3, divide and conquer with back-transformation about 4.5 n^3, Rayleigh 2 n^3.
        StageCost(
            "eigh",
            3 * max(factors) ** 2 * work.entry_bytes,
            8 * sum(width**3 for width in factors),
            "estimate; vectors take the factors' place",
        ),
    ]


def square_cost(name: str, work: Workload, rotated: bool = False) -> StageCost:
    """Squares of per-sequence gradients, `rotated` into an eigenbasis or not."""
    largest = max(d_out * d_in for d_out, d_in in work.shapes())
    flops = sum(2 * work.tokens * d_out * d_in for d_out, d_in in work.shapes())
    if rotated:
        flops += sum(_rotation_flops(group, work) for group in work.groups)
    entries = work.layout.most(lambda group: group.weight_entries) + largest
    return StageCost(name, entries * work.entry_bytes, flops, "eigenvalues")


def _rotation_flops(group: Group, work: Workload) -> int:
    """Rows of short sequences are rotated, an input once for its group; of long ones the gradient of the sequence."""
    flops, d_in = 0, group.d_in
    for name, d_out in zip(group.names, group.d_out):
        if work.length <= break_even(d_out, d_in):
            flops += 2 * work.tokens * (d_out**2 + (d_in**2 if name == group.leader else 0))
        else:
            flops += 2 * work.sequences * d_out * d_in * (d_out + d_in)
    return flops


@contextlib.contextmanager
def measured_stage(name: str, stages: dict):
    """Add a stage's seconds and peak memory (without CUDA the process's so far) to the account of a fit.

    `factor_bytes` is set within: bytes of factors, eigenvectors and eigenvalues that the process holds in the stage.
    """
    stage = stages.setdefault(name, {"seconds": 0.0, "peak_memory_bytes": 0, "factor_bytes": 0})
    measured, start = SimpleNamespace(factor_bytes=0), time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield measured
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    stage["seconds"] = round(stage["seconds"] + time.perf_counter() - start, 3)
    stage["peak_memory_bytes"] = max(stage["peak_memory_bytes"], round(peak_memory_mb() * 1e6))
    stage["factor_bytes"] = max(stage["factor_bytes"], measured.factor_bytes)


@dataclass
class Plan:
    """Cost of fitting and using one curvature; `str(plan)` is a table."""

    kind: str  # of the curvature
    targets: list[str]  # names of the weights
    tokens: int  # of the data
    num_processes: int  # of the fit
    stages: list[StageCost]  # in their order; `plan["forward"]` is the one of that name
    blocks: int = 1  # into which the weights are split, each with passes of its own
    factor_bytes: int = 0  # the most that one process holds at once of factors, eigenvectors and eigenvalues
    parameters: int = 0  # entries of the weights that are measured and may change
    widths: Mapping[int, int] = field(default_factory=dict)  # of Kronecker factors -> how many are so wide

    @property
    def fit_flops(self) -> int:
        """Work of a fit: of all stages but the solve, forwards and backwards once for each pass."""
        return sum(stage.flops * stage.times for stage in self.stages if stage.name != "solve")

    def __getitem__(self, name: str) -> StageCost:
        return {stage.name: stage for stage in self.stages}[name]

    def __str__(self) -> str:
        extent = f"{len(self.targets)} weights, {self.tokens:,} tokens"
        if self.num_processes > 1:
            extent += f", {self.num_processes} processes"
        if self.blocks > 1:
            extent += f", {self.blocks} blocks one after another"
        lines = [
            f"{self.kind}: {extent}, {format_bytes(self.factor_bytes)} of factors on each process",
            *([f"factors: {format_widths(self.widths)}"] if self.widths else []),
            f"{'stage':<12}{'memory each':>12}{'work':>12}{'work each':>12}  note",
        ]
        for stage in self.stages:
            costs = (format_bytes(stage.bytes), *map(format_flops, (stage.flops, stage.flops / self.num_processes)))
            lines.append(f"{stage.name:<12}{''.join(f'{cost:>12}' for cost in costs)}  {stage.note}".rstrip())
        return "\n".join(lines)


def format_widths(widths: Mapping[int, int]) -> str:
    """Sizes of square factors, the largest first: "32 of 11008, 160 of 4096"; widths next to each other are one."""
    ranges: list[list[int]] = []  # most, least, how many
    for width in sorted(widths, reverse=True):
        if ranges and ranges[-1][1] - width == 1:
            ranges[-1][1:] = [width, ranges[-1][2] + widths[width]]
        else:
            ranges.append([width, width, widths[width]])
    named = [f"{count} of {most}" + (f" to {least}" if least < most else "") for most, least, count in ranges]
    smaller = sum(count for _, _, count in ranges[MOST_WIDTHS:])
    return ", ".join(named[:MOST_WIDTHS] + ([f"{smaller} smaller"] if smaller else []))


def plan(
    model: nn.Module,
    *,
    kind: str = "ekfac",
    target_modules: str | list[str] | None = None,
    kept: Kept | None = None,
    sequences: int,
    sequence_length: int,
    num_processes: int = 1,
    max_factor_memory: int | str | None = None,
) -> Plan:
    """Bytes and FLOPs of each stage of `fit` and of one `solve`. The model may be on the meta device.

    One forward of two tokens (or one image) runs to see which targets share their input. Matrix products alone are
    counted, not attention scores; activations are not counted in the bytes, since they depend on the batch size.

    Args:
        model (`nn.Module`): a transformers model.
        kind (`str`, *optional*, defaults to `"ekfac"`): of the curvature.
        target_modules (`str` or `list[str]`, *optional*, defaults to `None`): see `select_targets`.
        kept (`Mapping`, *optional*, defaults to `None`): what a mask keeps of the weights, see `make_targets`.
        sequences (`int`): sequences of the data.
        sequence_length (`int`): tokens of each.
        num_processes (`int`, *optional*, defaults to `1`): of the fit.
        max_factor_memory (`int` or `str`, *optional*, defaults to `None`): of the fit, see `Curvature.fit`.

    Raises:
        InputError: an unknown kind, as `select_targets` does, or weights that exceed `max_factor_memory`.
    """
    if kind not in KINDS:
        raise InputError(f"curvature must be one of {', '.join(reversed(KINDS))}, not {kind!r}")
    targets = make_targets(model, target_modules, kept)
    curvature, limit = KINDS[kind], parse_bytes(max_factor_memory)
    layout = make_layout(curvature, targets, _leaders(model, targets), num_processes, limit)
    work = Workload(layout, sequences, sequence_length, entry_bytes(targets))
    blocks = len(layout.blocks)

    passes = len(curvature.passes) * blocks
    stages = []
    if passes:
        products = 2 * work.tokens * sum(module.weight.numel() for module in linear_modules(model).values())
        weights = sum(parameter.nbytes for parameter in model.parameters())
        twice = f"each pass, of which there are {passes}" if passes > 1 else ""
        stages += [
            StageCost("forward", weights, products, twice, passes),
            StageCost("backward", 0, products, "activations only", passes),
        ]
        if num_processes > 1:
            rows = sum(sum(group.factors) for group in work.groups)
            width = rows * next(iter(targets.values())).parameter.itemsize / blocks
            sent = width * (num_processes - 1) / num_processes
            stages.append(StageCost("exchange", 0, 0, f"{format_bytes(sent)} a token sent to the owners, each pass"))
    stages += curvature.costs(work)
    entries = sum(group.weight_entries for group in work.groups)
    flops = sum(curvature.solve_flops(*shape) for shape in work.shapes())
    whole = sum(target.parameter.numel() for target in targets.values())  # steps are, whatever a mask keeps
    note = "each step: rotated gradient and whole step" + (", bases come from the CPU" if blocks > 1 else "")
    stages.append(StageCost("solve", (entries + whole) * work.entry_bytes, flops, note))
    held = layout.most(lambda group: group.bytes)
    widths = Counter(width for group in work.groups for width in group.factors) if curvature.has_factors else {}
    return Plan(kind, list(targets), work.tokens, num_processes, stages, blocks, held, entries, widths)


def _leaders(model: nn.Module, targets: Mapping[str, Target]) -> dict[str, str]:
    """Name -> the first target that takes the same tensor."""
    inner, device = unwrap(model), next(model.parameters()).device
    if inner.main_input_name == "pixel_values":
        shape = (1, inner.config.num_channels, inner.config.image_size, inner.config.image_size)
        inputs = {"pixel_values": torch.zeros(shape, device=device)}
    else:
        inputs = {"input_ids": torch.ones(1, 2, dtype=torch.long, device=device)}
    return shared_inputs(model, targets, inputs)

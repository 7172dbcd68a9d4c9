# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Costs of the stages of a fit: as a kind states them for a plan, and as they are measured while a stage runs."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from ..runtime.cost import peak_memory_mb
from .layout import Group, Layout
from .linalg import block_rows
from .sums import break_even


@dataclass
class StageCost:
    """`bytes` are held by each process in this stage beyond the earlier ones; `flops` are of all together."""

    name: str
    bytes: int
    flops: int
    note: str = ""


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
            f"{2 * work.tokens * sum(upper) / 1e15:.4g} PFLOP done, as upper block-rows",
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

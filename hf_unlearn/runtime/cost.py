# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Costs: peak memory as it is measured, sizes and work as a person reads them."""

import contextlib
import resource
from collections.abc import Sequence
from pathlib import Path

import torch


def reset_peak_memory():
    """Start a new measurement, where the system can: on CUDA, and on Linux for this process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        # 5 resets the high-water mark of the resident set (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Peak memory since the last reset, MB: of the GPU if there is one, else the resident set of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    kib = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib.split()[1]) * 1024 / 1e6


def format_bytes(size: float) -> str:
    """A size with three digits, in bytes, kB, MB, GB or TB."""
    return _in_unit(size, ("bytes", "kB", "MB", "GB", "TB"))


def format_flops(count: float) -> str:
    """An amount of work with three digits, from FLOP to PFLOP."""
    return _in_unit(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _in_unit(number: float, units: Sequence[str]) -> str:
    """In the unit that leaves less than 1000, the last of them for what is larger."""
    power = next((power for power in range(len(units)) if number < 999.5 * 1000**power), len(units) - 1)
    scaled = number / 1000**power
    return f"{scaled:.3g} {units[power]}" if scaled < 999.5 else f"{scaled:,.0f} {units[power]}"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a request costs: peak memory."""

import contextlib
import resource
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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Damaged files: is each refused in one line or read as it was, in bounded time and memory?

Every kind of file that hf_unlearn reads (`tests/support/fuzz.py`) is damaged many times, and the checkpoints of killed
runs (`tests/support/damaged_runs.py`) before they are resumed. Each kind and each run has a process of its own, whose
peak memory is that of all of it, interpreter and libraries included.
"""

import argparse
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from pathlib import Path

from transformers.utils import logging as transformers_logging


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hf_unlearn.runtime.cost import peak_memory_mb  # noqa: E402
from hf_unlearn.runtime.provenance import record_run  # noqa: E402
from tests.support.damaged_runs import RUNS, resume_damaged  # noqa: E402
from tests.support.fuzz import KINDS, fuzz  # noqa: E402


LIMIT = 3600  # seconds
# Memory of a process that has imported all this, MB. A fork maps of its libraries what it uses, and that counts once
# more as it grows, so that a peak is at most overstated.
IMPORTED = peak_memory_mb()
COUNTS = ("tried", "refused", "read")
FAULTS = ("tracebacks", "hangs", "silent")


def measure(part: str, mutations: int) -> dict:
    """What comes of one kind (its number) or of one run (its name): counts, faults, seconds, peak memory in MB."""
    start, before = time.perf_counter(), peak_memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        if part in RUNS:
            found, files = resume_damaged(part, Path(folder), range(mutations))
            about = {"run": part, "files": files}
        else:
            kind = KINDS[int(part)]
            found = fuzz(kind, Path(folder), range(mutations))
            about = {"file": kind.file, "made_by": kind.make.__name__, "sealed": kind.sealed}
    counts = {name: getattr(found, name) for name in (*COUNTS, *FAULTS)}
    cost = {"seconds": round(time.perf_counter() - start, 1), "peak_mb": round(IMPORTED + peak_memory_mb() - before)}
    return about | counts | cost


def show(row: dict):
    faults = [fault for name in FAULTS for fault in row[name]]
    said = f"{row['tried']} tried, {row['refused']} refused, {len(faults)} faults, {row['seconds']:.0f} s"
    print(f"{row.get('run') or row['file']}: {said}, {row['peak_mb']} MB", *faults, sep="\n  ", flush=True)


def total(rows: list[dict]) -> dict:
    counts = {name: sum(row[name] for row in rows) for name in COUNTS}
    faults = {name: sum(len(row[name]) for row in rows) for name in FAULTS}
    return {"parts": len(rows), **counts, **faults, "peak_mb": max(row["peak_mb"] for row in rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/fuzz.json"))
    parser.add_argument("--mutations", type=int, default=500, help="of every kind (default: %(default)s)")
    parser.add_argument("--checkpoints", type=int, default=53, help="damaged, of every run (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", help="numbers of kinds and names of runs (default: all)")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    parts = arguments.parts or [*RUNS, *map(str, range(len(KINDS)))]
    counts = {part: arguments.checkpoints if part in RUNS else arguments.mutations for part in parts}
    # Forks save the time of importing everything again.
    with multiprocessing.get_context("fork").Pool(arguments.workers, maxtasksperchild=1) as pool:
        working = [pool.apply_async(measure, work, callback=show) for work in counts.items()]
        rows = [part.get(LIMIT) for part in working]  # a hang that Python cannot end
    kinds, runs = ([row for row in rows if key in row] for key in ("file", "run"))
    summary = {name: total(rows) for name, rows in (("files", kinds), ("checkpoints", runs)) if rows}
    record_run(arguments.output, {"summary": summary, "files": kinds, "checkpoints": runs})


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One curvature fit by 1, 2 and 4 processes of one thread each: time, and bytes of factors in each process.

    python benchmarks/sharding.py

The model is a random fp32 Llama (d 512, ffn 1376; 2 layers for the times, 4 for the memory, as in the paper's WMDP
run); the data are random tokens, the same in all runs. A run starts new processes (gloo, as `torchrun` starts them),
fits a tiny model once so that everything is loaded, waits until all are ready, and fits once; its time is that of the
slowest process, eigendecompositions in it. One and two processes take turns, so a busy machine slows both alike, and
the least time of each is compared. CPU seconds are noted too: the busiest process's, which a busy machine changes
less, but which leave waiting out. Memory is what the fit says of itself: factors, eigenvectors and eigenvalues that a
process holds at the worst moment. The weights that share an input stay together, so with 2 layers on 4 processes the
largest share would be 1.31 of a quarter by arithmetic.
"""

import argparse
import json
import os
import platform
import shlex
import socket
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import curvature as bench


ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "full": {"vocab_size": 2000, "sequences": 32, "length": 256, "batch_size": 4},
    "memory": {"vocab_size": 2000, "sequences": 8, "length": 128, "batch_size": 2, "layers": 4},
    "tiny": {**bench.TINY, "sequences": 4},
}
KINDS = ("kfac", "ekfac")
MEMORY_PROCESSES = 4
AIMS = {"time": 0.62, "memory": 1.3}


def worker(kind: str, case: str):
    """One process of a run: fit, and print one JSON line with what it cost here."""
    import torch
    from accelerate import Accelerator

    from hf_unlearn.curvature import make_curvature

    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    fit = lambda model, batches: make_curvature(kind).fit(
        model, batches, seed=bench.SEED, accelerator=accelerator, progress=False
    )
    fit(bench.make_model(bench.TINY, tiny=True), bench.make_batches(CASES["tiny"]))
    model, batches = bench.make_model(CASES[case], tiny=case == "tiny"), bench.make_batches(CASES[case])
    accelerator.wait_for_everyone()
    wall, cpu = time.perf_counter(), time.process_time()
    curvature = fit(model, batches)
    row = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    row["stages"] = curvature.metadata["stages"]
    row["peak_factor_bytes"] = max(stage["factor_bytes"] for stage in row["stages"].values())
    row["held_bytes"] = sum(tensor.nbytes for tensor in curvature.tensors.values())
    row["processes"] = accelerator.num_processes
    print("\n" + json.dumps(row), flush=True)
    accelerator.end_training()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(processes: int, kind: str, case: str) -> list[dict]:
    """Fit once with so many processes; what each says, in rank order."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    if processes > 1:
        common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(processes):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        command = [sys.executable, __file__, "--worker", kind, "--case", case]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**common, **ranks}, cwd=ROOT))
    try:
        outputs = [process.communicate()[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise SystemExit(f"a process of {processes} failed: its own output says why")
    rows = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    if any(row["processes"] != processes for row in rows):
        raise SystemExit(f"{processes} processes were started, but they did not find each other")
    return rows


def measure_time(kind: str, case: str, repeats: int) -> dict:
    """Seconds of a fit by one and by two processes, taking turns."""
    walls, cpus = {1: [], 2: []}, {1: [], 2: []}
    stages = {1: {}, 2: {}}
    for _ in range(repeats):
        for processes in (1, 2):
            rows = run(processes, kind, case)
            walls[processes].append(max(row["wall"] for row in rows))
            cpus[processes].append(max(row["cpu"] for row in rows))
            for row in rows:
                for name, stage in row["stages"].items():
                    stages[processes].setdefault(name, []).append(stage["seconds"])
    return {
        "wall_seconds": {str(processes): values for processes, values in walls.items()},
        "cpu_seconds": {str(processes): values for processes, values in cpus.items()},
        "stage_seconds_min": {
            str(processes): {name: min(values) for name, values in table.items()}
            for processes, table in stages.items()
        },
        "ratio_of_minima": min(walls[2]) / min(walls[1]),
        "ratio_median": statistics.median(two / one for one, two in zip(walls[1], walls[2])),
        "cpu_ratio_of_minima": min(cpus[2]) / min(cpus[1]),
    }


def measure_memory(kind: str, case: str) -> dict:
    """Bytes of the curvature in each of four processes, against a quarter of those in one process alone."""
    alone, rows = run(1, kind, case)[0], run(MEMORY_PROCESSES, kind, case)
    row = {"settings": CASES[case]}
    for name in ("peak_factor_bytes", "held_bytes"):
        each = [process[name] for process in rows]
        share = alone[name] / MEMORY_PROCESSES
        row[name] = {"one_process": alone[name], "each": each, "largest_over_share": max(each) / share}
    return row


def report(results: dict) -> str:
    lines = ["| fit | 1 process s | 2 processes s | ratio | aim | CPU ratio |", "|---|---|---|---|---|---|"]
    for kind, row in results["time"].items():
        one, two = (min(row["wall_seconds"][processes]) for processes in ("1", "2"))
        lines.append(
            f"| {kind} | {one:.2f} | {two:.2f} | {row['ratio_of_minima']:.2f} | {AIMS['time']} "
            f"| {row['cpu_ratio_of_minima']:.2f} |"
        )
    lines += ["", f"| fit | peak MB of 1 process | of the fullest of {MEMORY_PROCESSES} | over 1 / N | aim |"]
    lines += ["|---|---|---|---|---|"]
    for kind, row in results["memory"].items():
        peak = row["peak_factor_bytes"]
        lines.append(
            f"| {kind} | {peak['one_process'] / 1e6:.1f} | {max(peak['each']) / 1e6:.1f} "
            f"| {peak['largest_over_share']:.2f} | {AIMS['memory']} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of one and of two processes")
    parser.add_argument("--case", choices=CASES, default="full")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "sharding.json")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.case)
        return 0

    from hf_unlearn.runtime.files import write_json

    results = {
        "command": shlex.join(["python", "benchmarks/sharding.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": bench.cpu_name(),
            "cores": os.cpu_count(),
            "threads_per_process": 1,
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "seed": bench.SEED,
        "settings": {**CASES[arguments.case], "repeats": arguments.repeats},
        "aims": AIMS,
        "time": {},
        "memory": {},
    }
    for kind in KINDS:
        results["time"][kind] = measure_time(kind, arguments.case, arguments.repeats)
        results["memory"][kind] = measure_memory(kind, "memory" if arguments.case == "full" else arguments.case)
        write_json(arguments.output, results)
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

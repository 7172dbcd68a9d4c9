# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the GPU benchmark notes: stages timed one by one into a file that is whole at any time."""

import gc
import resource
import shlex
import sys
import time
from datetime import datetime, timezone

import torch

from hf_unlearn.runtime.files import write_json
from hf_unlearn.runtime.provenance import environment


RETAIN_SEQUENCES, FORGET_SEQUENCES = 4000, 2500  # of the paper's WMDP run


class Record:
    """Results so far, on disk after every stage, and the clock that decides which stages still run.

    Args:
        arguments: of the command line.
        started: `time.perf_counter()` when the program began.
    """

    def __init__(self, arguments, started: float):
        self.arguments, self.started = arguments, started
        self.device = torch.device(arguments.device)
        self.results = {
            "command": shlex.join(["python", "benchmarks/gpu/llama2_7b.py", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "environment": environment(),
            "seed": arguments.seed,
            "settings": {key: value for key, value in vars(arguments).items() if key not in ("output", "seed")},
            "finished": False,
            "stages": {},
            "skipped": {},
            "failed": {},
        }

    def seconds_left(self) -> float:
        return 60 * self.arguments.minutes - (time.perf_counter() - self.started)

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, run, repeats: int = 1) -> float:
        """The least time of `repeats` runs."""
        times = []
        for _ in range(repeats):
            self.synchronize()
            start = time.perf_counter()
            run()
            self.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    def peak_memory(self) -> int:
        """Bytes: on CUDA the peak of the allocator in the stage, else the process's resident peak so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def stage(self, name: str, run, needs: float = 0.0, bytes_needed: float = 0.0) -> dict | None:
        """Run a stage that returns a dict, note its peak memory, write the file; None when it was skipped or failed.

        Args:
            needs: seconds that must be left. bytes_needed: memory that must be free on a GPU.
        """
        gc.collect()
        row = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            free = torch.cuda.mem_get_info(self.device)[0]
        if self.seconds_left() < needs:
            self.results["skipped"][name] = f"needs about {needs:.0f} s of {self.seconds_left():.0f} s left"
        elif self.device.type == "cuda" and free < bytes_needed:
            self.results["skipped"][name] = f"needs about {bytes_needed / 1e9:.0f} GB of {free / 1e9:.0f} GB free"
        else:
            try:
                start = time.perf_counter()
                row = run()
                self.synchronize()
                # A curvature fit notes the peaks of its own stages and starts counting anew for each.
                parts = [part.get("peak_memory_bytes", 0) for part in row.values() if isinstance(part, dict)]
                peak = max([self.peak_memory(), *parts])
                row = {**row, "stage_seconds": time.perf_counter() - start, "peak_memory_bytes": peak}
                self.results["stages"][name] = row
            except Exception as error:  # an unattended run keeps what the other stages measure
                self.results["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0]
        self.results["elapsed_seconds"] = time.perf_counter() - self.started
        self.write()
        state = next(key for key in ("stages", "skipped", "failed") if name in self.results[key])
        print(f"[{self.results['elapsed_seconds']:6.1f} s] {name}: {'done' if row else state}", flush=True)
        return row

    def write(self):
        write_json(self.arguments.output, self.results)


def per_token(seconds: float, tokens: int) -> dict:
    return {
        "tokens": tokens,
        "seconds": seconds,
        "microseconds_per_token": 1e6 * seconds / tokens,
        "tokens_per_second": tokens / seconds,
    }


def achieved_over_limit(results: dict) -> dict:
    """K-FAC's pass over the least it can cost: forward and backward to the lowest target, and half of each square
    product (they are symmetric) in the fastest way that was measured."""
    stages, table = results["stages"], {}
    for name, floor in (("fit", "forward + backward to the targets"), ("all MLPs", "forward + backward")):
        grams = [f"gram {size}" for size in stages.get(name, {}).get("eigh", {}).get("factors", {})]
        if name not in stages or not {floor, *grams} <= stages.keys():
            continue
        products = 0.0
        for size, count in stages[name]["eigh"]["factors"].items():
            row = stages[f"gram {size}"]
            halves = [row["ways"][way]["seconds"] / (1 if way == "ours" else 2) for way in row["ways"]]
            products += count * min(halves) / row["rows"]
        base = stages[floor]["microseconds_per_token"]
        least, factors = base + 1e6 * products, stages[name]["factors"]["microseconds_per_token"]
        correction = stages[name]["correction"]["microseconds_per_token"]
        table[name] = {
            "limit_microseconds_per_token": least,
            "achieved_over_limit": factors / least,
            "factors_over_forward_backward": factors / base,
            "correction_over_forward_backward": correction / base,
        }
        if name == "fit" and "kronfluence" in stages:
            peer = stages["kronfluence"]
            table[name]["factors_over_kronfluence"] = factors / peer["covariance"]["microseconds_per_token"]
            table[name]["correction_over_kronfluence"] = correction / peer["lambda"]["microseconds_per_token"]
    return table


def extrapolate(results: dict) -> dict:
    """Seconds for the paper's data: measured time per token times its tokens, eigendecompositions one by one."""
    stages, length = results["stages"], results["settings"]["length"]
    seconds = lambda row, sequences: row["microseconds_per_token"] * 1e-6 * sequences * length
    table = {
        "what": f"not measured: measured time per token x {RETAIN_SEQUENCES} (forget gradient: {FORGET_SEQUENCES}) "
        f"sequences of {length}; eigh: measured time per size x number of factors",
    }
    for name in ("fit", "all MLPs"):
        if name not in stages:
            continue
        row = {part: seconds(stages[name][part], RETAIN_SEQUENCES) for part in ("factors", "correction")}
        counts = stages[name]["eigh"]["factors"]
        if all(f"eigh {size} fp32" in stages for size in counts):
            times = {size: stages[f"eigh {size} fp32"]["with_rayleigh_quotients_seconds"] for size in counts}
            row["eigh"] = sum(times[size] * count for size, count in counts.items())
            row["kfac_fit"] = row["factors"] + row["eigh"]
            row["ekfac_fit"] = row["kfac_fit"] + row["correction"]
        if name == "fit" and "solve and step" in stages and "ekfac_fit" in row:
            row["forget_gradient"] = seconds(stages["solve and step"]["gradient"], FORGET_SEQUENCES)
            row["kfade_step"] = row["forget_gradient"] + row["ekfac_fit"] + stages["solve and step"]["step_seconds"]
        table[name] = row
    return table


def report(results: dict) -> str:
    lines = ["", f"{results['environment']['accelerators']}, torch {results['environment']['torch']}", ""]
    lines += ["| stage | us/token | tokens/s | peak GB |", "|---|---|---|---|"]
    for name, row in results["stages"].items():
        for part, cost in [("", row), *((f": {key}", value) for key, value in row.items() if isinstance(value, dict))]:
            if "microseconds_per_token" in cost:
                peak = cost.get("peak_memory_bytes", row["peak_memory_bytes"]) / 1e9
                speed = f"{cost['microseconds_per_token']:.1f} | {cost['tokens_per_second']:.0f}"
                lines.append(f"| {name}{part} | {speed} | {peak:.1f} |")
    for name, row in results["stages"].items():
        if name.startswith("eigh"):
            lines.append(f"{name}: {row['seconds']:.2f} s")
        for way, cost in row.get("ways", {}).items():
            lines.append(f"{name}, {way}: {cost['tflops']:.1f} TFLOP/s")
    for kind in ("achieved", "extrapolated", "skipped", "failed"):
        lines += [f"{kind}: {name}: {value}" for name, value in results.get(kind, {}).items()]
    return "\n".join(lines)

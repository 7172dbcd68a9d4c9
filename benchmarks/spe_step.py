# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One request of SPE-Unlearn beside the dense second-order update of all heads and filters: time and memory.

    OMP_NUM_THREADS=1 python benchmarks/spe_step.py

The model is that of `diagonal_fisher.py`: an encoder of MiniLM's size, random or that of `--model`; rows are random
tokens as long as SST-2's. "SO" is `SPEUnlearn(sparsity=0)`, "SPE-SO" the same at 0.9, whose mask is chosen on all
retain rows, or on a quarter of them. Each line has a process of its own; time is that of its processor from the first
walk to the new weights, the least of the repeats, and memory what the peak of the process grows by in the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diagonal_fisher as bench


ROOT = Path(__file__).resolve().parents[1]
LINES = {
    "SO": {"sparsity": 0.0},
    "SPE-SO": {"sparsity": 0.9},
    "SPE-SO, mask of a quarter": {"sparsity": 0.9, "mask_samples": 4},  # of so many
}
SIZES = {"SST-2": {"retain": 128, "forget": 16}, "tiny": {"retain": 8, "forget": 2}}


def make_rows(case: dict, count: int, seed: int):
    """A dataset of random tokens and labels."""
    from datasets import Dataset

    batches = bench.make_batches({**case, "rows": count, "batch_size": 1}, seed)
    return Dataset.from_list(
        [{"input_ids": batch["input_ids"][0].tolist(), "labels": int(batch["labels"][0])} for batch in batches]
    )


def serve(name: str, case: str, folder: str | None, repeats: int) -> dict:
    """Seconds of every repeat, and MB by which the peak grew in the first."""
    from hf_unlearn import SPEUnlearn, UnlearnConfig, UnlearnTrainer
    from hf_unlearn.runtime.cost import peak_memory_mb, reset_peak_memory

    sizes, settings = SIZES[case], dict(LINES[name])
    if "mask_samples" in settings:
        settings["mask_samples"] = sizes["retain"] // settings["mask_samples"]
    model = bench.make_model(bench.CASES[case], folder)
    forget, retain = (
        make_rows(bench.CASES[case], sizes[side], seed) for seed, side in enumerate(("forget", "retain"))
    )
    found = {"cpu_seconds": [], "peak_growth_mb": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as output:
            arguments = UnlearnConfig(
                output_dir=output,
                kl_rows=0,
                curvature_batch_size=16,
                disable_tqdm=True,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
            )
            trainer = UnlearnTrainer(
                model, SPEUnlearn(unlearning_rate=1e-6, **settings), arguments, forget_dataset=forget,
                retain_dataset=retain,
            )  # fmt: skip
            reset_peak_memory()
            before, start = peak_memory_mb(), time.process_time()
            trainer.train()
            found["cpu_seconds"].append(time.process_time() - start)
            found["peak_growth_mb"].append(peak_memory_mb() - before)
    return found


def compare(lines: dict) -> dict:
    """Every line over the dense one."""
    least = {name: (min(line["cpu_seconds"]), line["peak_growth_mb"][0]) for name, line in lines.items()}
    return {
        name: {"time": seconds / least["SO"][0], "memory": growth / least["SO"][1]}
        for name, (seconds, growth) in least.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=SIZES, default="SST-2")
    parser.add_argument("--repeats", type=int, default=2, help="requests of every line")
    parser.add_argument("--model", help="folder or name of an encoder of BERT's kind (default: random weights)")
    parser.add_argument("--line", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "spe_step.json")
    arguments = parser.parse_args()
    if arguments.line:
        print(json.dumps(serve(arguments.line, arguments.case, arguments.model, arguments.repeats)))
        return 0
    from hf_unlearn.runtime.hub import public_name
    from hf_unlearn.runtime.provenance import record_run

    command = [sys.executable, __file__, "--case", arguments.case, "--repeats", str(arguments.repeats)]
    command += ["--model", arguments.model] if arguments.model else []
    lines = {}
    for name in LINES:
        said = subprocess.run([*command, "--line", name], check=True, capture_output=True, text=True).stdout
        lines[name] = json.loads(said.splitlines()[-1])
    about = {
        "model": public_name(arguments.model) or "random weights",
        "case": arguments.case,
        **SIZES[arguments.case],
    }
    ratios = compare(lines)
    record_run(arguments.output, {**about, "seed": bench.bench.SEED, "lines": lines, "over_so": ratios})
    print("| request | time over SO's | peak over SO's |\n|---|---|---|")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio['time']:.2f} | {ratio['memory']:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

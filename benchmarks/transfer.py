# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`transfer` of an update onto a sharded checkpoint against copying it: wall time, and peak memory above the start.

A random bf16 Llama, whose tensors lie on disk as in memory, and a Mixtral, whose experts are one tensor in memory and
many on disk; the update moves every weight of the MLPs. Copying writes the same files and flushes them to the disk, as
a transfer does. Both take turns, each time in a process of its own, so a busy disk slows them alike; ratios are
medians over the rounds.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SEED = 0
ROUNDS = 3
WORK = ("copy", "transfer")
# About 2 GB each, in shards of 500 MB.
SIZES = {
    "Llama": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 14, "num_attention_heads": 16},
    "Mixtral": {
        "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 10, "num_attention_heads": 16,
        "num_key_value_heads": 4, "num_local_experts": 8,
    },
}  # fmt: skip
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def make(case: str, folder: Path, tiny: bool):
    """A checkpoint in `base`, and an update of its MLPs in `delta`."""
    import torch
    import transformers

    from hf_unlearn.deltas import UpdateDelta, delta_config
    from hf_unlearn.runtime.checkpoints import base_tensors

    sizes = (TINY | {"num_key_value_heads": 2} if case == "Mixtral" else TINY) if tiny else SIZES[case]
    config = getattr(transformers, f"{case}Config")(vocab_size=1000 if tiny else 32000, **sizes)
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    model = getattr(transformers, f"{case}ForCausalLM")(config)
    model.save_pretrained(folder / "base", max_shard_size="50KB" if tiny else "500MB")
    moved = {name: tensor for name, tensor in base_tensors(model).items() if ".mlp." in name}
    tensors = {name: 1e-3 * torch.randn(tensor.shape, dtype=torch.float32) for name, tensor in moved.items()}
    UpdateDelta(tensors, delta_config(moved, tied=[])).save_pretrained(folder / "delta")


def work(what: str, folder: Path) -> dict:
    """Seconds and peak memory (MB above what the process had before) of one of `WORK`."""
    import transformers.conversion_mapping  # noqa: F401  # what a first import costs belongs to no transfer

    from hf_unlearn.deltas import transfer
    from hf_unlearn.runtime.cost import peak_memory_mb, reset_peak_memory

    output = folder / what
    reset_peak_memory()
    before, start = peak_memory_mb(), time.perf_counter()
    if what == "transfer":
        transfer(folder / "delta", folder / "base", output)
    else:
        output.mkdir()
        for file in sorted((folder / "base").iterdir()):
            shutil.copyfile(file, output / file.name)
            with open(output / file.name, "rb") as handle:
                os.fsync(handle.fileno())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_memory_mb(), "start_mb": before}


def in_own_process(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, __file__, *arguments]
    return subprocess.run(run, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(case: str, folder: Path, tiny: bool) -> dict:
    in_own_process("--make", case, "--folder", str(folder), *(["--tiny"] if tiny else []))
    files = [*(folder / "base").glob("*.safetensors")]
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({what: json.loads(in_own_process("--work", what, "--folder", str(folder))) for what in WORK})
        for what in WORK:
            shutil.rmtree(folder / what)
    return {
        "checkpoint_mb": sum(file.stat().st_size for file in files) / 1e6,
        "shards": len(files),
        "update_mb": sum(file.stat().st_size for file in (folder / "delta").glob("*.safetensors")) / 1e6,
        "ratio": statistics.median(one["transfer"]["seconds"] / one["copy"]["seconds"] for one in rounds),
        "peak_mb": max(one["transfer"]["peak_mb"] for one in rounds),
        "start_mb": max(one["transfer"]["start_mb"] for one in rounds),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/transfer.json"))
    parser.add_argument("--tiny", action="store_true", help="models of a few kB, to try the script")
    for name in ("make", "work", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        return make(arguments.make, Path(arguments.folder), arguments.tiny)
    if arguments.work:
        return print(json.dumps(work(arguments.work, Path(arguments.folder))))
    from hf_unlearn.runtime.provenance import record_run

    cases = {}
    for case in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = found = measure(case, Path(folder), arguments.tiny)
        print(
            f"{case}: {found['checkpoint_mb']:,.0f} MB in {found['shards']} shards, update {found['update_mb']:,.0f} "
            f"MB: {found['ratio']:.2f}x the time of copying, peak memory {found['peak_mb']:,.0f} MB "
            f"({found['start_mb']:,.0f} before)"
        )
    record_run(arguments.output, {"seed": SEED, "cases": cases})


if __name__ == "__main__":
    main()

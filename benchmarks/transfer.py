# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`transfer` of an update onto a sharded checkpoint against copying it: wall time, time of processors, and memory.

A random bf16 Llama, whose tensors lie on disk as in memory, and a Mixtral, whose experts are one tensor in memory and
many on disk; the update moves every weight of the MLPs. `cp` only fills the page cache; a transfer promises more: its
files are on the disk when it ends, and so are those of `durable copy` (each file and the folder are flushed), which it
is compared with. They take turns, with the inputs in the page cache and nothing of another's left to be written;
ratios are medians over the rounds. Memory is that of a process of its own, and of a transfer that is not timed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SEED = 0
ROUNDS = 3
TIMED = ("cp", "durable copy", "transfer")
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


def timed(folder: Path) -> list[dict]:
    """Rounds of `TIMED`: seconds of the clock and of processors, and how busy the machine was before and after."""
    prepare(folder)
    rounds = []
    for _ in range(ROUNDS):
        rounds.append({})
        for what in TIMED:
            os.sync()
            load, before, start = os.getloadavg()[0], time.process_time(), time.perf_counter()
            perform(what, folder)
            cost = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - before}
            rounds[-1][what] = {**cost, "load_before": load, "load_after": os.getloadavg()[0]}
            shutil.rmtree(folder / what)
    return rounds


def prepare(folder: Path):
    """Do what is no part of a transfer: first imports, among them that of the architecture, and filling the cache."""
    import transformers.conversion_mapping  # noqa: F401

    import hf_unlearn.deltas

    hf_unlearn.deltas.stored.checkpoint_of(folder / "base")
    for file in (*folder.glob("base/*"), *folder.glob("delta/*")):
        with open(file, "rb") as handle:
            while handle.read(2**24):
                pass


def perform(what: str, folder: Path):
    from hf_unlearn.deltas import transfer
    from hf_unlearn.runtime.folders import flush

    output = folder / what
    if what == "transfer":
        transfer(folder / "delta", folder / "base", output)
        return
    output.mkdir()
    for file in sorted((folder / "base").iterdir()):
        shutil.copyfile(file, output / file.name)
        if what == "durable copy":
            flush(output / file.name)
    if what == "durable copy":
        flush(output)


def memory(folder: Path) -> dict:
    """Memory (MB) before a transfer and at most during it: all pages, and those that belong to no file."""
    from hf_unlearn.runtime.cost import peak_memory_mb, reset_peak_memory

    prepare(folder)
    reset_peak_memory()
    start, anonymous = peak_memory_mb(), [anonymous_mb()]
    done = threading.Event()

    def watch():
        while not done.wait(0.01):
            anonymous.append(anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    perform("transfer", folder)
    done.set()
    watcher.join()
    shutil.rmtree(folder / "transfer")
    return {
        "start_mb": start,
        "peak_mb": peak_memory_mb(),
        "anonymous_start_mb": anonymous[0],
        "anonymous_peak_mb": max(anonymous),
    }


def anonymous_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


def in_own_process(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = [sys.executable, __file__, *arguments]
    return subprocess.run(run, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(case: str, folder: Path, tiny: bool) -> dict:
    in_own_process("--make", case, "--folder", str(folder), *(["--tiny"] if tiny else []))
    used = json.loads(in_own_process("--work", "memory", "--folder", str(folder)))
    rounds = json.loads(in_own_process("--work", "rounds", "--folder", str(folder)))
    median = lambda other, unit: statistics.median(one["transfer"][unit] / one[other][unit] for one in rounds)
    return {
        "checkpoint_mb": size_mb(folder / "base"),
        "shards": len(list((folder / "base").glob("*.safetensors"))),
        "largest_tensor_mb": largest_mb(folder / "base"),
        "update_mb": size_mb(folder / "delta"),
        "ratio": median("durable copy", "seconds"),
        "ratio_to_cp": median("cp", "seconds"),
        "cpu_ratio": median("durable copy", "cpu_seconds"),
        "load_before": min(one[what]["load_before"] for one in rounds for what in TIMED),
        "load_after": max(one[what]["load_after"] for one in rounds for what in TIMED),
        **used,
        "rounds": rounds,
    }


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


def largest_mb(folder: Path) -> float:
    """Size of the largest stored tensor."""
    from hf_unlearn.runtime.checkpoints import Shards

    shards = Shards(folder, "model.safetensors")
    return max(one.end - one.begin for one in map(shards.stored, shards.files)) / 1e6


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
        folder = Path(arguments.folder)
        return print(json.dumps(memory(folder) if arguments.work == "memory" else timed(folder)))
    from hf_unlearn.runtime.provenance import record_run

    cases = {}
    for case in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            cases[case] = found = measure(case, Path(folder), arguments.tiny)
        print(
            f"{case}: {found['checkpoint_mb']:,.0f} MB in {found['shards']} shards, update {found['update_mb']:,.0f} "
            f"MB: {found['ratio']:.2f}x the time of a durable copy ({found['ratio_to_cp']:.2f}x of cp, "
            f"{found['cpu_ratio']:.1f}x the processors' time, load from {found['load_before']:.1f} to "
            f"{found['load_after']:.1f} on {os.cpu_count()} processors), peak memory "
            f"{found['peak_mb']:,.0f} MB ({found['start_mb']:,.0f} before), of it in no file "
            f"{found['anonymous_peak_mb']:,.0f} ({found['anonymous_start_mb']:,.0f} before)"
        )
    record_run(arguments.output, {"seed": SEED, "cases": cases})


if __name__ == "__main__":
    main()

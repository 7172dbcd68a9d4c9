# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The per-sample diagonal Fisher from batches of 16, whole and masked, against a loop over samples with autograd.

The model is an encoder of the size of MiniLM (6 layers, d 384, 22.7 M parameters) with random weights; all linear
layers of its encoder carry the Fisher, biases too. Every item does the same rows, the data's own labels, and the items
take turns, so that a busy machine slows all of them alike; what is compared are minima over the repeats, in wall time
and in CPU time (in which threads that wait for each other count too).

The loops make one backward a sample and add `grad ** 2`: of these weights alone, or of all parameters of the model, as
Algorithm 1 of SPE-Unlearn is usually written. Forward, backward and products are the same operations in both ways, so
long rows leave little to gain; the gain is in short ones, and in what a mask leaves out.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import curvature as bench
import torch


ROOT = Path(__file__).resolve().parents[1]
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
CASES = {
    "30 tokens": {"least": 15, "most": 45, "rows": 64, "batch_size": 16},
    "128 tokens": {"least": 128, "most": 128, "rows": 32, "batch_size": 16},
    "tiny": {"least": 4, "most": 9, "rows": 6, "batch_size": 3, "layers": 1, "width": 8},
}
SPARSITY = 0.9


def make_model(case: dict):
    """A random BERT with two classes, in eval mode."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(bench.SEED)
    width = case.get("width", 384)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=width,
        num_hidden_layers=case.get("layers", 6),
        num_attention_heads=width // 32 or 1,
        intermediate_size=4 * width,
        num_labels=2,
    )
    return BertForSequenceClassification(config).eval()


def make_batches(case: dict) -> list[dict]:
    """Rows of random tokens, longest first, padded to the longest of their batch."""
    generator = torch.Generator().manual_seed(bench.SEED + 1)
    lengths = (
        torch.randint(case["least"], case["most"] + 1, (case["rows"],), generator=generator).sort().values.flip(0)
    )
    batches = []
    for part in lengths.split(case["batch_size"]):
        ids = torch.randint(1000, 30000, (len(part), int(part[0])), generator=generator)
        mask = (torch.arange(int(part[0])) < part[:, None]).long()
        labels = torch.randint(2, (len(part),), generator=generator)
        batches.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
    return batches


def loop(model, batches, parameters) -> dict:
    """(1 / N) sum of the squared gradients of each row's own loss."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    totals = {name: torch.zeros_like(parameter.requires_grad_(True)) for name, parameter in parameters.items()}
    rows = 0
    for batch in batches:
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            model.zero_grad(set_to_none=True)
            length = int(mask.sum())
            model(ids[None, :length], attention_mask=mask[None, :length], labels=label[None]).loss.backward()
            for name, parameter in parameters.items():
                totals[name] += parameter.grad**2
            rows += 1
    model.zero_grad(set_to_none=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return {name: total / rows for name, total in totals.items()}


def even_mask(model, targets: list[str]) -> dict:
    """A tenth of the heads' and filters' rows and columns, evenly: what a mask of this sparsity leaves."""
    kept = {}
    for name in targets:
        parameter = model.get_parameter(name)
        down = "output.dense" in name
        if down and name.endswith("bias"):
            continue  # belongs to no structure
        size = parameter.shape[1 if down else 0]
        places = torch.arange(0, size, round(1 / (1 - SPARSITY)))
        kept[name] = (None, places) if down else (places, None)
    return kept


def measure(case: dict, repeats: int) -> dict:
    """Seconds of every item, ratios, and how far the Fisher of batches is from the loop's."""
    from hf_unlearn.curvature import Diagonal, select_targets

    model, batches = make_model(case), make_batches(case)
    weights = list(select_targets(model, TARGETS))
    names = [name for weight in weights for name in (weight, weight.replace("weight", "bias"))]
    kept = even_mask(model, names)
    fit = {"target_modules": TARGETS, "biases": True, "fisher": "empirical", "progress": False}
    items = {
        "loop, all parameters": lambda: loop(model, batches, dict(model.named_parameters())),
        "loop, these weights": lambda: loop(model, batches, {name: model.get_parameter(name) for name in names}),
        "batches": lambda: Diagonal().fit(model, batches, **fit),
        f"batches, mask of sparsity {SPARSITY}": lambda: Diagonal().fit(model, batches, kept=kept, **fit),
    }
    seconds = {item: {"wall": [], "cpu": []} for item in items}
    found = {}
    for _ in range(repeats):
        for item, run in items.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[item] = run()
            seconds[item]["wall"].append(time.perf_counter() - wall)
            seconds[item]["cpu"].append(time.process_time() - cpu)
    expected, fitted, masked = (found[item] for item in list(items)[1:])
    # The gradient at a bias of keys is 0, but for rounding: attention does not change with it.
    largest = max(
        float((fitted._eigenvalues(name).view_as(total) - total).abs().max() / total.abs().max())
        for name, total in expected.items()
        if not name.endswith("key.bias")
    )
    ours = {item: min(times["wall"]) for item, times in seconds.items()}
    ours_cpu = {item: min(times["cpu"]) for item, times in seconds.items()}
    batched = list(items)[2:]
    return {
        "settings": case,
        "seconds": seconds,
        "loop_over_batches": {
            f"{slow} / {fast}": {"wall": ours[slow] / ours[fast], "cpu": ours_cpu[slow] / ours_cpu[fast]}
            for slow in list(items)[:2]
            for fast in batched
        },
        "largest_difference_over_largest_entry": largest,
        "sums_bytes": {
            item: sum(tensor.nbytes for tensor in one.tensors.values()) for item, one in zip(batched, (fitted, masked))
        },
    }


def report(results: dict) -> str:
    lines = [
        "| rows | loop over samples | batches of 16 | wall time of the loop over that of batches | CPU time |",
        "|---|---|---|---|---|",
    ]
    for case, part in results["cases"].items():
        for name, ratio in part["loop_over_batches"].items():
            slow, fast = name.split(" / ")
            lines.append(f"| {case} | {slow} | {fast} | {ratio['wall']:.2f} | {ratio['cpu']:.2f} |")
        lines.append(f"| {case} | largest difference | {part['largest_difference_over_largest_entry']:.1e} | | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of every item")
    parser.add_argument("--case", choices=CASES, help="only this case")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "diagonal_fisher.json")
    arguments = parser.parse_args()
    from hf_unlearn.runtime.files import write_json

    threads = torch.get_num_threads()
    results = {
        "command": shlex.join(
            [f"OMP_NUM_THREADS={threads}", "python", "benchmarks/diagonal_fisher.py", *sys.argv[1:]]
        ),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": bench.cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "load_before": os.getloadavg()[0],
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "seed": bench.SEED,
        "cases": {},
    }
    for case in [arguments.case] if arguments.case else [case for case in CASES if case != "tiny"]:
        results["cases"][case] = measure(CASES[case], arguments.repeats)
        write_json(arguments.output, results)
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

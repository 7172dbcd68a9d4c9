# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The per-sample diagonal Fisher from batches of 16, whole and masked, against a loop over samples with autograd.

    OMP_NUM_THREADS=2 python benchmarks/diagonal_fisher.py

The model is an encoder of the size of MiniLM (6 layers, d 384, 22.7 M parameters) with random weights, or the one of
`--model`; all linear layers of its encoder carry the Fisher, biases too. Tokens are random, and lengths those of the
case; "SST-2" draws them as SST-2's training rows have them (13 tokens on average). Every item does the same rows, the
data's own labels, and the items take turns, so that a busy machine slows all of them alike; what is compared are
minima over the repeats, in wall time and in CPU time (in which threads that wait for each other count too).

The loops make one backward a sample and add `grad ** 2`: of these weights alone, or of all parameters of the model, as
Algorithm 1 of SPE-Unlearn is usually written. "products alone" is the floor of batches: nothing but the matrix
products of the same sizes (forward, backward of activations, the gradient of every row), at the rate that this machine
has for them, without attention, activations, squares or sums. Forward, backward and products are the same operations
in both ways, so long rows leave little to gain; the gain is in short ones, and in what a mask leaves out.

"one walk" is Algorithm 1 as the paper prints it: F of all heads and filters and the gradients of all masks from one
backward. "two walks" is what `SPEUnlearn` does: the masks' gradients, then F of the tenth that a mask keeps. The
memory of each is the growth of a process of its own.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import curvature as bench
import numpy as np
import torch


ROOT = Path(__file__).resolve().parents[1]
TARGETS = r".*encoder\.layer\.\d+\..*(query|key|value|dense)"
QUANTILES = (0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
CASES = {
    "SST-2": {"quantiles": (3, 4, 6, 10, 18, 27, 45, 66), "rows": 64, "batch_size": 16},
    "30 tokens": {"least": 15, "most": 45, "rows": 64, "batch_size": 16},
    "128 tokens": {"least": 128, "most": 128, "rows": 32, "batch_size": 16},
    "tiny": {"least": 4, "most": 9, "rows": 6, "batch_size": 3, "layers": 1, "width": 8},
}
SPARSITY = 0.9


def make_model(case: dict, folder: str | None = None):
    """A random BERT with two classes, or the encoder of a folder under a random head, in eval mode."""
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    torch.manual_seed(bench.SEED)
    if folder is not None:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
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


def make_batches(case: dict, seed: int = bench.SEED) -> list[dict]:
    """Rows of random tokens, longest first, padded to the longest of their batch."""
    generator = torch.Generator().manual_seed(seed + 1)
    if "quantiles" in case:
        places = torch.rand(case["rows"], generator=generator)
        lengths = torch.from_numpy(np.interp(places, QUANTILES, case["quantiles"])).round().long()
    else:
        lengths = torch.randint(case["least"], case["most"] + 1, (case["rows"],), generator=generator)
    lengths = lengths.sort().values.flip(0)
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


def one_walk(model, batches, fit: dict):
    """Algorithm 1 as it is printed: F of all heads and filters, and masks' gradients, from one backward."""
    from hf_unlearn.curvature import Diagonal
    from hf_unlearn.structure import MaskGradients, MaskStatistics, find_structures

    structures = find_structures(model)
    statistics = MaskStatistics.empty(structures)

    class Taking(list):
        """Batches; when the next one is asked for, masks' gradients of the last one are taken."""

        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                if masks._found:
                    statistics.add(masks.take())

    with MaskGradients(model, structures) as masks:
        fisher = Diagonal().fit(model, Taking(batches), **fit)
    return fisher, statistics


def two_walks(model, batches, fit: dict, kept: dict):
    """What `SPEUnlearn` does: masks' gradients, then F of what is kept."""
    from hf_unlearn.curvature import Diagonal
    from hf_unlearn.structure import find_structures, mask_statistics

    statistics = mask_statistics(model, batches, find_structures(model))
    return Diagonal().fit(model, batches, kept=kept, **fit), statistics


def products_alone(model, batches, weights: list[str]):
    """Matrix products of batches, of the sizes of the weights: forward, backward of activations, gradients of rows."""
    sizes = Counter(tuple(model.get_parameter(name).shape) for name in weights)
    for (d_out, d_in), count in sizes.items():
        weight, product = torch.ones(d_out, d_in), torch.empty(d_out, d_in)
        for batch in batches:
            lengths = batch["attention_mask"].sum(1).tolist()
            inputs, gradients = torch.ones(sum(lengths), d_in), torch.ones(sum(lengths), d_out)
            outputs, back = torch.empty_like(gradients), torch.empty_like(inputs)
            for _ in range(count):
                torch.mm(inputs, weight.T, out=outputs)
                torch.mm(gradients, weight, out=back)
                for x, y in zip(inputs.split(lengths), gradients.split(lengths)):
                    torch.mm(y.T, x, out=product)


def make_items(case: dict, folder: str | None = None) -> dict:
    """Name -> what is measured."""
    from hf_unlearn.curvature import Diagonal, select_targets

    model, batches = make_model(case, folder), make_batches(case)
    weights = list(select_targets(model, TARGETS))
    names = [name for weight in weights for name in (weight, weight.replace("weight", "bias"))]
    kept = even_mask(model, names)
    fit = {"target_modules": TARGETS, "biases": True, "fisher": "empirical", "progress": False}
    return {
        "loop, all parameters": lambda: loop(model, batches, dict(model.named_parameters())),
        "loop, these weights": lambda: loop(model, batches, {name: model.get_parameter(name) for name in names}),
        "batches": lambda: Diagonal().fit(model, batches, **fit),
        f"batches, mask of sparsity {SPARSITY}": lambda: Diagonal().fit(model, batches, kept=kept, **fit),
        "products alone": lambda: products_alone(model, batches, weights),
        "one walk": lambda: one_walk(model, batches, fit),
        "two walks": lambda: two_walks(model, batches, fit, kept),
    }


def measure(case: dict, repeats: int, folder: str | None = None) -> dict:
    """Seconds of every item, ratios, and how far the Fisher of batches is from the loop's."""
    items = make_items(case, folder)
    seconds = {item: {"wall": [], "cpu": []} for item in items}
    found = {}
    for _ in range(repeats):
        for item, run in items.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[item] = run()
            seconds[item]["wall"].append(time.perf_counter() - wall)
            seconds[item]["cpu"].append(time.process_time() - cpu)
    expected, fitted, masked = (found[item] for item in list(items)[1:4])
    # The gradient at a bias of keys is 0, but for rounding: attention does not change with it.
    largest = max(
        float((fitted._eigenvalues(name).view_as(total) - total).abs().max() / total.abs().max())
        for name, total in expected.items()
        if not name.endswith("key.bias")
    )
    for key, squares in found["two walks"][1].squares.items():
        torch.testing.assert_close(
            found["one walk"][1].squares[key], squares, rtol=1e-3, atol=1e-5 * float(squares.max())
        )
    least = {item: {clock: min(times[clock]) for clock in times} for item, times in seconds.items()}
    ratio = lambda one, other: {clock: least[one][clock] / least[other][clock] for clock in ("wall", "cpu")}
    loops, batched = list(items)[:2], list(items)[2:5]
    return {
        "settings": case,
        "seconds": seconds,
        "loop_over_batches": {f"{slow} / {fast}": ratio(slow, fast) for slow in loops for fast in batched},
        "two_walks_over_one": ratio("two walks", "one walk"),
        "largest_difference_over_largest_entry": largest,
        "sums_bytes": {
            item: sum(tensor.nbytes for tensor in one.tensors.values()) for item, one in zip(batched, (fitted, masked))
        },
    }


def measure_peaks(name: str, folder: str | None) -> dict[str, float]:
    """MB by which the peak of a process of its own grows, of one walk and of two."""
    command = [sys.executable, __file__, "--case", name, *(["--model", folder] if folder else []), "--peak"]
    run = lambda item: subprocess.run([*command, item], check=True, capture_output=True, text=True).stdout
    return {item: float(run(item).split()[-1]) for item in ("one walk", "two walks")}


def tell_peak(case: dict, item: str, folder: str | None):
    from hf_unlearn.runtime.cost import peak_memory_mb, reset_peak_memory

    run = make_items(case, folder)[item]
    reset_peak_memory()
    before = peak_memory_mb()
    run()
    print(peak_memory_mb() - before)


def report(results: dict) -> str:
    lines = [
        "| rows | loop over samples | batches of 16 | wall time of the loop over that of batches | CPU time |",
        "|---|---|---|---|---|",
    ]
    for case, part in results["cases"].items():
        for name, ratio in part["loop_over_batches"].items():
            slow, fast = name.split(" / ")
            lines.append(f"| {case} | {slow} | {fast} | {ratio['wall']:.2f} | {ratio['cpu']:.2f} |")
        walks = part["two_walks_over_one"]
        peaks = " and ".join(f"{mb:.0f} MB" for mb in part["peak_growth_mb"].values())
        told = f"{walks['wall']:.2f} | {walks['cpu']:.2f} |"
        lines.append(f"| {case} | two walks over one, time; peaks of one and of two | {peaks} | {told}")
        lines.append(f"| {case} | largest difference | {part['largest_difference_over_largest_entry']:.1e} | | |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="runs of every item")
    parser.add_argument("--case", choices=CASES, help="only this case")
    parser.add_argument("--model", help="folder or name of an encoder of BERT's kind (default: random weights)")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "diagonal_fisher.json")
    arguments = parser.parse_args()
    from hf_unlearn.runtime.files import write_json
    from hf_unlearn.runtime.hub import public_name
    from hf_unlearn.runtime.provenance import without_places

    if arguments.peak:
        tell_peak(CASES[arguments.case], arguments.peak, arguments.model)
        return 0
    threads = torch.get_num_threads()
    results = {
        "command": shlex.join(
            [f"OMP_NUM_THREADS={threads}", "python", "benchmarks/diagonal_fisher.py", *without_places(sys.argv[1:])]
        ),
        "model": public_name(arguments.model) or "random weights",
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
        results["cases"][case] = measure(CASES[case], arguments.repeats, arguments.model)
        results["cases"][case]["peak_growth_mb"] = measure_peaks(case, arguments.model)
        write_json(arguments.output, results)
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

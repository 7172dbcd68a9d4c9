# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Mask gradients of every row of a batch, against one plain backward of the same batch.

    python benchmarks/mask_fisher.py

The model is a BERT of MiniLM's size (6 layers, d 384, 12 heads, 1536 filters, random weights, fp32) with a classifier;
the data are random tokens without padding, 16 rows of 32 and of 128. "plain" is a forward and backward of a training
step: gradients of all weights, by autograd alone. "activations" is the least that any mask gradient needs: weights
frozen, and the backward down to the first heads' outputs. "masks" is `mask_statistics`, sums and squares of every row;
"blocks" keeps products within each site too. "rows one by one" is what batches would be without the identity: a
backward for each row. All take turns, and the medians of the ratios of a turn are told.
"""

import argparse
import contextlib
import functools
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "full": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "tiny": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
}
SEED, ROWS, LENGTHS, BATCHES = 0, 16, (32, 128), 1


def make_model(case: str):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(SEED)
    return BertForSequenceClassification(BertConfig(vocab_size=2000, num_labels=2, **CASES[case])).eval()


def make_batches(length: int) -> list[dict]:
    generator = torch.Generator().manual_seed(SEED)
    draw = functools.partial(torch.randint, generator=generator)
    one = lambda: {
        "input_ids": draw(5, 2000, (ROWS, length)),
        "attention_mask": torch.ones(ROWS, length, dtype=torch.long),
        "labels": draw(0, 2, (ROWS,)),
    }
    return [one() for _ in range(BATCHES)]


def begin(module, args):
    """A pre-hook at which the graph begins."""
    args[0].requires_grad_()


def ways(model, batches):
    """Name -> a pass over the batches."""
    from hf_unlearn.runtime.modules import measuring
    from hf_unlearn.structure import find_structures, mask_statistics

    structures = find_structures(model)
    first = model.get_submodule(structures.sites["heads.0"].module)

    def plain():
        for batch in batches:
            model(**batch).loss.backward()
            model.zero_grad(set_to_none=True)

    def activations():
        with measuring(model), contextlib.ExitStack() as stack:
            stack.callback(first.register_forward_pre_hook(begin).remove)
            for batch in batches:
                model(**batch).loss.backward()

    single = [
        {name: value[row : row + 1] for name, value in batch.items()} for batch in batches for row in range(ROWS)
    ]
    return {
        "plain": plain,
        "activations": activations,
        "masks": lambda: mask_statistics(model, batches, structures),
        "blocks": lambda: mask_statistics(model, batches, structures, blocks=True),
        "rows one by one": lambda: mask_statistics(model, single, structures),
    }


def measure(case: str, length: int, repeats: int) -> dict:
    named = ways(make_model(case), make_batches(length))
    seconds = {name: [] for name in named}
    for turn in range(repeats + 1):
        for name, once in named.items():
            began = time.perf_counter()
            once()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - began)
    over = lambda name, of: statistics.median(a / b for a, b in zip(seconds[name], seconds[of], strict=True))
    return {
        "rows": ROWS * BATCHES,
        "tokens": length,
        "seconds": seconds,
        "over_plain": {name: over(name, "plain") for name in named},
        "over_activations": {name: over(name, "activations") for name in named},
    }


def report(results: dict) -> str:
    lines = ["| tokens | pass | ms | over plain | over activations |", "|---|---|---|---|---|"]
    for row in results["lengths"]:
        for name, seconds in row["seconds"].items():
            lines.append(
                f"| {row['tokens']} | {name} | {1000 * statistics.median(seconds):.0f} "
                f"| {row['over_plain'][name]:.2f} | {row['over_activations'][name]:.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="turns (default: %(default)s)")
    parser.add_argument("--case", choices=CASES, default="full")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "mask_fisher.json")
    arguments = parser.parse_args()

    from hf_unlearn.runtime.files import write_json
    from hf_unlearn.runtime.provenance import environment, utc_now

    results = {
        "command": shlex.join(["python", "benchmarks/mask_fisher.py", *sys.argv[1:]]),
        "date": utc_now(),
        "seed": SEED,
        "environment": environment(),
        "settings": {**CASES[arguments.case], "repeats": arguments.repeats},
        "lengths": [measure(arguments.case, length, arguments.repeats) for length in LENGTHS],
    }
    write_json(arguments.output, results)
    print(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

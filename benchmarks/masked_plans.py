# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a mask saves of a curvature at 7B and 70B: plans, by the sizes of the weights alone; nothing is measured.

    python benchmarks/masked_plans.py

Models are of the sizes of Llama-2-7B and Llama-2-70B (grouped queries) on the meta device, the data those of a fit of
the paper, 4,000 sequences of 512 tokens. Masks of heads and filters are taken as spread evenly over the layers; 0 %
is no mask: the same weights, those of all heads and filters. `hf-unlearn curvature plan` does this for one model.
"""

import argparse
import shlex
import sys
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "Llama-2-7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "Llama-2-70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
    },
    "tiny": {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50},
}
SPARSITIES = (0.0, 0.5, 0.9)
SEQUENCES, LENGTH = 4000, 512


def make_model(name: str):
    """On the meta device, in bf16; heads are 128 wide."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 32000, **MODELS[name]}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=sizes["hidden_size"] // 128)).bfloat16()


def make_plans(name: str) -> list[dict]:
    """A row for each sparsity and kind of curvature."""
    from hf_unlearn.cli.curvature_plan import COMPARED, compare_plans, plan_facts
    from hf_unlearn.methods.masking import planned_mask

    model, rows = make_model(name), []
    for sparsity in SPARSITIES:
        mask = planned_mask({"sparsity": sparsity}, model)
        plans = compare_plans(model, COMPARED, mask, sequences=SEQUENCES, sequence_length=LENGTH)
        rows += [
            {"model": name, "sparsity": sparsity, **plan_facts(cost, masked)}
            for (_, masked), cost in plans.items()
            if masked
        ]
    return rows


def report(rows: list[dict]) -> str:
    """A table of the rows, kinds side by side."""
    from hf_unlearn.curvature.costs import format_widths
    from hf_unlearn.report.tables import markdown_table
    from hf_unlearn.runtime.cost import format_bytes, format_flops

    header = [
        "model, sparsity",
        "widths of factors",
        "K-FAC holds",
        "EK-FAC",
        "diagonal",
        "eigh",
        "EK-FAC's fit",
        "step",
    ]
    body = []
    for name, sparsity in dict.fromkeys((row["model"], row["sparsity"]) for row in rows):
        here = {row["kind"]: row for row in rows if (row["model"], row["sparsity"]) == (name, sparsity)}
        work = {stage["name"]: stage["flops"] for stage in here["ekfac"]["stages"]}
        body.append(
            [
                f"{name}, {100 * sparsity:.0f} %",
                format_widths({int(width): count for width, count in here["ekfac"]["factors"].items()}),
                *(format_bytes(here[kind]["factor_bytes"]) for kind in ("kfac", "ekfac", "diagonal")),
                *map(format_flops, (work["eigh"], here["ekfac"]["fit_flops"], work["solve"])),
            ]
        )
    return markdown_table(header, body, align="ll")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="only this one")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "masked_plans.json")
    arguments = parser.parse_args()
    from hf_unlearn.runtime.files import write_json

    names = [arguments.model] if arguments.model else [name for name in MODELS if name != "tiny"]
    results = {
        "command": shlex.join(["python", "benchmarks/masked_plans.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "sequences": SEQUENCES,
        "length": LENGTH,
        "rows": [row for name in names for row in make_plans(name)],
    }
    write_json(arguments.output, results)
    print(report(results["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

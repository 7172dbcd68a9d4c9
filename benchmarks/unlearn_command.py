# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn unlearn` with nothing but a model and rows, as a user gives it: what is forgotten, the KL, the time.

One run a seed, each in a process of its own. `--held` names rows that the command never sees: the KL on them is what
the limit was kept for. Results are recorded under `--label`, beside those of other models.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
# Local places are no business of whoever reads the record.
PLACES = ("model", "forget", "retain", "held")


def run(options, seed: int, output: Path) -> dict:
    """One run of the command, from its `--json`, its clock and its ledger."""
    from hf_unlearn.requests.ledger import LOG_FILE

    rows = ["--model", options.model, "--forget", options.forget, "--retain", options.retain]
    command = [sys.executable, "-m", "hf_unlearn", "unlearn", *rows, "--output", str(output), "--json", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run([*command, f"seed={seed}", *options.settings], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    facts = json.loads(done.stdout)
    if done.returncode:
        return {"seed": seed, "seconds": seconds, "error": facts["error"]["message"]}
    found = {name: facts[name] for name in ("original", "unlearned", "measured_on", "cost", "kl_limit", "settings")}
    line = json.loads((output / LOG_FILE).read_text().splitlines()[-1])
    found |= {"seed": seed, "seconds": seconds, "chosen_steps": line.get("chosen_steps")}
    return found | ({"held": held(options, output / "model")} if options.held else {})


def held(options, unlearned: Path) -> dict:
    """Probability before and after, and the KL, on rows that the command has not seen."""
    import math

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hf_unlearn.data.collators import CausalCollator
    from hf_unlearn.data.inputs import read_dataset
    from hf_unlearn.data.prompts import QATemplate, tokenize_qa
    from hf_unlearn.evaluation.specificity import TokenKL
    from hf_unlearn.runtime.loading import padding_id

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = tokenize_qa(read_dataset(options.held, "held")[0], tokenizer, QATemplate(), 512)
    collate = CausalCollator(padding_id(tokenizer))
    batches = [collate([row]) for row in data]
    meter = TokenKL(AutoModelForCausalLM.from_pretrained(options.model), batches, 2**32, top_k="auto")
    result = meter(AutoModelForCausalLM.from_pretrained(unlearned))
    return {
        "rows": len(data),
        "probability_before": math.exp(-result.reference_nll),
        "probability_after": math.exp(-result.nll),
        "kl": result.mean,
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in PLACES:
        parser.add_argument(f"--{name}", required=name != "held")
    parser.add_argument("--label", required=True, help="name of the model in the record")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/unlearn_command.json")
    parser.add_argument("settings", nargs="*", help="key=value, handed to the command")
    options = parser.parse_args(arguments)

    from hf_unlearn.runtime.files import write_json
    from hf_unlearn.runtime.provenance import environment

    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run(options, seed, Path(folder) / "request"))
        print(json.dumps(runs[-1], indent=1))
    places = [part for name in PLACES if getattr(options, name) for part in (f"--{name}", name.upper())]
    seeds = ["--seeds", *map(str, options.seeds)]
    command = ["python", "benchmarks/unlearn_command.py", *places, "--label", options.label, *seeds]
    recorded = json.loads(options.output.read_text()) if options.output.is_file() else {}
    recorded[options.label] = {
        "command": shlex.join([*command, *(["--", *options.settings] if options.settings else [])]),
        "environment": environment(),
        "runs": runs,
    }
    write_json(options.output, recorded)


if __name__ == "__main__":
    main()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FAC and EK-FAC fits against kronfluence and curvlinops: time, peak memory, agreement. `make bench` runs it.

Every item lives in a process of its own, on one thread, with its own copy of the same random Llama and the same
tokens. The processes take turns (A B C ... A B C ...), so a busy machine slows all of them alike; all this three times
over with new processes. Time is CPU time of the process, and what is compared are ratios inside one run. Peak memory
is the highest resident size of a process's first run above the resident size just before it, when the model is loaded
and every module and thread buffer was warmed up on a tiny model; the median of three.

One sampled label a position; 6 MLP modules. Only passes over the data count: nothing is written to disk, and
eigendecompositions are in no item (`whole_fit_cpu_seconds` has ours with them). kronfluence gets a mask without each
sequence's last token, so that its factors are the same matrices as ours.
"""

import argparse
import copy
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
SEED = 0
ROUNDS = 3
CASES = {
    "small_head": {"vocab_size": 2000, "sequences": 8, "length": 256, "batch_size": 4},
    "large_head": {"vocab_size": 32000, "sequences": 4, "length": 256, "batch_size": 2},
}
TINY = {"vocab_size": 64, "sequences": 2, "length": 16, "batch_size": 1}
PACKAGES = ("torch", "transformers", "kronfluence", "curvlinops-for-pytorch")
AIMS = {  # item: {what it is measured against: highest ratio of CPU time}
    "hf_unlearn K-FAC": {"kronfluence covariance": 0.85, "curvlinops K-FAC": 0.75, "K-FAC limit": None},
    "hf_unlearn EK-FAC correction": {"kronfluence lambda": 0.62},
}


def make_model(case: dict, tiny: bool = False):
    """A random fp32 Llama: d 512, ffn 1376, 2 layers or as many as the case says (d 32, ffn 48 when tiny)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    width, inner = (32, 48) if tiny else (512, 1376)
    config = LlamaConfig(
        vocab_size=case["vocab_size"],
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=case.get("layers", 2),
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=case["length"],
        tie_word_embeddings=False,
        use_cache=False,
    )
    return LlamaForCausalLM(config).eval()


def make_batches(case: dict) -> list[dict]:
    """`sequences / batch_size` batches of random tokens, labels the tokens, nothing padded."""
    import torch

    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(case["vocab_size"], (case["sequences"], case["length"]), generator=generator)
    return [
        {"input_ids": chunk, "attention_mask": torch.ones_like(chunk), "labels": chunk.clone()}
        for chunk in ids.split(case["batch_size"])
    ]


# Items: (model, batches) -> run. `run()` does the work once; ours return the curvature, whose metadata has the stages.


def forward_backward(model, batches):
    """The floor: forward, loss, backward through activations to the embedding, no weight gradients or factors."""
    model.requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())

    def run():
        for batch in batches:
            model(**batch).loss.backward()

    return run


def limit(model, batches):
    """The least that K-FAC can cost: forward, backward to the lowest MLP, half of each square product."""
    import torch

    model.requires_grad_(False)
    lowest = model.model.layers[0].mlp
    for module in (lowest.gate_proj, lowest.up_proj):
        module.register_forward_hook(lambda module, args, output: output.requires_grad_())
    narrow, wide = model.config.hidden_size, model.config.intermediate_size
    products = [  # inputs of gate and up (shared) and of down, gradients of gate, up and down
        (torch.randn(batches[0]["input_ids"].numel(), width), torch.zeros(width // 2, width))
        for width in (narrow, wide, wide, wide, narrow)
    ]

    def run():
        for batch in batches:
            model(**batch).loss.backward()
            for _ in model.model.layers:
                for rows, total in products:
                    total.addmm_(rows[:, : len(total)].T, rows)

    return run


def training_step(model, batches):
    """Forward and backward with weight gradients, as training does."""

    def run():
        for batch in batches:
            model.zero_grad(set_to_none=True)
            model(**batch).loss.backward()

    return run


def kfac(model, batches, fisher="sampled"):
    """Our K-FAC; its stage "factors" counts."""
    from hf_unlearn.curvature import KFAC

    return lambda: KFAC().fit(model, batches, fisher=fisher, seed=SEED, progress=False)


def ekfac(model, batches):
    """Our EK-FAC; its stage "correction" counts."""
    from hf_unlearn.curvature import EKFAC

    return lambda: EKFAC().fit(model, batches, fisher="sampled", seed=SEED, progress=False)


def _mlp_names(model) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith(("gate_proj", "up_proj", "down_proj"))]


def _kronfluence(model, empirical=False, names=None, cpu=True):
    """The wrapped model, its state, task and arguments, as kronfluence's language-model example sets them up.

    Tracked are the modules `names`, all MLP modules by default.
    """
    import torch
    import torch.nn.functional as F
    from kronfluence.analyzer import prepare_model
    from kronfluence.arguments import FactorArguments
    from kronfluence.task import Task
    from kronfluence.utils.state import State

    names = names or _mlp_names(model)

    class LanguageModeling(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            logits = logits[:, :-1].float().flatten(0, 1)
            labels = batch["labels"][:, 1:].flatten()
            if sample:
                with torch.no_grad():
                    labels = torch.multinomial(logits.detach().softmax(-1), 1).flatten()
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return names

        def get_attention_mask(self, batch):
            mask = batch["attention_mask"].clone()
            mask[:, -1] = 0
            return mask

    task = LanguageModeling()
    state = State(cpu=cpu)
    return prepare_model(model, task), state, task, FactorArguments(strategy="ekfac", use_empirical_fisher=empirical)


def kronfluence_covariance(model, batches, empirical=False):
    """kronfluence's covariance stage."""
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader

    model, state, task, arguments = _kronfluence(model, empirical)
    return lambda: fit_covariance_matrices_with_loader(model, state, task, batches, arguments, disable_tqdm=True)[1]


def kronfluence_lambda(model, batches):
    """kronfluence's lambda stage; covariances and eigenvectors are made before the clock starts."""
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader, perform_eigendecomposition

    model, state, task, arguments = _kronfluence(model)
    factors = fit_covariance_matrices_with_loader(model, state, task, batches, arguments, disable_tqdm=True)[1]
    eigen = perform_eigendecomposition(factors, model, state, arguments, disable_tqdm=True)
    del factors
    return lambda: fit_lambda_matrices_with_loader(
        model, state, task, batches, arguments, eigen_factors=eigen, disable_tqdm=True
    )[1]


def curvlinops_kfac(model, batches):
    """curvlinops' K-FAC with one Monte-Carlo label, determinism check off, data sizes given."""
    import torch
    from curvlinops import KFACLinearOperator

    class Logits(torch.nn.Module):
        """Logits of the positions that predict, as (batch, classes, positions), which cross-entropy takes."""

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, batch):
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return logits[:, :-1].transpose(1, 2)

    names = set(_mlp_names(model))
    model.requires_grad_(False)
    weights = [module.weight.requires_grad_() for name, module in model.named_modules() if name in names]
    data = [(batch, batch["labels"][:, 1:]) for batch in batches]
    wrapped = Logits(model)
    loss = torch.nn.CrossEntropyLoss(reduction="sum")

    def run():
        operator = KFACLinearOperator(
            wrapped,
            loss,
            weights,
            data,
            check_deterministic=False,
            fisher_type="mc",
            mc_samples=1,
            num_data=sum(len(labels) for _, labels in data),
            num_per_example_loss_terms=data[0][1].shape[1],
            batch_size_fn=lambda batch: len(batch["input_ids"]),
        )
        operator.compute_kronecker_factors()
        return operator

    return run


ITEMS = {
    "forward + backward": forward_backward,
    "training step": training_step,
    "K-FAC limit": limit,
    "hf_unlearn K-FAC": kfac,
    "kronfluence covariance": kronfluence_covariance,
    "curvlinops K-FAC": curvlinops_kfac,
    "hf_unlearn EK-FAC correction": ekfac,
    "kronfluence lambda": kronfluence_lambda,
}
AGREEMENT = "agreement"
STAGES = {"hf_unlearn K-FAC": "factors", "hf_unlearn EK-FAC correction": "correction"}


def resident_bytes(peak: bool = False) -> int:
    """Resident size of this process now, or its peak since the last `reset_peak()` (Linux)."""
    key = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def worker(item: str, case_name: str) -> None:
    """Set up one item, then run it once for every line on stdin; each run prints a JSON line with its cost."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    if item == AGREEMENT:
        print(json.dumps(agreement(make_model(CASES[case_name]), make_batches(CASES[case_name]))))
        return
    wall_clock = time.perf_counter
    time.perf_counter = time.process_time  # hf_unlearn notes the seconds of each stage with it
    warm = ITEMS[item](make_model(TINY, tiny=True), make_batches(TINY))
    warm()
    del warm
    case = CASES[case_name]
    run = ITEMS[item](make_model(case), make_batches(case))
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the set-up freed must not hide what the first run takes
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        before = resident_bytes()
        reset_peak()
        wall, cpu = wall_clock(), time.process_time()
        result = run()
        cost = {"cpu": time.process_time() - cpu, "wall": wall_clock() - wall}
        cost["peak_mib"] = (resident_bytes(peak=True) - before) / 2**20
        if item in STAGES:
            stage = result.metadata["stages"][STAGES[item]]
            cost["whole_cpu"], cost["cpu"] = cost["cpu"], stage["seconds"]
            cost["peak_mib"] = (stage["peak_memory_bytes"] - before) / 2**20
        del result
        gc.collect()
        print(json.dumps(cost), flush=True)


def agreement(model, batches) -> dict[str, float]:
    """Largest relative difference (Frobenius, over the 6 modules) of our A and S from kronfluence's, dataset labels.

    Ours are put together again from their eigendecompositions, so the error of those is in it.
    """
    theirs = kronfluence_covariance(copy.deepcopy(model), batches, empirical=True)()
    ours = kfac(model, batches, fisher="empirical")()
    differences = {"A": 0.0, "S": 0.0}
    for name in _mlp_names(model):
        sides = {"A": (f"input.{ours.metadata['targets'][f'{name}.weight']['input']}", "activation")}
        sides["S"] = (f"output.{name}.weight", "gradient")
        for factor, (key, kind) in sides.items():
            values, vectors = (ours.tensors[f"{part}.{key}"].double() for part in ("values", "vectors"))
            reference = theirs[f"{kind}_covariance"][name].double() / theirs[f"num_{kind}_covariance_processed"][name]
            difference = (vectors * values) @ vectors.T - reference
            differences[factor] = max(differences[factor], (difference.norm() / reference.norm()).item())
    return differences


class Worker:
    """A child process that runs one item whenever asked.

    This process stays small (no torch): a child's peak memory starts at what its parent held when it was forked.
    """

    def __init__(self, item: str, case: str):
        command = [sys.executable, __file__, "--worker", item, "--case", case]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        self.first_line = self._read()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.process.args)} ended with code {self.process.wait()}")
        return json.loads(line)

    def run(self) -> dict:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(case_name: str, items: list[str], repeats: int) -> dict[str, dict]:
    """Costs of each item over ROUNDS processes of it: the first run gives the peak memory, `repeats` later ones times.

    Both depend on the mood of a process (where its memory lies) by up to 10 %, so one process is not enough.
    """
    case = CASES[case_name]
    tokens = case["sequences"] * case["length"]
    peaks, runs = {item: [] for item in items}, {item: [] for item in items}
    for number in range(ROUNDS):
        print(f"{case_name}: round {number + 1} of {ROUNDS}", file=sys.stderr)
        workers = {item: Worker(item, case_name) for item in items}
        for item, process in workers.items():
            peaks[item].append(process.run()["peak_mib"])
        for _ in range(repeats):
            for item, process in workers.items():
                runs[item].append(process.run())
        for process in workers.values():
            process.close()
    rows = {}
    for item in items:
        cpu = [run["cpu"] for run in runs[item]]
        rows[item] = {
            "cpu_ms_per_token_median": 1e3 * statistics.median(cpu) / tokens,
            "cpu_ms_per_token_min": 1e3 * min(cpu) / tokens,
            "tokens_per_second": tokens / statistics.median(cpu),
            "peak_mib": statistics.median(peaks[item]),
            "peaks_mib": peaks[item],
            "cpu_seconds": cpu,
            "wall_seconds": [run["wall"] for run in runs[item]],
        }
        if item in STAGES:
            rows[item]["whole_fit_cpu_seconds"] = [run["whole_cpu"] for run in runs[item]]
    return rows


def ratios(rows: dict[str, dict]) -> dict[str, dict]:
    """Ours over each peer: the median over repeats of the ratio inside a repeat, ratios of minima and peaks."""
    table = {}
    for ours, peers in AIMS.items():
        for peer, aim in peers.items():
            pairs = zip(rows[ours]["cpu_seconds"], rows[peer]["cpu_seconds"])
            table[f"{ours} / {peer}"] = {
                "time_median": statistics.median(a / b for a, b in pairs),
                "time_min": min(rows[ours]["cpu_seconds"]) / min(rows[peer]["cpu_seconds"]),
                "aim": aim,
                "peak": rows[ours]["peak_mib"] / rows[peer]["peak_mib"],
            }
    return table


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def report(results: dict) -> str:
    """The results as two Markdown tables a case."""
    text = []
    for case, part in results["cases"].items():
        settings = ", ".join(f"{key} {value}" for key, value in CASES[case].items())
        text += [
            f"\n{case} ({settings})\n",
            "| item | ms/token median | min | tokens/s | peak MiB |",
            "|---|---|---|---|---|",
        ]
        for item, row in part["items"].items():
            text.append(
                f"| {item} | {row['cpu_ms_per_token_median']:.3f} | {row['cpu_ms_per_token_min']:.3f} "
                f"| {row['tokens_per_second']:.0f} | {row['peak_mib']:.0f} |"
            )
        text += ["\n| ratio | time (median) | time (min) | aim | peak |", "|---|---|---|---|---|"]
        for name, row in part["ratios"].items():
            times = f"{row['time_median']:.2f} | {row['time_min']:.2f}"
            text.append(f"| {name} | {times} | {row['aim'] or ''} | {row['peak']:.2f} |")
        differences = part["relative_difference_from_kronfluence"].items()
        text.append("\nrelative difference from kronfluence, empirical Fisher: ")
        text[-1] += ", ".join(f"{name} {value:.1e}" for name, value in differences)
    return "\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=4, help="timed runs of each of the 3 processes of an item")
    parser.add_argument("--case", choices=CASES, help="only this case")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "curvature.json")
    parser.add_argument("--worker", choices=[*ITEMS, AGREEMENT], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.case)
        return 0

    results = {
        "command": "make bench" + (f" ARGS='{' '.join(sys.argv[1:])}'" if sys.argv[1:] else ""),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads_used": 1,
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in PACKAGES},
        "seed": SEED,
        "cases": {},
    }
    for case in [arguments.case] if arguments.case else CASES:
        rows = measure(case, list(ITEMS), arguments.repeats)
        checker = Worker(AGREEMENT, case)
        checker.close()
        results["cases"][case] = {
            "settings": CASES[case],
            "items": rows,
            "ratios": ratios(rows),
            "relative_difference_from_kronfluence": checker.first_line,
        }
    from hf_unlearn.runtime.files import write_json

    write_json(arguments.output, results)
    print(report(results))
    differences = [part["relative_difference_from_kronfluence"] for part in results["cases"].values()]
    return 0 if max(max(part.values()) for part in differences) <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())

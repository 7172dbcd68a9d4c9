# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature of a random-weight Llama-2-7B on one GPU: fit, eigh, solve and step against kronfluence.

    python benchmarks/gpu/llama2_7b.py                  # 7.5 minutes on an H100 or H200
    python benchmarks/gpu/llama2_7b.py --device cpu --hidden 64 --intermediate 96 --heads 4 --layers 4 --vocab 128 \
        --length 16 --batch_size 2 --target_layers 1-2 --sequences 8 --output outputs/small.json

The model is made on the device from its configuration, in bf16; the tokens are random. Speed does not depend on
either. The WMDP setting of K-FADE comes first (MLPs of layers 3-6), then all MLPs. Every stage gets a share of
--minutes and takes as many sequences as fit in it; what no longer fits is skipped and says so. The file is written
after every stage, whole, so a killed run leaves what it had. Numbers for the paper's 4000 sequences stand apart, under
"extrapolated".
"""

import argparse
import contextlib
import copy
import itertools
import sys
import time
import unittest.mock
from collections import Counter
from importlib.util import find_spec
from pathlib import Path


STARTED = time.perf_counter()  # the imports count: --minutes is for the whole run

import torch  # noqa: E402


ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import curvature as peers  # noqa: E402
from record import RETAIN_SEQUENCES, Record, achieved_over_limit, extrapolate, per_token, report  # noqa: E402

from hf_unlearn.curvature import EKFAC, plan, select_targets  # noqa: E402
from hf_unlearn.curvature.linalg import add_gram_, eigendecompose, matmul_precision  # noqa: E402
from hf_unlearn.curvature.targets import widths  # noqa: E402
from hf_unlearn.optim import NaturalGradientAscent  # noqa: E402


DAMPING, STEP_NORM = 1e-14, 2e-3


def make_model(arguments):
    """A random Llama (Llama-2-7B by default), made on the device in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=arguments.vocab,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.heads,
        num_key_value_heads=arguments.heads,
        max_position_embeddings=max(4096, arguments.length),
        tie_word_embeddings=False,
        use_cache=False,
    )
    torch.manual_seed(arguments.seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(arguments.device):
            return LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def make_batches(arguments, sequences: int) -> list[dict]:
    case = {"vocab_size": arguments.vocab, "sequences": sequences, "length": arguments.length}
    return [
        {key: value.to(arguments.device) for key, value in batch.items()}
        for batch in peers.make_batches({**case, "batch_size": arguments.batch_size})
    ]


def sequences_in(seconds: float, seconds_per_token: float, arguments) -> int:
    """Whole batches that fit in the time, at least two and at most `--sequences`."""
    batches = int(seconds / (seconds_per_token * arguments.length * arguments.batch_size))
    return min(max(2, batches) * arguments.batch_size, arguments.sequences)


@contextlib.contextmanager
def graph_begins_at(modules):
    """Within the context autograd starts at the modules' outputs: gradients of activations only, none of weights."""
    handles = [module.register_forward_hook(lambda module, args, out: out.requires_grad_()) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward_backward(record: Record, model, modules, seconds: float) -> dict:
    """Forward and backward down to `modules`, batch after batch, until the time is over; the first is not counted."""
    batches = itertools.cycle(make_batches(record.arguments, 4 * record.arguments.batch_size))
    run, times = lambda: model(**next(batches)).loss.backward(), []
    with graph_begins_at(modules):
        record.seconds(run)
        while sum(times) < seconds and len(times) * record.arguments.batch_size < record.arguments.sequences:
            times.append(record.seconds(run))
    return per_token(sum(times), len(times) * record.arguments.batch_size * record.arguments.length)


def gram(record: Record, size: int) -> dict:
    """Seconds and TFLOP/s of one batch's X^T X in fp32, as we do it and in the other ways the hardware offers.

    Ours makes the upper blocks only; its TFLOP/s are those of the whole product in its time.
    """
    rows = torch.randn(
        record.arguments.batch_size * record.arguments.length, size, dtype=torch.bfloat16, device=record.device
    )
    total, single = torch.zeros(size, size, device=record.device), rows.float()
    ways = {"ours": lambda: add_gram_(total, rows), "fp32": lambda: total.addmm_(single.T, single)}
    if record.device.type == "cuda":

        def tf32():
            with matmul_precision("high"):
                total.addmm_(single.T, single)

        ways["tf32"] = tf32
        ways["bf16 in, fp32 out"] = lambda: torch.mm(rows.T, rows, out_dtype=torch.float32)
    table = {}
    for way, run in ways.items():
        run()
        seconds = record.seconds(run, repeats=5)
        table[way] = {"seconds": seconds, "tflops": 2 * rows.numel() * size / seconds / 1e12}
    return {"rows": len(rows), "ways": table}


def eigh(record: Record, size: int, dtype: torch.dtype) -> dict:
    """`torch.linalg.eigh` alone, and (fp32) with the Rayleigh quotients that our fit adds."""
    rows = torch.randn(size, size, dtype=dtype, device=record.device)
    matrix = rows.T @ rows / size
    torch.linalg.eigh(matrix[:64, :64].contiguous())
    row = {"size": size, "seconds": record.seconds(lambda: torch.linalg.eigh(matrix))}
    if dtype == torch.float32:
        row["with_rayleigh_quotients_seconds"] = record.seconds(lambda: eigendecompose(matrix, "the matrix"))
    return row


def fit(record: Record, model, target_modules: str | None, sequences: int) -> tuple[EKFAC, dict]:
    """One EK-FAC fit, whose first stages (factors, eigh) are the K-FAC fit."""
    tokens = sequences * record.arguments.length
    batches = make_batches(record.arguments, sequences)
    curvature = EKFAC()
    whole = record.seconds(
        lambda: curvature.fit(
            model, batches, target_modules=target_modules, seed=record.arguments.seed, progress=False
        )
    )
    stages = curvature.metadata["stages"]
    row = {name: {**stages[name], **per_token(stages[name]["seconds"], tokens)} for name in ("factors", "correction")}
    row["eigh"] = {**stages["eigh"], "factors": dict(_sizes(select_targets(model, target_modules), curvature))}
    row["kfac_fit_seconds"] = stages["factors"]["seconds"] + stages["eigh"]["seconds"]
    row["ekfac_fit_seconds"] = row["kfac_fit_seconds"] + stages["correction"]["seconds"]
    # Hashes of the weights, for the artifact, and the like: once per fit, whatever the data.
    row["outside_stages_seconds"] = whole - row["ekfac_fit_seconds"]
    return curvature, {"sequences": sequences, "tokens": tokens, **row}


def _sizes(targets, curvature) -> list[tuple[str, int]]:
    """(size of a factor, how many there are of it)."""
    shared = {target["input"] for target in curvature.metadata["targets"].values()}
    sizes = Counter(widths(module)[0] for module in targets.values())
    sizes.update(widths(targets[name])[1] for name in shared)
    return [(str(size), count) for size, count in sorted(sizes.items())]


def fit_all_mlps(record: Record, model, seconds: float, floor: float) -> dict:
    """The two passes over the data for all MLPs. Eigendecompositions would take minutes: the second pass rotates by
    the factors themselves, which costs what rotating by eigenvectors costs."""
    stand_in = lambda matrix, name: (matrix.diagonal().clone(), matrix)
    with unittest.mock.patch("hf_unlearn.curvature.kinds.eigendecompose", stand_in):
        row = fit(record, model, None, sequences_in(seconds, 20 * floor, record.arguments))[1]
    return {key: row[key] for key in ("sequences", "tokens", "factors", "correction")} | {
        "eigh": {"factors": row["eigh"]["factors"], "note": "left out"}
    }


def kronfluence(record: Record, model, curvature: EKFAC, seconds: float) -> dict:
    """kronfluence's covariance and lambda stages on the same weights, in its precisions, with our eigenvectors.

    Both time a run of one batch and one of several and divide the difference: its copy of the results to the CPU, once
    per fit, is then in neither.
    """
    from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
    from kronfluence.factor.eigen import fit_lambda_matrices_with_loader

    names = [name.removesuffix(".weight") for name in curvature.names]
    wrapped, state, task, settings = peers._kronfluence(
        copy.deepcopy(model), names=names, cpu=record.device.type == "cpu"
    )
    vectors = {
        f"{side}_eigenvectors": {
            name: curvature._both("vectors", f"{name}.weight")[place].contiguous() for name in names
        }
        for place, side in enumerate(("activation", "gradient"))
    }
    # Asked for by its check alone.
    values = {
        f"{side}_eigenvalues": {name: matrix[0] for name, matrix in vectors[f"{side}_eigenvectors"].items()}
        for side in ("activation", "gradient")
    }

    def rate(run) -> dict:
        one = make_batches(record.arguments, record.arguments.batch_size)
        run(one)
        single = record.seconds(lambda: run(one), repeats=2)
        more = 1 + min(record.arguments.sequences // record.arguments.batch_size, max(1, int(seconds / 3 / single)))
        batches = make_batches(record.arguments, more * record.arguments.batch_size)
        difference = record.seconds(lambda: run(batches)) - single
        # On a model so small that a batch costs nothing the difference may be noise.
        tokens = (more - 1) * record.arguments.batch_size * record.arguments.length
        return {**per_token(max(difference, 1e-9), tokens), "peak_memory_bytes": record.peak_memory()}

    covariance = lambda batches: fit_covariance_matrices_with_loader(
        wrapped, state, task, batches, settings, disable_tqdm=True
    )
    correction = lambda batches: fit_lambda_matrices_with_loader(
        wrapped, state, task, batches, settings, eigen_factors=vectors | values, disable_tqdm=True
    )
    return {"version": peers.version("kronfluence"), "covariance": rate(covariance), "lambda": rate(correction)}


def solve_and_step(record: Record, model, curvature: EKFAC) -> dict:
    """The objective's gradient on one batch, the solve, and a whole step of the optimizer."""
    parameters = {name: model.get_parameter(name).requires_grad_() for name in curvature.names}
    batch = make_batches(record.arguments, record.arguments.batch_size)[0]
    gradient = lambda: model(**batch).loss.backward()
    try:
        gradient()
        row = {"gradient": per_token(record.seconds(gradient, repeats=3), batch["input_ids"].numel())}
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        row["solve_seconds"] = record.seconds(lambda: curvature.solve(gradients, DAMPING), repeats=2)
        base = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        optimizer = NaturalGradientAscent(parameters, base, curvature, step_norm=STEP_NORM, damping=DAMPING)
        row["step_seconds"] = record.seconds(optimizer.step, repeats=2)
        row["diagnostics"] = optimizer.diagnostics
    finally:
        model.requires_grad_(False)
        model.zero_grad(set_to_none=True)
    return row


def measure(record: Record):
    """All stages, the most wanted first."""
    arguments, share = record.arguments, 60 * record.arguments.minutes
    model, curvature = None, None

    def build():
        nonlocal model
        model = make_model(arguments)
        parameters = list(model.parameters())
        return {"parameters": sum(p.numel() for p in parameters), "weights_bytes": sum(p.nbytes for p in parameters)}

    if record.stage("build", build) is None:
        return
    sizes = sorted({arguments.hidden, arguments.intermediate})
    for size in sizes:
        record.stage(f"gram {size}", lambda size=size: gram(record, size))
        record.stage(f"eigh {size} fp32", lambda size=size: eigh(record, size, torch.float32))
    first, last = arguments.target_layers
    lowest = model.model.layers[first].mlp
    floors = {
        "forward + backward": [model.get_input_embeddings()],
        "forward + backward to the targets": [lowest.gate_proj, lowest.up_proj],
    }
    for name, modules in floors.items():
        record.stage(name, lambda modules=modules: forward_backward(record, model, modules, 0.02 * share))
    stages = record.results["stages"]
    if not {*floors, *(f"eigh {size} fp32" for size in sizes)} <= stages.keys():
        return
    floor = stages["forward + backward"]["microseconds_per_token"] * 1e-6

    # A layer has three wide factors and two narrow ones. Fewer layers when their eigendecompositions alone take too
    # long.
    times = [stages[f"eigh {size} fp32"]["with_rayleigh_quotients_seconds"] for size in sizes]
    layers = min(last - first + 1, max(1, int(0.3 * share / (2 * times[0] + 3 * times[-1]))))
    chosen = list(range(first, first + layers))
    target_modules = rf"model\.layers\.({'|'.join(map(str, chosen))})\.mlp\.(gate|up|down)_proj"

    def fit_stage():
        nonlocal curvature
        sequences = sequences_in(0.25 * share, 6 * floor, arguments)
        curvature, row = fit(record, model, target_modules, sequences)
        return {"layers": chosen, **row}

    record.stage("fit", fit_stage)
    if curvature is not None:
        record.stage("solve and step", lambda: solve_and_step(record, model, curvature))
        if find_spec("kronfluence") is None:
            record.results["skipped"]["kronfluence"] = "not installed: pip install kronfluence==1.0.1"
        else:
            run = lambda: kronfluence(record, model, curvature, 0.12 * share)
            record.stage("kronfluence", run, needs=0.15 * share, bytes_needed=1.5 * stages["build"]["weights_bytes"])
    curvature = None

    settings = {"sequences": RETAIN_SEQUENCES, "sequence_length": arguments.length}
    planned = plan(model, kind="ekfac", **settings)
    needed = planned["factors"].bytes + planned["correction"].bytes
    # What a bf16 Llama keeps for its backward: about 12 tensors of the narrow and 4 of the wide width a layer.
    width = 2 * (12 * arguments.hidden + 4 * arguments.intermediate) * arguments.layers
    needed += width * arguments.batch_size * arguments.length
    run = lambda: fit_all_mlps(record, model, 0.2 * share, floor)
    record.stage("all MLPs", run, needs=0.25 * share, bytes_needed=needed)
    for size in sizes:
        fp32 = stages[f"eigh {size} fp32"]["seconds"]
        record.stage(f"eigh {size} fp64", lambda size=size: eigh(record, size, torch.float64), needs=5 * fp32)


def layer_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.5, help="for the whole run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--intermediate", type=int, default=11008)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--batch_size", type=int, default=8, help="sequences of a batch")
    parser.add_argument("--sequences", type=int, default=RETAIN_SEQUENCES, help="at most so many in a pass")
    parser.add_argument("--target_layers", type=layer_range, default=(3, 6), help="as 3-6: MLPs of these layers")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_llama2_7b.json")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "no CUDA device: run it on a machine with a GPU, or pass --device cpu and a small model (see --help)"
        )
    if arguments.sequences < arguments.batch_size:
        parser.error(f"--sequences must be at least --batch_size ({arguments.batch_size})")
    if not 0 <= arguments.target_layers[0] <= arguments.target_layers[1] < arguments.layers:
        parser.error(f"--target_layers must lie in 0-{arguments.layers - 1}, as in --target_layers 3-6")

    record = Record(arguments, STARTED)
    record.write()
    measure(record)
    record.results["achieved"] = achieved_over_limit(record.results)
    record.results["extrapolated"] = extrapolate(record.results)
    record.results["finished"] = True
    record.write()
    print(report(record.results))
    return 1 if record.results["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

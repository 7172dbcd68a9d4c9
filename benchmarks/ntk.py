#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Costs of Fast-NTK: Jacobians against torch.func, the primal solver from 1,000 to 50,000 images, a request.

    python benchmarks/ntk.py --data_dir path/to/data
    python benchmarks/ntk.py --parts scale --scale 1000 5000 10000 50000  # one part, on noise

The model is a CIFAR ResNet-20 whose BatchNorm and head are tuned through the adapter that the recipes use (2,026
parameters): the published weights and CIFAR-10 from `--data_dir` where it is given (rows are taken again, shifted and
flipped, beyond the images at hand), else random weights and noise, which cost the same. A request is compared with
retraining. Every measurement runs in a process of its own on one thread; memory is that process's peak beyond what it
held before. Times are CPU seconds: a busy machine leaves them nearly alone. The report is rewritten as figures come;
parts that are not measured again stay in it.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import curvature as bench


ROOT = Path(__file__).resolve().parents[1]
AIMS = {"jacobian_time": 0.65, "jacobian_memory": 0.25, "request_over_retraining": 0.2, "solve_share": 0.05}
JACOBIAN_SAMPLES = 64
WAYS = ("ours", "vmap(jacrev)")
PARTS = ("jacobian", "request", "scale")


def make_model(data_dir: str | None, new_head: bool = False):
    """A ResNet-20 under BatchNorm tuning, and the names of what is tuned; with a head of random weights when asked."""
    import torch
    from peft import get_peft_model

    from hf_unlearn import BatchNormTuningConfig
    from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, load_cifar_resnet

    torch.manual_seed(0)
    if data_dir is None:
        model = CifarResNetForImageClassification(CifarResNetConfig(depth=20)).eval()
    else:
        model = load_cifar_resnet(Path(data_dir) / "weights/resnet_cifar10/resnet20.safetensors")
    if new_head:
        model.reset_head(10, seed=0)
    model = get_peft_model(model, BatchNormTuningConfig(modules_to_save=["linear"])).eval()
    return model, [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def make_batches(data_dir: str | None, count: int, batch_size: int = 128):
    """Batches of `count` images; made one at a time, so that memory says nothing about the data."""
    import torch

    if data_dir is None:
        for start in range(0, count, batch_size):
            generator = torch.Generator().manual_seed(start)
            size = min(batch_size, count - start)
            yield {
                "pixel_values": torch.randn(size, 3, 32, 32, generator=generator),
                "labels": torch.randint(10, (size,), generator=generator),
            }
        return
    from hf_unlearn.data.images import ImageCollator, load_images

    rows = load_images(Path(data_dir) / "cifar10", "train")
    for start in range(0, count, batch_size):
        numbers = range(start, min(start + batch_size, count))
        torch.manual_seed(start)
        # Beyond the images at hand: the same ones, flipped and shifted.
        collator = ImageCollator(augment=start + batch_size > len(rows))
        yield collator([rows[number % len(rows)] for number in numbers])


def jacobian(way: str, data_dir: str | None):
    """A function that makes the (N, C, p) of 64 images in one of the ways.

    `torch.func.jacrev` of the whole batch, without vmap, is left out: it makes N x C backwards through all N samples
    (some 30 times the time and memory).
    """
    import torch

    from hf_unlearn.ntk import Jacobians

    model, names = make_model(data_dir)
    images = next(make_batches(data_dir, JACOBIAN_SAMPLES))["pixel_values"]
    values = {name: parameter.detach() for name, parameter in model.named_parameters() if name in names}
    outputs = lambda v, x: torch.func.functional_call(model, v, (x,)).logits
    model.requires_grad_(False)

    def ours():
        return torch.cat([part for _, part in Jacobians(model, names)({"pixel_values": images})])

    def vmapped():
        one = lambda v, x: outputs(v, x[None])[0]
        found = torch.func.vmap(torch.func.jacrev(one), (None, 0))(values, images)
        return torch.cat([found[name].flatten(2) for name in names], -1)

    return dict(zip(WAYS, (ours, vmapped)))[way]


def work(item: dict) -> dict:
    """One measurement, in this process."""
    import torch

    from hf_unlearn.ntk import Jacobians, measure_gram

    torch.set_num_threads(1)
    if item["part"] == "jacobian":
        run = jacobian(item["way"], item["data_dir"])
        before = bench.resident_bytes()
        bench.reset_peak()
        began = time.process_time()
        found = run()
        cpu = time.process_time() - began
        peak = bench.resident_bytes(peak=True) - before
        return {"cpu_seconds": cpu, "peak_bytes": peak, "square": float(found.double().square().sum())}
    if item["part"] == "scale":
        model, names = make_model(item["data_dir"])
        jacobians = Jacobians(model, names, chunk_size=32)
        measure_gram(jacobians, make_batches(item["data_dir"], 32))
        before = bench.resident_bytes()
        bench.reset_peak()
        began = time.process_time()
        gram = measure_gram(jacobians, make_batches(item["data_dir"], item["images"]))
        cpu = time.process_time() - began
        return {
            "images": item["images"],
            "cpu_seconds": cpu,
            "peak_bytes": bench.resident_bytes(peak=True) - before,
            "dual_kernel_bytes": 8 * (10 * item["images"]) ** 2,
            "trace": gram.mean_diagonal * jacobians.size,
        }
    return request(item)


def request(item: dict) -> dict:
    """A request on 5,000 images: Jacobians and solve, a second request, and retraining to the same accuracy."""
    import copy

    import torch

    from hf_unlearn import FastNTK
    from hf_unlearn.data.images import ImageCollator, load_images, select_per_class, split_class
    from hf_unlearn.evaluation.images import accuracy
    from hf_unlearn.ntk.request import apply_update, solve_request

    if item["data_dir"] is None:
        raise SystemExit("the part `request` needs --data_dir: accuracy means nothing on noise")
    from torch.utils.data import DataLoader

    start, names = make_model(item["data_dir"], new_head=True)
    rows = select_per_class(load_images(Path(item["data_dir"]) / "cifar10", "train"), item["per_class"], 0)
    forget, retain = split_class(rows, 0)
    collator = ImageCollator()
    loader = lambda part, **kwargs: DataLoader(part, batch_size=64, collate_fn=collator, **kwargs)

    def timed(action):
        began = time.process_time()
        return action(), time.process_time() - began

    def scores(model, retain, forget) -> dict:
        return {name: accuracy(model, part, collator) for name, part in (("retain", retain), ("forget", forget))}

    # AdamW on the tuned parameters; after every epoch the seconds so far and the accuracy on the retained rows.
    def train(part) -> tuple:
        model, seconds, history = copy.deepcopy(start), 0.0, []
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=item["epochs"])
        generator = torch.Generator().manual_seed(0)
        for _ in range(item["epochs"]):
            began = time.process_time()
            model.train()
            for batch in loader(part, shuffle=True, generator=generator):
                optimizer.zero_grad()
                model(**batch).loss.backward()
                optimizer.step()
            schedule.step()
            seconds += time.process_time() - began
            history.append({"cpu_seconds": seconds, "accuracy": accuracy(model.eval(), retain, collator)})
        return model, history

    full, _ = train(rows)
    _, retraining = train(retain)
    before = {name: parameter.detach() for name, parameter in start.named_parameters() if name in names}

    def serve(retain, forget, gram_cache=None, **settings) -> dict:
        """A request as the trainer serves it: its cost, and accuracies of the tuned model after it."""
        model = copy.deepcopy(full)
        (update, report), seconds = timed(
            lambda: solve_request(
                model, names, FastNTK(gram_cache=gram_cache, **settings), retain, forget, collator, start=before
            )
        )
        apply_update(dict(model.named_parameters()), update)
        found = {"cpu_seconds": seconds, "solve_seconds": report["solve_seconds"], "forget_rows": len(forget)}
        return found | {"accuracy": scores(model, retain, forget), **settings}

    def compared(row: dict) -> dict:
        """With its cost over that of retraining to the same accuracy on the retained rows."""
        # Never as good: what all its epochs cost.
        equal = next((epoch for epoch in retraining if epoch["accuracy"] >= row["accuracy"]["retain"]), retraining[-1])
        return row | {"over_retraining": row["cpu_seconds"] / equal["cpu_seconds"]}

    with tempfile.TemporaryDirectory() as grams:
        requests = {
            "first_request": compared(serve(retain, forget, grams)),
            "second_request": serve(*reversed(split_class(rows, 1)), grams),
        }
    sampled = [
        compared(serve(retain, forget, retain_samples=count, forget_contrasts=drawn))
        for count, drawn in item["sampled"]
    ]
    return {
        "images": len(rows),
        "tuned": {"epochs": item["epochs"], "accuracy": scores(full, retain, forget)},
        **requests,
        "sampled": sampled,
        "retraining": retraining,
    }


def measure(item: dict, timeout: float) -> dict:
    """`work(item)` in a new process of one thread."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(item)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{item} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(results: dict) -> dict:
    """What the figures say against the aims."""
    found = {}
    if rows := results.get("jacobian"):
        best = rows["vmap(jacrev)"]
        found["jacobian_time"] = rows["ours"]["cpu_seconds"] / best["cpu_seconds"]
        found["jacobian_memory"] = rows["ours"]["peak_bytes"] / best["peak_bytes"]
    if rows := results.get("scale"):
        found["seconds_per_1000_images"] = [row["cpu_seconds"] / row["images"] * 1000 for row in rows]
        found["peak_megabytes"] = [row["peak_bytes"] / 1e6 for row in rows]
        found["dual_kernel_gigabytes"] = [row["dual_kernel_bytes"] / 1e9 for row in rows]
    if row := results.get("request"):
        first = row["first_request"]
        found["request_over_retraining"] = first["over_retraining"]
        found["sampled_requests_over_retraining"] = [sampled["over_retraining"] for sampled in row["sampled"]]
        found["solve_share"] = first["solve_seconds"] / first["cpu_seconds"]
        found["second_request_over_first"] = row["second_request"]["cpu_seconds"] / first["cpu_seconds"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--scale", type=int, nargs="+", default=[1000, 5000, 10000, 50000])
    parser.add_argument("--per_class", type=int, default=500, help="images per class of the part `request`")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of tuning on everything, in the part `request`")
    parser.add_argument(
        "--sampled", nargs="+", default=["150:2"], help="retain_samples:forget_contrasts of the cheaper requests"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "ntk.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(json.loads(arguments.worker))))
        return 0
    data_dir = None if arguments.data_dir is None else str(Path(arguments.data_dir).resolve())
    from hf_unlearn.runtime.files import write_json
    from hf_unlearn.runtime.provenance import environment

    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    about = {
        "command": shlex.join(["python", "benchmarks/ntk.py", *shown]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    output = Path(arguments.output)

    def keep(part: str, value):
        # Parts take from a minute to half an hour, and may be measured one by one: each says how and when.
        results = json.loads(output.read_text()) if output.is_file() else {}
        results |= {"seed": 0, "aims": AIMS, part: value, "runs": results.get("runs", {}) | {part: about}}
        write_json(output, results | {"summary": summary(results)})

    def jacobian_part():
        rows = {}
        for way in WAYS:
            item = {"part": "jacobian", "way": way, "data_dir": data_dir}
            rows[way] = min((measure(item, 900) for _ in range(arguments.repeats)), key=lambda row: row["cpu_seconds"])
        keep("jacobian", rows)
        squares = [row["square"] for row in rows.values()]
        if max(squares) > min(squares) * (1 + 1e-4):
            raise RuntimeError(f"the ways disagree: sums of squares {squares}")

    def scale_part():
        found = []
        for images in arguments.scale:
            found.append(measure({"part": "scale", "images": images, "data_dir": data_dir}, 3 * 3600))
            keep("scale", found)

    def request_part():
        item = {"part": "request", "per_class": arguments.per_class, "epochs": arguments.epochs, "data_dir": data_dir}
        item |= {"sampled": [[int(number) for number in pair.split(":")] for pair in arguments.sampled]}
        keep("request", measure(item, 3 * 3600))

    for part in arguments.parts:
        {"jacobian": jacobian_part, "scale": scale_part, "request": request_part}[part]()
    print(json.dumps(json.loads(output.read_text())["summary"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

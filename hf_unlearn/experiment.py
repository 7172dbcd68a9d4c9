# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""From a YAML file to a report: the road that `hf-unlearn demo` and `recipes/kfade_tofu.py` share."""

import datetime
import importlib.resources
import inspect
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from tqdm.auto import tqdm

from .cards import render_card
from .comparison import Comparison, Entry, Problem, choose, on_main_process, reached
from .curvature import plan
from .data.rows import fingerprint_rows
from .data.synthetic import load_synthetic, scratch_models
from .data.tofu import QATemplate, TofuSplits, load_tofu
from .deltas import library_versions
from .errors import InputError
from .evaluation import tofu
from .evaluation.report import environment, format_table, write_report
from .files import staged_folder, write_json, write_text
from .loading import load_model
from .methods.kfade import KFade


logger = logging.getLogger(__name__)

REFERENCES = ("original", "retrained")
SECTIONS = {"title", "seed", "data", "model", "template", "evaluation", "arguments", "methods"}
NOTES = [
    "Forget quality is the p-value of a two-sample KS test on truth ratios against the retrained model (TOFU); it says the "
    "two cannot be told apart by this test on n items, not that nothing is left. Relearning attacks are not part of this table.",
    "Seconds are those of the chosen candidate (fit, gradient, steps), without evaluation; on a shared machine compare ratios.",
]


def read_config(path: str | Path | None = None) -> dict:
    """The settings of an experiment; without a path the embedded default.

    Raises:
        InputError: no such file, not YAML, or sections that do not exist.
    """
    if path is None:
        text = (importlib.resources.files("hf_unlearn") / "templates" / "demo.yaml").read_text(encoding="utf-8")
        path = "demo.yaml"
    else:
        if not Path(path).is_file():
            raise InputError(f"no such configuration: {path}")
        text = Path(path).read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or (unknown := set(config) - SECTIONS):
        found = ", ".join(sorted(unknown)) if isinstance(config, dict) else "no sections"
        raise InputError(f"{path}: {found}; the sections are {', '.join(sorted(SECTIONS))}")
    return {"title": Path(path).stem, "seed": 0, "template": {}, "evaluation": {}, "arguments": {}} | config


def load_splits(config: Mapping) -> TofuSplits:
    """The rows of `data`: `source: synthetic` with its sizes, or a folder or Hub id of TOFU with `forget` and `retain_rows`."""
    data = dict(config["data"])
    if data.get("source") == "synthetic":
        del data["source"]
        return configured(load_synthetic, "data", data, seed=config["seed"])
    return configured(load_tofu, "data", data)


def configured(function, section: str, settings: Mapping | None, **others):
    """`function(**settings, **others)`, where settings come from a person's YAML.

    Raises:
        InputError: a setting that the function does not have.
    """
    settings = settings or {}
    known = set(inspect.signature(function).parameters) - set(others)
    if unknown := set(settings) - known:
        raise InputError(f"{section}: no setting {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return function(**settings, **others)


def read_entries(config: Mapping) -> list[Entry]:
    """The lines of `methods`."""
    return [configured(Entry, f"methods, {entry.get('label', 'no label')}", entry) for entry in config["methods"]]


def load_problem(config: Mapping, splits: TofuSplits, progress: bool = True) -> Problem:
    """Models and tokenizer of `model`: `scratch` (trained here, cached) or `original` and `retrained` or `retain_log`.

    Raises:
        InputError: a model that cannot be loaded, or neither a retrained model nor its log.
    """
    model = config["model"]
    retain_log = None
    if "scratch" in model:
        tokenizer, original, retrained = configured(
            scratch_models, "model.scratch", model["scratch"], splits=splits, seed=config["seed"], progress=progress
        )
    else:
        kwargs = {"dtype": model.get("dtype", "auto"), "device_map": "auto" if torch.cuda.is_available() else None}
        original, tokenizer = load_model(model["original"], init_kwargs=kwargs)
        if tokenizer is None:
            raise InputError(
                f"{model['original']} has no tokenizer: TOFU needs the one that the model was trained with"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        retrained = None
        if model.get("retrained"):
            retrained = load_model(model["retrained"], tokenizer, kwargs)[0].eval()
        if retrained is None:
            if not model.get("retain_log"):
                raise InputError(
                    "give model.retrained or model.retain_log: forget quality compares with a retrained model"
                )
            retain_log = tofu.read_log(model["retain_log"])
    loaded = {"splits": splits, "tokenizer": tokenizer, "original": original.eval(), "retrained": retrained}
    loaded |= {"retain_log": retain_log, "template": configured(QATemplate, "template", config["template"])}
    return configured(Problem, "evaluation", config["evaluation"], **loaded)


def run_experiment(config: Mapping, output_dir: str | Path, *, progress: bool = True) -> list[dict]:
    """Load, compare, and write the report; returns the rows of `results.json`.

    Raises:
        InputError: as `read_config`, `load_splits` and `load_problem`.
    """
    splits = load_splits(config)
    problem = load_problem(config, splits, progress)
    entries = read_entries(config)
    comparison = Comparison(problem, entries, output_dir, config["arguments"], config["seed"], progress=progress)
    if progress:
        lengths = [len(ids) for ids in comparison.retain["input_ids"]]
        tqdm.write(plans(problem.original, entries, len(lengths), round(sum(lengths) / len(lengths))) + "\n")
    rows = comparison.run()
    budgets = sorted({entry.candidates for entry in entries})
    budget = f"Every method looked at {' or '.join(map(str, budgets))} candidates. The candidate of a row is the one with the least retain KL among those with forget quality >= 0.05, else the one that forgot most. Choosing needs the retrained model, as in the papers."
    sizes = {name: len(rows) for name, rows in splits.evaluation().items() if rows is not None}
    # Methods have their own lines in the report.
    settings = {key: value for key, value in config.items() if value and key not in ("title", "methods")} | {
        "rows": {"forget": len(splits.forget), "retain": len(splits.retain), "evaluated": sizes}
    }

    def publish():
        write_report(
            output_dir,
            title=config["title"],
            rows=rows,
            candidates=comparison.candidates,
            kl_samples={name: sample.tolist() for name, sample in comparison.kl_samples.items()},
            settings=settings,
            summary=summarise(rows),
            notes=[budget, *NOTES],
        )
        save_best(comparison, rows, Path(output_dir) / "model")

    on_main_process(publish)
    return rows


def save_best(comparison: Comparison, rows: list[dict], folder: Path):
    """Save the chosen model of the best line: weights, tokenizer, `delta/`, and a card with the table's numbers."""
    methods = [row for row in rows if row["method"] not in REFERENCES]
    best = methods[choose(methods)]
    problem = comparison.problem
    entry = next(entry for entry in comparison.entries if entry.label == best["method"])
    method = entry.make(entry.search[0])
    delta = comparison.update(best["method"])
    with staged_folder(folder) as staged, comparison.updated(best["method"]) as model:
        model.save_pretrained(staged)
        problem.tokenizer.save_pretrained(staged)
        delta.save_pretrained(staged / "delta")
        by_name = {row["method"]: row for row in rows}
        context = {
            "method": method.label,
            "model_name": f"{problem.splits.name} unlearned with {best['method']}",
            "paper": method.paper,
            "base_model": delta.config["base_model"],
            "settings": best["settings"],
            "seed": comparison.seed,
            "forget": f"the forget set of {problem.splits.name}",
            "retain": "its other rows",
            "forget_rows": len(comparison.forget),
            "forget_sha256": fingerprint_rows(comparison.forget),
            "original": by_name["original"],
            "unlearned": best,
            "retrained": by_name.get("retrained", {}),
            "delta": {"norm": delta.norm(), "tensors": len(delta.tensors), "sha256": delta.sha256(torch.bfloat16)},
            "environment": library_versions(),
        }
        write_text(staged / "README.md", render_card(context))


def summarise(rows: list[dict]) -> str:
    """What happened, in sentences, from the rows alone."""
    by_name = {row["method"]: row for row in rows}
    original = by_name["original"]
    methods = [row for row in rows if row["method"] not in REFERENCES]
    passing = sorted((row for row in methods if reached(row)), key=lambda row: row["retain_kl"])
    opening = (
        f"{original['n']} rows were to be forgotten. The original model gives their answers a mean probability of "
        f"{original['forget_probability']:.0%}; its forget quality is {original['forget_quality']:.1e}."
    )
    if not passing:
        return f"{opening} No method reached a forget quality of 0.05."
    best = passing[0]
    kept = best["retain_probability"] / original["retain_probability"]
    sentences = [
        opening,
        f"{best['method']} reaches {best['forget_quality']:.2g} with the least change elsewhere: KL {best['retain_kl']:.3f} nats per "
        f"retained token, {kept:.1%} of the retained answers' probability kept.",
    ]
    others = [f"{row['method']} (KL {row['retain_kl']:.3f})" for row in passing[1:]]
    if others:
        sentences.append(f"At a greater cost, 0.05 is also reached by {', '.join(others)}.")
    if missed := [row["method"] for row in methods if not reached(row)]:
        sentences.append(f"It is not reached by {', '.join(missed)}.")
    return " ".join(sentences)


def run_demo(
    output_dir: str | Path = "outputs/demo", seed: int = 0, progress: bool = True, record_to: str | Path | None = None
) -> list[dict]:
    """The embedded default: train two tiny models (cached), unlearn with every method, write the report."""
    config = read_config() | {"seed": seed}
    threads = torch.get_num_threads()
    # Models of this size gain little from a second thread, and threads that wait for each other on a busy machine take
    # many times as long as one.
    torch.set_num_threads(1)
    try:
        rows = run_experiment(config, output_dir, progress=progress)
    finally:
        torch.set_num_threads(threads)
    record(rows, output_dir, config, record_to)
    return rows


def dry_run(config: Mapping, splits: TofuSplits) -> str:
    """Walk the recipe on the meta device: no weight is allocated. Returns the plan of every method, to print.

    `model.config` of the YAML gives the architecture where the model itself is not at hand.

    Raises:
        InputError: as the run would: unknown methods or settings, no target module, missing model configuration.
    """
    model = meta_model(config)
    lines = [f"model: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters on the meta device"]
    lines.append(f"data: {splits.name}: {len(splits.forget)} forget rows, {len(splits.retain)} retain rows")
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}
    logits = model(**batch).logits
    lines.append(f"forward: logits {tuple(logits.shape)} {logits.dtype}")
    entries = read_entries(config)
    lines.append(plans(model, entries, len(splits.retain), config["evaluation"].get("max_length", 512)))
    return "\n".join(lines)


def plans(model, entries: list[Entry], retain_rows: int, length: int) -> str:
    """What every method will do: its candidates, and bytes and FLOPs of each stage of a curvature fit."""
    lines = []
    for entry in entries:
        method = entry.make(entry.search[0])
        lines.append(f"\n{entry.label}: {entry.candidates} candidates")
        if not isinstance(method, KFade):
            continue
        weights = method.targets(model).values()
        lines.append(f"targets: {len(weights)} weights, {sum(p.numel() for p in weights) / 1e6:,.1f} M parameters")
        rows = min(method.retain_samples or retain_rows, retain_rows)
        fit = {"kind": method.curvature, "target_modules": method.target_modules}
        lines.append(str(plan(model, **fit, sequences=rows, sequence_length=length)))
    return "\n".join(lines)


def meta_model(config: Mapping) -> torch.nn.Module:
    """The architecture of `model.config` (or of `model.original`, when that is at hand) on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = config["model"]
    try:
        if "config" in model:
            settings = dict(model["config"])
            architecture = AutoConfig.for_model(settings.pop("model_type"), **settings)
        else:
            architecture = AutoConfig.from_pretrained(model["original"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"no architecture for a dry run ({str(error).splitlines()[0]}): give model.config in the YAML"
        ) from error
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            architecture, dtype=getattr(torch, model.get("dtype") or "float32")
        ).eval()


def record(rows: list[dict], output_dir: str | Path, config: Mapping, path: str | Path | None = None):
    """Print the table, and with a path write it down with command, settings, versions and machine (benchmarks/results)."""
    print(format_table(rows))
    print(f"\n{summarise(rows)}\n\nreport: {Path(output_dir) / 'report.html'}")
    if path is None:
        return
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    # The data folder's place on this machine says nothing to a reader.
    data = config["data"] | {"source": Path(config["data"]["source"]).name}
    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv]
    shown = ["python", *shown] if shown[0].endswith(".py") else shown
    about = {
        "command": " ".join(["python", *shown]),
        "date": date,
        "seed": config["seed"],
        "config": dict(config) | {"data": data},
    }
    write_json(path, about | {"environment": environment(), "rows": rows})

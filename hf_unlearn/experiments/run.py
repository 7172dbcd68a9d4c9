# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""From a YAML file to a report: the road that `hf-unlearn demo` and the recipes share."""

import hashlib
import importlib.resources
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import yaml
from tqdm.auto import tqdm

from ..curvature import plan
from ..data.rows import row_hashes
from ..errors import InputError
from ..methods.first_order import FirstOrder
from ..methods.kfade import KFade
from ..methods.rmu import choose_weights
from ..report.card import render_card
from ..report.page import write_report
from ..report.tables import format_table
from ..report.vocabulary import vocabulary_of
from ..runtime.files import staged_folder, write_text
from ..runtime.processes import on_main_process
from ..runtime.provenance import library_versions, record_run
from .comparison import Comparison, Entry, check_entry
from .problem import COMMON_SECTIONS, Problem, StageSize, configured
from .problems.tofu import TofuProblem
from .problems.wmdp import WmdpProblem


logger = logging.getLogger(__name__)

PROBLEMS = {"tofu": TofuProblem, "wmdp": WmdpProblem}
SECONDS = "Seconds are those of the chosen candidate (fit, gradient, steps), without evaluation; on a shared machine compare ratios."


def read_config(path: str | Path | None = None, default: str = "demo.yaml") -> dict:
    """The settings of an experiment; without a path the embedded `default`.

    Raises:
        InputError: as `read_yaml`; sections that do not exist or are missing.
    """
    config = read_yaml(path, default)
    path = path or default
    sections = COMMON_SECTIONS | problem_class(config).sections
    if unknown := set(config) - sections:
        raise InputError(
            f"{path}: {', '.join(sorted(map(str, unknown)))}; the sections are {', '.join(sorted(sections))}"
        )
    if missing := {"data", "model", "methods"} - set(config):
        raise InputError(
            f"{path}: {', '.join(sorted(missing))} is missing; the sections are {', '.join(sorted(sections))}"
        )
    defaults = {"title": Path(path).stem, "seed": 0, "evaluation": {}, "arguments": {}}
    return defaults | {key: value for key, value in config.items() if value is not None}


def read_yaml(path: str | Path | None, default: str) -> dict:
    """The sections of a YAML file; without a path those of the embedded template `default`.

    Raises:
        InputError: no such file, not YAML, no sections, a number that YAML takes for text.
    """
    if path is None:
        text = (importlib.resources.files("hf_unlearn") / "templates" / default).read_text(encoding="utf-8")
        path = default
    else:
        if not Path(path).is_file():
            raise InputError(f"no such configuration: {path}")
        text = Path(path).read_text(encoding="utf-8")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: no sections; give one at least")
    for place, value in leaves(config):
        if isinstance(value, str) and "e" in value.lower() and is_number(value):
            raise InputError(f"{path}: {place}: YAML takes {value} for text: write it with a point, as 1.0e-5")
    return config


def leaves(value, place: str = "") -> Iterable[tuple[str, object]]:
    """(path, value) of everything in nested lists and mappings."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{place}[{index}]")
    else:
        yield place, value


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def problem_class(config: Mapping) -> type[Problem]:
    """The kind of problem that `problem` names, TOFU's without it.

    Raises:
        InputError: no such kind.
    """
    kind = config.get("problem", "tofu")
    if kind not in PROBLEMS:
        raise InputError(f"problem: {kind!r} is unknown: choose one of {', '.join(PROBLEMS)}")
    return PROBLEMS[kind]


def read_entries(config: Mapping) -> list[Entry]:
    """The lines of `methods`."""
    entries = config["methods"]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries) or not entries:
        raise InputError("methods: give a list of methods, each with label, method and search")
    return [configured(Entry, f"methods, {entry.get('label', 'no label')}", entry) for entry in entries]


def only(config: Mapping, words: list[str] | None) -> dict:
    """The configuration with the methods alone whose label contains one of `words`.

    Raises:
        InputError: there is none.
    """
    if not words:
        return dict(config)
    chosen = [entry for entry in config["methods"] if any(word in entry["label"] for word in words)]
    if not chosen:
        labels = "; ".join(entry["label"] for entry in config["methods"])
        raise InputError(f"--only {' '.join(words)} matches no method; there are: {labels}")
    return dict(config) | {"methods": chosen}


def run_experiment(config: Mapping, output_dir: str | Path, *, progress: bool = True) -> list[dict]:
    """Load, compare, and write the report; returns the rows of `results.json`.

    Raises:
        InputError: as `read_config` and the problem's `from_config`.
    """
    entries = read_entries(config)
    problem = problem_class(config).from_config(config, progress)
    comparison = Comparison(problem, entries, output_dir, config["arguments"], config["seed"], progress=progress)
    if progress:
        tqdm.write(plans(problem.original, comparison) + "\n")
    rows = comparison.run()
    sections = problem.further(comparison, rows)
    budgets = sorted({entry.candidates for entry in entries})
    # Methods have their own lines in the report.
    settings = {key: value for key, value in config.items() if value and key not in ("title", "methods")}

    def publish():
        write_report(
            output_dir,
            title=config["title"],
            rows=rows,
            candidates=comparison.candidates,
            kl_samples={name: kl.per_token.tolist() for name, kl in comparison.kl.items()},
            sections=sections,
            settings=settings | problem.settings(),
            summary=problem.results.summarise(rows),
            notes=[
                f"Every method looked at {' or '.join(map(str, budgets))} candidates.",
                *problem.notes(),
                SECONDS,
            ],
        )
        save_best(comparison, rows, Path(output_dir) / "model")

    on_main_process(publish)
    return rows


def save_best(comparison: Comparison, rows: list[dict], folder: Path):
    """Save the chosen model of the best line: weights, tokenizer, `delta/`, and a card with the table's numbers."""
    problem = comparison.problem
    methods = problem.results.methods(rows)
    best = methods[problem.results.choose(methods)]
    entry = next(entry for entry in comparison.entries if entry.label == best["method"])
    method = entry.make(entry.values(entry.search[0], len(comparison.stages(entry)))[0])
    delta = comparison.update(best["method"])
    with staged_folder(folder) as staged, comparison.updated(best["method"]) as model:
        model.save_pretrained(staged)
        problem.tokenizer.save_pretrained(staged)
        delta.save_pretrained(staged / "delta")
        forget = [row for stage in problem.stages for row in row_hashes(stage.forget)]
        context = {
            "method": method.label,
            "model_name": f"{problem.name} unlearned with {best['method']}",
            "paper": method.paper,
            "base_model": delta.config["base_model"],
            "base_revision": delta.config["base_revision"],
            "settings": best["settings"],
            "seed": comparison.seed,
            "forget_rows": len(forget),
            "forget_sha256": hashlib.sha256("".join(forget).encode()).hexdigest(),
            "delta": {"norm": delta.norm(), "tensors": len(delta.tensors), "sha256": delta.sha256(torch.bfloat16)},
            "environment": library_versions(),
        }
        write_text(staged / "README.md", render_card(context | problem.card(rows, best)))


def run_demo(
    output_dir: str | Path = "outputs/demo",
    seed: int = 0,
    progress: bool = True,
    record_to: str | Path | None = None,
) -> list[dict]:
    """The embedded default: train two tiny models (cached), unlearn with every method, write the report."""
    config = read_config() | {"seed": seed}
    rows = run_small(config, output_dir, progress=progress)
    record(rows, output_dir, config, record_to)
    return rows


def run_small(config: Mapping, output_dir: str | Path, *, progress: bool = True) -> list[dict]:
    """`run_experiment` on one thread.

    Models that are trained in place gain little from a second thread, and threads that wait for each other on a busy
    machine take many times as long as one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run_experiment(config, output_dir, progress=progress)
    finally:
        torch.set_num_threads(threads)


def dry_run(config: Mapping) -> str:
    """Walk the recipe on the meta device: no weight is allocated. Returns the plan of every method, to print.

    `model.config` of the YAML gives the architecture where the model itself is not at hand.

    Raises:
        InputError: as the run would: unknown methods or settings, no target module, missing model configuration.
    """
    model = meta_model(config)
    sizes = problem_class(config).sizes(config)
    lines = [f"model: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} B parameters on the meta device"]
    lines += [
        f"data: {stage.name}: {stage.forget_rows} forget rows, {stage.retain_rows} retain rows" for stage in sizes
    ]
    batch = {"input_ids": torch.zeros(2, 8, dtype=torch.long, device="meta")}
    logits = model(**batch).logits
    lines.append(f"forward: logits {tuple(logits.shape)} {logits.dtype}")
    lines += [plan_entry(model, entry, sizes) for entry in read_entries(config)]
    return "\n".join(lines)


def plans(model, comparison: Comparison) -> str:
    """What every method will do, before anything is done."""
    sizes = lambda entry: [stage.size for stage in comparison.stages(entry)]
    return "\n".join(plan_entry(model, entry, sizes(entry)) for entry in comparison.entries)


def plan_entry(model, entry: Entry, stages: list[StageSize]) -> str:
    """Candidates of a line, and bytes and FLOPs of every curvature fit.

    Raises:
        InputError: settings that the method does not have, no target module, fewer forget rows than its steps need.
    """
    lines = [f"\n{entry.label}: {entry.candidates} candidates"]
    if entry.stages == "together":
        stages = [
            StageSize(
                " and ".join(s.name for s in stages),
                sum(s.forget_rows for s in stages),
                sum(s.retain_rows for s in stages),
                stages[0].length,
            )
        ]
    check_entry(entry, stages)
    methods = [entry.make(value) for value in entry.values(entry.search[0], len(stages))]
    for method, stage in zip(methods, stages, strict=True):
        if isinstance(method, FirstOrder) and method.objective == "rmu":
            choose_weights(model, method.layer, method.layers)
        if not isinstance(method, KFade):
            continue
        if len(stages) > 1:
            lines.append(
                f"stage {stage.name}: {method.steps} steps of {method.forget_batch_size or stage.forget_rows} rows"
            )
        weights = method.targets(model).values()
        lines.append(f"targets: {len(weights)} weights, {sum(p.numel() for p in weights) / 1e6:,.1f} M parameters")
        rows = min(method.retain_samples or stage.retain_rows, stage.retain_rows)
        fit = {"kind": method.curvature, "target_modules": method.target_modules}
        lines.append(str(plan(model, **fit, sequences=rows, sequence_length=stage.length)))
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
    print(f"\n{vocabulary_of(rows).summarise(rows)}\n\nreport: {Path(output_dir) / 'report.html'}")
    if path is None:
        return
    # A folder's place on this machine says nothing to a reader.
    shorten = lambda value: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
    places = {
        section: {key: shorten(value) for key, value in (config[section] or {}).items()}
        for section in ("data", "model")
    }
    record_run(path, {"seed": config["seed"], "config": dict(config) | places, "rows": rows})

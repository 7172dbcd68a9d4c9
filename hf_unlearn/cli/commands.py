# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What `hf-unlearn evaluate` and `hf-unlearn curvature fit|inspect` do; `cli.py` says what they are given."""

import datetime
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import InputError


def run_evaluate(options):
    """Print question counts and the table of accuracies; write them with command, versions and model hashes."""
    from ..deltas import UpdateDelta
    from ..evaluation.harness import evaluate_tasks
    from ..report.tables import score_table
    from ..runtime.files import write_json
    from ..runtime.hub import public_name
    from ..runtime.loading import load_model, load_tokenizer

    tasks = [name.strip() for name in options.tasks.split(",") if name.strip()]
    state = _processes()

    def load(name: str, delta: str | None = None):
        def model():
            loaded, _ = load_model(name, tokenizer)
            if delta is not None:
                UpdateDelta.from_pretrained(delta).apply_to(loaded)
            return loaded.to(state.device)

        return model

    tokenizer = load_tokenizer(options.model)
    if tokenizer is None:
        load_model(options.model)  # says what is wrong where there is no model either
        raise InputError(f"{options.model} has no tokenizer; save one beside the model")
    changed = {"after" if options.base else "model": load(options.model, options.delta)}
    result = evaluate_tasks(
        ({"before": load(options.base)} if options.base else {}) | changed,
        tokenizer,
        tasks,
        data_dir=options.data_dir,
        include_path=options.include_path,
        limit=options.limit,
        num_fewshot=options.num_fewshot,
        batch_size=options.batch_size,
        log_samples=options.log_samples,
        cache=not options.no_cache,
        accelerator=state,
        progress=True,
    )
    if not state.is_main_process:
        return
    print(f"\n{score_table(result.scores, result.tasks)}\n")
    names = {"before": options.base, "after" if options.base else "model": options.model}
    for label, facts in result.models.items():
        delta = f" with the update {options.delta}" if options.delta and label != "before" else ""
        cached = ", from the cache" if facts["cached"] else ""
        print(f"{label}: {names[label]}{delta}, sha256 {facts['sha256'][:16]}, {facts['dtype']}{cached}")
        if facts["truncated"]:
            print(f"  {facts['truncated']} prompts were cut from the left to {facts['max_length']} tokens")
    if options.output:
        samples = {"samples": result.samples} if options.log_samples else {}
        about = {key: public_name(getattr(options, key)) for key in ("model", "base", "delta")}
        print(f"wrote {write_json(options.output, _account() | about | result.to_dict() | samples)}")


def run_curvature_fit(options):
    """Print the plan, fit on packed text, save.

    The folder is written when the fit is complete. One that was killed goes on from the folder `OUTPUT.unfinished` beside
    it when the command is given again.
    """
    from ..curvature import Curvature, make_curvature, plan
    from ..data.collators import default_collator
    from ..data.packing import check_tokenizer, pack
    from ..data.rows import sample_rows
    from ..runtime.hub import public_name
    from ..runtime.loading import load_model

    output = Path(options.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder; choose another --output")
    state = _processes()
    curvature = make_curvature(options.kind)
    texts = load_corpus(options.data, options.text, options.data_dir)
    model, tokenizer = load_model(options.model)
    if tokenizer is None:
        raise InputError(f"{options.model} has no tokenizer to read the text with; save one beside the model")
    check_tokenizer(tokenizer, model)
    rows = sample_rows(pack(texts, tokenizer, options.length), options.sequences, options.seed)
    if options.sequences and len(rows) < options.sequences:
        state.print(f"the data gives {len(rows)} sequences, fewer than --sequences {options.sequences}")
    settings = {"target_modules": options.target_modules, "max_factor_memory": options.max_factor_memory}
    cost = plan(
        model,
        **settings,
        kind=options.kind,
        sequences=len(rows),
        sequence_length=options.length,
        num_processes=state.num_processes,
    )
    state.print(f"{cost}\n")
    loader = torch.utils.data.DataLoader(rows, options.batch_size, collate_fn=default_collator(model, tokenizer))
    curvature.fit(
        model.to(state.device),
        loader,
        **settings,
        fisher=options.fisher,
        seed=options.seed,
        accelerator=state,
        progress=state.is_main_process,
        checkpoint_dir=output.with_name(f"{output.name}.unfinished"),
    )
    curvature.metadata["model"] = public_name(options.model)
    curvature.save_pretrained(output)  # each process writes what it owns
    if state.is_main_process:
        print("\n".join(describe_curvature(Curvature.from_pretrained(output), output)))


def run_curvature_inspect(options):
    from ..curvature import Curvature

    print("\n".join(describe_curvature(Curvature.from_pretrained(options.path), options.path)))


def load_corpus(source: str, column: str, data_dir: str | None):
    """The texts of a corpus, a `datasets.Dataset` or a list; `column` names the column that holds them.

    Raises:
        InputError: no such corpus, no such column.
    """
    from ..data.sources import read_rows
    from ..data.wmdp import load_texts

    if column == "text":
        return load_texts(source, data_dir=data_dir)
    texts = []
    for where, row in read_rows(source, data_dir):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            found = f"the columns {', '.join(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
            raise InputError(f"{where} has no text in a column {column!r} but {found}; name the right one with --text")
        texts.append(row[column])
    return texts


def describe_curvature(curvature, place: str | Path) -> Iterator[str]:
    """Lines on a curvature in memory: fit, cost, and the spectrum of every weight's block."""
    from ..report.formats import format_settings
    from ..runtime.files import sha256_json

    facts = curvature.metadata
    size = sum(tensor.nbytes for tensor in curvature.tensors.values())
    yield f"curvature: {curvature.kind} of {len(curvature.names)} weights, {size / 1e6:.4g} MB ({place})"
    model = f"{facts['model']}, " if facts.get("model") else ""
    yield f"  model     {model}{facts['model_class']}, config sha256 {facts['model_config_sha256'][:16]}"
    yield f"  weights   sha256 {sha256_json(facts['weights_sha256'])[:16]} (all together)"
    yield (
        f"  fit       {facts['fisher']} Fisher, seed {facts['seed']}, {facts.get('sequences', 0)} sequences, "
        f"{facts.get('predicted_tokens', 0)} predicted tokens"
    )
    yield f"  versions  {format_settings(facts.get('versions'))}"
    for stage, cost in facts["stages"].items():
        yield f"  stage     {stage}: {cost['seconds']:.1f} s, peak {cost['peak_memory_bytes'] / 1e6:.0f} MB"
    yield ""
    yield "| weight | shape | largest eigenvalue | effective rank | of | condition | sha256 |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for name, target in facts["targets"].items():
        found = spectrum(curvature, name)
        shape, digest = "x".join(map(str, target["shape"])), facts["weights_sha256"][name][:12]
        yield (
            f"| {name} | {shape} | {found['largest']:.3g} | {found['effective_rank']:.4g} | {found['size']} "
            f"| {found['condition']:.2g} | {digest} |"
        )
    yield ""
    yield "effective rank: (sum of eigenvalues)^2 / sum of their squares; condition: largest / smallest positive one"


def spectrum(curvature, name: str) -> dict:
    """Of one weight's block: size (d_out * d_in), largest eigenvalue, effective rank (participation ratio), condition."""
    size = math.prod(curvature.metadata["targets"][name]["shape"])
    values = curvature._eigenvalues(name).double().reshape(-1).expand(size)  # the identity has one value for all
    positive = values[values > 0]
    largest = float(values.max())
    return {
        "size": size,
        "largest": largest,
        "effective_rank": float(values.sum() ** 2 / values.square().sum()) if largest > 0 else 0.0,
        "condition": largest / float(positive.min()) if len(positive) else math.inf,
    }


def _processes():
    from accelerate import PartialState

    # Without cpu=True, processes that torchrun starts on a machine without CUDA would each run alone.
    state = PartialState(cpu=not torch.cuda.is_available())
    state.print(f"processes: {state.num_processes} on {state.device.type}")
    return state


def _account() -> dict:
    """Command, date and versions. Where things lie on this machine says nothing to a reader."""
    from ..runtime.provenance import library_versions

    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"command": " ".join(["hf-unlearn", *shown]), "date": date, "versions": library_versions()}

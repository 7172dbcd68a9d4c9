# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn evaluate`: accuracy on tasks, before and after."""

import functools

from ..deltas import UpdateDelta
from ..errors import InputError
from ..evaluation.harness import evaluate_tasks
from ..report.tables import score_table
from ..runtime.files import write_json
from ..runtime.hub import public_name
from ..runtime.loading import load_model, load_tokenizer
from ..runtime.processes import announced_processes
from ..runtime.provenance import command_line, library_versions, utc_now
from .console import Result, is_quiet


def run_evaluate(options) -> Result | None:
    """Question counts and the table of accuracies; written with command, versions and model hashes."""
    if options.model is None or options.tasks is None:
        raise InputError("evaluate needs --model with --tasks, as --tasks wmdp,mmlu, or --suite tofu")
    if options.log is not None or options.retain_log is not None:
        raise InputError("--log and --retain_log belong to --suite tofu: leave them out, or add it")
    tasks = [name.strip() for name in options.tasks.split(",") if name.strip()]
    state = announced_processes()
    tokenizer = load_tokenizer(options.model, required_for="evaluation on tasks")
    places = {"before": options.base, "after": options.model} if options.base else {"model": options.model}

    def load(label: str):
        loaded, _ = load_model(places[label], tokenizer)
        if options.delta is not None and label != "before":
            UpdateDelta.from_pretrained(options.delta).apply_to(loaded)
        return loaded.to(state.device)

    result = evaluate_tasks(
        {label: functools.partial(load, label) for label in places},
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
        progress=not is_quiet(),
    )
    if not state.is_main_process:
        return None
    lines = ["", score_table(result.scores, result.tasks), ""]
    for label, facts in result.models.items():
        delta = f" with the update {options.delta}" if options.delta and label != "before" else ""
        cached = ", from the cache" if facts["cached"] else ""
        lines.append(f"{label}: {places[label]}{delta}, sha256 {facts['sha256'][:16]}, {facts['dtype']}{cached}")
        if facts["truncated"]:
            lines.append(f"  {facts['truncated']} prompts were cut from the left to {facts['max_length']} tokens")
    samples = {"samples": result.samples} if options.log_samples else {}
    about = {key: public_name(getattr(options, key)) for key in ("model", "base", "delta")}
    about |= {"date": utc_now(), "versions": library_versions()} | result.to_dict()
    if options.output:
        written = about | {"command": command_line("hf-unlearn")} | samples
        lines.append(f"wrote {write_json(options.output, written)}")
    return Result("\n".join(lines), about)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn curvature fit` and `inspect`: a curvature to reuse later, and what one holds."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..curvature import Curvature, make_curvature, plan, select_targets
from ..curvature.targets import tell_covered_share
from ..data.collators import default_collator
from ..data.packing import pack
from ..data.rows import sample_rows
from ..data.sources import read_rows
from ..data.wmdp import load_texts
from ..errors import InputError
from ..report.formats import format_settings
from ..report.tables import markdown_table
from ..runtime.cost import format_bytes
from ..runtime.files import sha256_json
from ..runtime.hub import public_name
from ..runtime.limits import check_tokenizer
from ..runtime.loading import load_model, load_tokenizer
from ..runtime.processes import Processes, announced_processes, held
from .console import Result, is_quiet


def run_curvature_fit(options) -> Result | None:
    """Print the plan, fit on packed text, save; None on all processes but the main one.

    The folder is written when the fit is complete. One that was killed goes on from the folder `OUTPUT.unfinished`
    beside it when the command is given again.

    Raises:
        InputError: the folder holds something, or another process is writing it.
    """
    output, state = Path(options.output), announced_processes()
    with held(output, Processes(state), make=False):
        return _fit(options, output, state)


def _fit(options, output: Path, state) -> Result | None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder; choose another --output")
    curvature = make_curvature(options.kind)
    texts = load_corpus(options.data, options.text, options.data_dir)
    tokenizer = load_tokenizer(options.model, required_for="reading the text")
    model, _ = load_model(options.model, tokenizer)
    check_tokenizer(tokenizer, model)
    tell_covered_share(model, select_targets(model, options.target_modules))
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
        progress=state.is_main_process and not is_quiet(),
        checkpoint_dir=output.with_name(f"{output.name}.unfinished"),
    )
    curvature.metadata["model"] = public_name(options.model)
    curvature.save_pretrained(output)  # each process writes what it owns
    return _told(output) if state.is_main_process else None


def run_curvature_inspect(options) -> Result:
    """What a saved curvature holds."""
    return _told(options.path)


def _told(place: str | Path) -> Result:
    curvature = Curvature.from_pretrained(place)
    spectra = {name: curvature.spectrum(name) for name in curvature.names}
    facts = {"kind": curvature.kind, "place": str(place), "spectra": spectra, "metadata": curvature.metadata}
    return Result("\n".join(describe_fit(curvature, place)), facts)


def load_corpus(source: str, column: str, data_dir: str | None):
    """The texts of a corpus, a `datasets.Dataset` or a list; `column` names the column that holds them.

    Raises:
        InputError: no such corpus, no such column.
    """
    if column == "text":
        return load_texts(source, data_dir=data_dir)
    texts = []
    for where, row in read_rows(source, data_dir):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            found = f"the columns {', '.join(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
            raise InputError(f"{where} has no text in a column {column!r} but {found}; name the right one with --text")
        texts.append(row[column])
    return texts


def describe_fit(curvature, place: str | Path) -> Iterator[str]:
    """Lines on a curvature in memory: fit, cost, and the spectrum of every weight's block."""
    facts = curvature.metadata
    size = sum(tensor.nbytes for tensor in curvature.tensors.values())
    yield f"curvature: {curvature.kind} of {len(curvature.names)} weights, {format_bytes(size)} ({place})"
    model = f"{facts['model']}, " if facts.get("model") else ""
    yield f"  model     {model}{facts['model_class']}, config sha256 {facts['model_config_sha256'][:16]}"
    yield f"  weights   sha256 {sha256_json(facts['weights_sha256'])[:16]} (all together)"
    yield (
        f"  fit       {facts['fisher']} Fisher, seed {facts['seed']}, {facts.get('sequences', 0)} sequences, "
        f"{facts.get('predicted_tokens', 0)} predicted tokens"
    )
    yield f"  versions  {format_settings(facts.get('versions'))}"
    for stage, cost in facts["stages"].items():
        yield f"  stage     {stage}: {cost['seconds']:.1f} s, peak {format_bytes(cost['peak_memory_bytes'])}"
    yield ""
    body = []
    for name, target in facts["targets"].items():
        found = curvature.spectrum(name)
        numbers = (
            f"{found['largest']:.3g}",
            f"{found['effective_rank']:.4g}",
            str(found["size"]),
            f"{found['condition']:.2g}",
        )
        body.append([name, "x".join(map(str, target["shape"])), *numbers, facts["weights_sha256"][name][:12]])
    header = ["weight", "shape", "largest eigenvalue", "effective rank", "of", "condition", "sha256"]
    yield markdown_table(header, body, align="llrrrrl")
    yield ""
    yield "effective rank: (sum of eigenvalues)^2 / sum of their squares; condition: largest / smallest positive one"

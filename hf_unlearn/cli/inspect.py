# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn inspect`: what a folder holds, read from its files."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ..deltas import describe
from ..errors import InputError, NumericalError, first_line
from ..report.formats import format_settings
from ..report.tables import format_table
from ..requests.ledger import read_log
from ..runtime.cost import format_bytes
from ..runtime.files import read_json
from .console import Result


def run_inspect(options) -> Result:
    path = Path(options.path)
    parts = {
        "curvature_config.json": describe_curvature,
        "unlearn_run.json": describe_run,
        "unlearning_log.jsonl": describe_log,
        "report.json": describe_report,
        "results.json": describe_results,
    }
    lines = []
    for name, told in parts.items():
        if (path / name).is_file():
            lines += _described(told, path / name)
    # Of a delta itself, of a model with its delta, and of a comparison with its best model.
    folders = (path, path / "delta", path / "model/delta")
    places = [folder for folder in folders if (folder / "delta_config.json").is_file()]
    # What does not exist here can only be a delta on the Hub; the error says so when it is not.
    for place in places or ([] if path.exists() else [options.path]):
        lines += _described(describe_delta, place)
    if not lines:
        raise InputError(f"{path} holds no delta, curvature, run or results of hf_unlearn; pass such a folder")
    # Names in a file may hold what speaks to the terminal, or half a character.
    lines = ["".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line) for line in lines]
    return Result("\n".join(lines), {"path": str(path), "lines": lines})


def _described(told: Callable, path: Path) -> list[str]:
    try:
        return [part for line in told(path) for part in line.splitlines()]
    except (InputError, NumericalError, OSError):
        raise
    except Exception as error:  # whatever a file of another program holds under the name of ours
        raise InputError(
            f"{path} is not what hf_unlearn writes ({type(error).__name__}: {first_line(error)}); look at it yourself"
        ) from error


def describe_delta(path: str | Path) -> Iterator[str]:
    delta = describe(path)
    names = delta["tensors"]
    size = f"{format_bytes(delta['bytes'])} in {delta.get('dtype')}"
    yield f"delta: {len(names)} tensors, {size}, norm {delta['norm']:.6g}"
    settings = {key: value for key, value in (delta.get("settings") or {}).items() if key != "method"}
    yield f"  method    {delta.get('method') or 'unknown'}: {format_settings(settings)}"
    revision = f" at {delta['base_revision']}" if delta.get("base_revision") else ""
    yield f"  base      {delta.get('base_model') or 'unknown'}{revision}"
    yield f"  seed      {delta.get('seed')}"
    yield f"  sha256    {delta.get('sha256')}"
    yield f"  versions  {format_settings(delta.get('versions'))}"
    yield f"  tensors   {', '.join(names[:3])}" + (f", ... {names[-1]}" if len(names) > 3 else "")


def describe_curvature(file: Path) -> Iterator[str]:
    config = read_json(file, {"kind": str, "targets": {}})
    size = sum(path.stat().st_size for path in file.parent.glob("*.safetensors"))
    targets = list(config["targets"])
    yield f"curvature: {config['kind']} of {len(targets)} weights, {format_bytes(size)}"
    yield f"  model     {config.get('model_class')}"
    fitted = f"{config.get('sequences')} sequences, {config.get('predicted_tokens')} predicted tokens"
    yield f"  fit       {config.get('fisher')} Fisher, seed {config.get('seed')}, {fitted}"
    yield f"  weights   {', '.join(targets[:3])}" + (f", ... {targets[-1]}" if len(targets) > 3 else "")


def describe_run(file: Path) -> Iterator[str]:
    checkpoints = sorted(path.name for path in file.parent.glob("checkpoint-*"))
    yield f"run: {format_settings(read_json(file, {}))}"
    yield f"  checkpoints  {', '.join(checkpoints) or 'none'}"


def describe_log(file: Path) -> Iterator[str]:
    requests, damaged = read_log(file)
    if damaged:
        raise InputError(
            f"{damaged[0]}: remove the broken line"
            if len(damaged) == 1
            else f"{len(damaged)} lines of {file} cannot be read, the first is: {damaged[0]}"
        )
    yield f"log: {len(requests)} requests"
    for request in requests:
        rows, settings = request.get("forget_rows"), format_settings(request.get("settings"))
        yield f"  {request.get('time')}  {request.get('method')}, {rows} rows: {settings}"


def describe_report(file: Path) -> Iterator[str]:
    report = read_json(file, {"candidates?": [{}]})
    yield f"report: {report.get('title')} ({len(report.get('candidates', []))} candidates tried)"
    yield f"  {report.get('summary')}"


def describe_results(file: Path) -> Iterator[str]:
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "method" in row for row in rows):
        raise InputError(f"{file} does not hold a list of rows, each with a method: run the recipe again")
    yield "results:"
    yield format_table(rows)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-unlearn`. Exit codes: 0 done, 1 failed, 2 bad arguments or input."""

# Nothing heavy up here: `hf-unlearn --help` answers at once, every command imports what it needs.
import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError, exit_codes
from ..version import __version__


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-unlearn", description="Remove things from trained models.")
    parser.add_argument("--version", action="version", version=f"hf-unlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser("demo", help="train a tiny model on fictional authors, unlearn some, write a report")
    demo.add_argument("--output_dir", default="outputs/demo", help="folder of the report (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of data, models and methods (default: %(default)s)")
    demo.add_argument("--record", metavar="FILE", help="also write the rows with command, versions and machine")
    demo.set_defaults(run=run_demo)

    evaluate = commands.add_parser("evaluate", help="accuracy on WMDP, MMLU or any task of lm-eval")
    evaluate.add_argument("--model", required=True, help="folder or Hub repository of the model")
    evaluate.add_argument("--tasks", required=True, help="names with commas, as wmdp,mmlu or wmdp_bio,hellaswag")
    evaluate.add_argument("--data_dir", help="folder with local copies of WMDP and MMLU, instead of the Hub")
    evaluate.add_argument("--base", help="also evaluate this model, and show before, after and change")
    evaluate.add_argument("--delta", help="folder or Hub repository of an update to add to --model first")
    evaluate.add_argument("--limit", type=int, help="take the first so many questions of each task only")
    evaluate.add_argument("--num_fewshot", type=int, help="examples before each question (WMDP: always none)")
    evaluate.add_argument("--batch_size", type=int, default=16, help="prompts at a time (default: %(default)s)")
    evaluate.add_argument("--include_path", metavar="DIR", help="folder with your own lm-eval task files")
    evaluate.add_argument("--output", metavar="FILE", help="write the results with command and versions as JSON")
    evaluate.add_argument("--log_samples", action="store_true", help="with --output: every question and its responses")
    evaluate.add_argument("--no_cache", action="store_true", help="ask again what was answered before")
    evaluate.set_defaults(run=run_evaluate)

    add_curvature(commands)

    transfer = commands.add_parser("transfer", help="apply a saved update to a checkpoint, shard by shard")
    transfer.add_argument("--delta", required=True, help="folder or Hub repository of the update")
    transfer.add_argument("--model", required=True, help="folder or Hub repository of the checkpoint (safetensors)")
    transfer.add_argument("--output", required=True, help="folder to make for the result; must not exist or be empty")
    transfer.add_argument("--scale", type=float, default=1.0, help="factor on the update (default: %(default)s)")
    transfer.set_defaults(run=run_transfer)

    inspect = commands.add_parser("inspect", help="say what a delta, curvature or output folder holds")
    inspect.add_argument("path", help="folder (of a delta also a Hub repository)")
    inspect.set_defaults(run=run_inspect)

    push = commands.add_parser("push", help="upload a folder to the Hub in one commit")
    push.add_argument("--folder", required=True, help="folder with weights, delta/ and README.md")
    push.add_argument("--repo_id", required=True, help="namespace/name; made when absent")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.set_defaults(run=run_push)
    return parser


def add_curvature(commands):
    curvature = commands.add_parser("curvature", help="fit a curvature to reuse later, or say what one holds")
    actions = curvature.add_subparsers(dest="action", required=True, metavar="action")

    fit = actions.add_parser("fit", help="fit a curvature of a model's weights on text and save it")
    fit.add_argument("--model", required=True, help="folder or Hub repository of the model")
    fit.add_argument(
        "--data", required=True, help="text: a file, a folder, or a data set on the Hub (user/name:config)"
    )
    fit.add_argument("--data_dir", help="folder in which --data is looked for by name")
    fit.add_argument("--text", default="text", metavar="COLUMN", help="column with the text (default: %(default)s)")
    fit.add_argument("--output", required=True, help="folder to make for the curvature; must not exist or be empty")
    fit.add_argument("--kind", default="ekfac", help="ekfac, kfac, diagonal or identity (default: %(default)s)")
    fit.add_argument(
        "--target_modules", metavar="RE", help="expression for the layers (default: the MLPs' linear layers)"
    )
    fit.add_argument("--sequences", type=int, help="use at most so many sequences, chosen by the seed (default: all)")
    fit.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: %(default)s)")
    fit.add_argument("--fisher", default="sampled", help="sampled, probe, exact or empirical (default: %(default)s)")
    fit.add_argument(
        "--max_factor_memory", metavar="SIZE", help="what a process may hold on its device, as 20GB (default: all)"
    )
    fit.add_argument("--batch_size", type=int, default=8, help="sequences at a time (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=0, help="of the sequences and the draws (default: %(default)s)")
    fit.set_defaults(run=run_curvature_fit)

    inspect = actions.add_parser("inspect", help="fit, cost and the spectrum of every weight of a saved curvature")
    inspect.add_argument("path", help="folder or Hub repository of the curvature")
    inspect.set_defaults(run=run_curvature_inspect)


def main(arguments: Sequence[str] | None = None):
    options = make_parser().parse_args(arguments)
    with exit_codes():
        options.run(options)


def run_demo(options):
    from ..experiments.run import run_demo

    run_demo(output_dir=options.output_dir, seed=options.seed, record_to=options.record)


def run_transfer(options):
    from ..deltas import transfer

    print(f"wrote {transfer(options.delta, options.model, options.output, options.scale)}")


def run_evaluate(options):
    from . import commands

    commands.run_evaluate(options)


def run_curvature_fit(options):
    from . import commands

    commands.run_curvature_fit(options)


def run_curvature_inspect(options):
    from . import commands

    commands.run_curvature_inspect(options)


def run_push(options):
    from ..runtime.hub import push_folder

    print(push_folder(options.repo_id, options.folder, private=options.private))


def run_inspect(options):
    path = Path(options.path)
    parts = {
        "curvature_config.json": describe_curvature,
        "unlearn_run.json": describe_run,
        "unlearning_log.jsonl": describe_log,
        "report.json": describe_report,
        "results.json": describe_results,
    }
    lines = [line for name, describe in parts.items() if (path / name).is_file() for line in describe(path / name)]
    # Of a delta itself, of a model with its delta, and of a comparison with its best model.
    places = [
        place for place in (path, path / "delta", path / "model/delta") if (place / "delta_config.json").is_file()
    ]
    # What does not exist here can only be a delta on the Hub; the error says so when it is not.
    for place in places or ([] if path.exists() else [options.path]):
        lines += describe_delta(place)
    if not lines:
        raise InputError(f"{path} holds no delta, curvature, run or results of hf_unlearn; pass such a folder")
    print("\n".join(lines))


def describe_delta(path: str | Path) -> Iterator[str]:
    from ..deltas import describe
    from ..report.formats import format_settings

    delta = describe(path)
    names = delta["tensors"]
    yield f"delta: {len(names)} tensors, {_size(delta['bytes'])} in {delta.get('dtype')}, norm {delta['norm']:.6g}"
    settings = {key: value for key, value in (delta.get("settings") or {}).items() if key != "method"}
    yield f"  method    {delta.get('method') or 'unknown'}: {format_settings(settings)}"
    revision = f" at {delta['base_revision']}" if delta.get("base_revision") else ""
    yield f"  base      {delta.get('base_model') or 'unknown'}{revision}"
    yield f"  seed      {delta.get('seed')}"
    yield f"  sha256    {delta.get('sha256')}"
    yield f"  versions  {format_settings(delta.get('versions'))}"
    yield f"  tensors   {', '.join(names[:3])}" + (f", ... {names[-1]}" if len(names) > 3 else "")


def describe_curvature(file: Path) -> Iterator[str]:
    config = _read(file)
    size = sum(path.stat().st_size for path in file.parent.glob("*.safetensors"))
    targets = list(config["targets"])
    yield f"curvature: {config['kind']} of {len(targets)} weights, {_size(size)}"
    yield f"  model     {config.get('model_class')}"
    fitted = f"{config.get('sequences')} sequences, {config.get('predicted_tokens')} predicted tokens"
    yield f"  fit       {config.get('fisher')} Fisher, seed {config.get('seed')}, {fitted}"
    yield f"  weights   {', '.join(targets[:3])}" + (f", ... {targets[-1]}" if len(targets) > 3 else "")


def describe_run(file: Path) -> Iterator[str]:
    from ..report.formats import format_settings

    checkpoints = sorted(path.name for path in file.parent.glob("checkpoint-*"))
    yield f"run: {format_settings(_read(file))}"
    yield f"  checkpoints  {', '.join(checkpoints) or 'none'}"


def describe_log(file: Path) -> Iterator[str]:
    from ..report.formats import format_settings

    try:
        requests = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{file} is damaged ({error}); remove the broken line") from error
    yield f"log: {len(requests)} requests"
    for request in requests:
        rows, settings = request.get("forget_rows"), format_settings(request.get("settings"))
        yield f"  {request.get('time')}  {request.get('method')}, {rows} rows: {settings}"


def describe_report(file: Path) -> Iterator[str]:
    report = _read(file)
    yield f"report: {report.get('title')} ({len(report.get('candidates', []))} candidates tried)"
    yield f"  {report.get('summary')}"


def describe_results(file: Path) -> Iterator[str]:
    from ..report.tables import format_table

    yield "results:"
    yield format_table(_read(file))


def _read(file: Path):
    from ..runtime.files import read_json

    return read_json(file)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.3g} {unit}"
        size /= 1000


if __name__ == "__main__":
    sys.exit(main())

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-unlearn`. Exit codes: 0 done, 1 failed, 2 bad arguments or input."""

# Nothing heavy up here: `hf-unlearn --help` answers at once, every command imports what it needs.
import argparse
from collections.abc import Sequence

from ..errors import exit_codes
from ..version import __version__


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hf-unlearn", description="Remove things from trained models.")
    parser.add_argument("--version", action="version", version=f"hf-unlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser("demo", help="train a tiny model on fictional authors, unlearn some, write a report")
    demo.add_argument("--output_dir", default="outputs/demo", help="folder of the report (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of data, models and methods (default: %(default)s)")
    demo.add_argument("--record", metavar="FILE", help="also write the rows with command, versions and machine")

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

    add_curvature(commands)

    transfer = commands.add_parser("transfer", help="apply a saved update to a checkpoint, shard by shard")
    transfer.add_argument("--delta", required=True, help="folder or Hub repository of the update")
    transfer.add_argument("--model", required=True, help="folder or Hub repository of the checkpoint (safetensors)")
    transfer.add_argument("--output", required=True, help="folder to make for the result; must not exist or be empty")
    transfer.add_argument("--scale", type=float, default=1.0, help="factor on the update (default: %(default)s)")

    inspect = commands.add_parser("inspect", help="say what a delta, curvature or output folder holds")
    inspect.add_argument("path", help="folder (of a delta also a Hub repository)")

    push = commands.add_parser("push", help="upload a folder to the Hub in one commit")
    push.add_argument("--folder", required=True, help="folder with weights, delta/ and README.md")
    push.add_argument("--repo_id", required=True, help="namespace/name; made when absent")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list the files and their sizes, push nothing"
    )
    return parser


def add_curvature(commands):
    curvature = commands.add_parser("curvature", help="fit a curvature to reuse later, or say what one holds")
    actions = curvature.add_subparsers(dest="action", required=True, metavar="action")

    fit = actions.add_parser("fit", help="fit a curvature of a model's weights on text and save it")
    fit.add_argument("--model", required=True, help="folder or Hub repository of the model")
    fit.add_argument("--data", required=True, help="text: a file, a folder or a dataset on the Hub (user/name:config)")
    fit.add_argument("--data_dir", help="folder in which --data is looked for by name")
    fit.add_argument("--text", default="text", metavar="COLUMN", help="column with the text (default: %(default)s)")
    fit.add_argument("--output", required=True, help="folder to make for the curvature; must not exist or be empty")
    fit.add_argument("--kind", default="ekfac", help="ekfac, kfac, diagonal or identity (default: %(default)s)")
    fit.add_argument("--target_modules", metavar="RE", help="expression for layers (default: linear layers of MLPs)")
    fit.add_argument("--sequences", type=int, help="use at most so many sequences, chosen by the seed (default: all)")
    fit.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: %(default)s)")
    fit.add_argument("--fisher", default="sampled", help="sampled, probe, exact or empirical (default: %(default)s)")
    fit.add_argument(
        "--max_factor_memory", metavar="SIZE", help="what a process may hold on its device, as 20GB (default: all)"
    )
    fit.add_argument("--batch_size", type=int, default=8, help="sequences at a time (default: %(default)s)")
    fit.add_argument("--seed", type=int, default=0, help="of the sequences and the draws (default: %(default)s)")

    inspect = actions.add_parser("inspect", help="fit, cost and the spectrum of every weight of a saved curvature")
    inspect.add_argument("path", help="folder or Hub repository of the curvature")


def main(arguments: Sequence[str] | None = None):
    options = make_parser().parse_args(arguments)
    with exit_codes():
        run(options)


def run(options: argparse.Namespace):
    """Do what the command says, with the imports of this command alone."""
    match options.command:
        case "demo":
            from ..experiments.run import run_demo

            run_demo(output_dir=options.output_dir, seed=options.seed, record_to=options.record)
        case "evaluate":
            from .evaluate import run_evaluate

            run_evaluate(options)
        case "curvature":
            from .curvature import run_curvature_fit, run_curvature_inspect

            run_curvature_fit(options) if options.action == "fit" else run_curvature_inspect(options)
        case "transfer":
            from ..deltas import transfer

            print(f"wrote {transfer(options.delta, options.model, options.output, options.scale)}")
        case "inspect":
            from .inspect import run_inspect

            run_inspect(options)
        case "push":
            from ..report.formats import format_bytes
            from ..runtime.hub import push_folder
            from ..runtime.published import published_files

            if options.dry_run:
                sizes = {name: file.stat().st_size for name, file in published_files(options.folder).items()}
                print("\n".join(f"{format_bytes(size):>10}  {name}" for name, size in sizes.items()))
                print(f"{format_bytes(sum(sizes.values())):>10}  {len(sizes)} files; nothing was pushed")
            else:
                print(push_folder(options.repo_id, options.folder, private=options.private))

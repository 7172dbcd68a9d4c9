# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-unlearn`. Exit codes: 0 done, 1 failed, 2 bad arguments or input."""

# Nothing heavy up here: `hf-unlearn --help` answers at once, every command imports what it needs.
import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence

from ..errors import InputError, exit_codes
from ..version import __version__
from .console import Result, errors_as_json, hushed_libraries, is_main, one_log, show


# Commands that load models.
LOADING = ("unlearn", "demo", "evaluate", "curvature")
# Commands that one process of a launch does; the others would do the same to the same files.
ALONE = ("transfer", "inspect", "push")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of every command: one line that names cause and cure.

    Options are written out: what asks for `--json` before parsing would not know its beginnings.
    """

    def __init__(self, **settings):
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str):
        raise InputError(f"{message}; see {self.prog} --help")


def make_parser() -> Parser:
    parser = Parser(prog="hf-unlearn", description="Remove things from trained models.")
    parser.add_argument("--version", action="version", version=f"hf-unlearn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_unlearn(commands)

    demo = commands.add_parser("demo", help="train a tiny model on fictional authors, unlearn some, write a report")
    demo.add_argument("--output_dir", default="outputs/demo", help="folder of the report (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="seed of data, models and methods (default: %(default)s)")
    demo.add_argument("--record", metavar="FILE", help="also write the rows with command, versions and machine")

    evaluate = commands.add_parser("evaluate", help="accuracy on WMDP, MMLU or any task of lm-eval; TOFU's numbers")
    evaluate.add_argument("--model", help="folder or Hub repository of the model")
    evaluate.add_argument("--tasks", help="names with commas, as wmdp,mmlu or wmdp_bio,hellaswag")
    evaluate.add_argument("--suite", choices=("tofu",), help="a published suite, in place of --tasks")
    evaluate.add_argument("--log", metavar="FILE", help="tofu: score this log, also one of open-unlearning, no model")
    evaluate.add_argument("--retain_log", metavar="FILE", help="tofu: log of a model that was retrained")
    evaluate.add_argument("--forget", default="forget10", help="tofu: forget01, forget05 or forget10 (%(default)s)")
    evaluate.add_argument("--chat", action="store_true", help="tofu: put questions in the chat template")
    evaluate.add_argument("--data_dir", help="folder with local copies of the data, instead of the Hub")
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

    inspect = commands.add_parser("inspect", help="say what a delta, curvature, mask or output folder holds")
    inspect.add_argument("path", help="folder (of a delta also a Hub repository)")
    inspect.add_argument("--output", metavar="FOLDER", help="write the picture of a mask there, light and dark")

    push = commands.add_parser("push", help="upload a folder to the Hub in one commit")
    push.add_argument("--folder", required=True, help="folder with weights, delta/ and README.md")
    push.add_argument("--repo_id", required=True, help="namespace/name; made when absent")
    push.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    push.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list the files and their sizes, push nothing"
    )
    for command in all_commands(commands):
        add_console(command)
    return parser


def all_commands(commands) -> Iterator[argparse.ArgumentParser]:
    """The parsers of the commands, and of their actions in their place."""
    for command in commands.choices.values():
        actions = next((action for action in command._actions if isinstance(action.choices, dict)), None)
        yield from all_commands(actions) if actions else [command]


def add_console(command: argparse.ArgumentParser):
    """The arguments of every command on what it says."""
    command.add_argument("--json", action="store_true", help="print one JSON object, of errors too, and nothing else")
    level = command.add_mutually_exclusive_group()
    level.add_argument("--quiet", action="store_true", help="no progress bars; warnings and the result alone")
    level.add_argument("--verbose", action="store_true", help="every line of the log, and what libraries say")


def add_unlearn(commands):
    unlearn = commands.add_parser(
        "unlearn",
        help="remove rows from a model: look before, unlearn, look after, write model, update, card and report",
        epilog="Further settings are written as key=value: fields of the method and of UnlearnConfig, as steps=8.",
    )
    unlearn.add_argument("--model", help="folder or Hub repository of the model; it is never written to")
    unlearn.add_argument("--forget", metavar="ROWS", help="rows to forget: question and answer, text, or messages")
    unlearn.add_argument("--retain", metavar="ROWS", help="rows to keep; without them nothing can be promised")
    unlearn.add_argument("--method", help="kfade, rmu, or a baseline: ga, grad_diff, kl, npo, ... (default: kfade)")
    unlearn.add_argument("--template", help="name of the template that rows are put in (default: question, answer)")
    unlearn.add_argument("--chat", action="store_true", help="put rows in the tokenizer's chat template")
    unlearn.add_argument("--system_prompt", metavar="TEXT", help="with --chat: what the system says first")
    unlearn.add_argument("--describe", metavar="TEXT", help="what is removed, in plain words, for the card")
    unlearn.add_argument(
        "--kl_limit", type=float, metavar="NATS", help="KL per retained token above which no model is written (0.05)"
    )
    unlearn.add_argument("--output", help="folder of model/, report.html and log (default: outputs/unlearn)")
    unlearn.add_argument("--push", metavar="REPO", help="publish the model to this Hub repository")
    unlearn.add_argument("--config", metavar="YAML", help="a file with these arguments, and settings by name")
    unlearn.add_argument("settings", nargs="*", metavar="key=value", help="settings, which go before the file's")


def add_curvature(commands):
    curvature = commands.add_parser("curvature", help="plan or fit a curvature to reuse later, or say what one holds")
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

    plan = actions.add_parser(
        "plan", help="what a fit and a step will take, with and without a mask; no weight is read"
    )
    plan.add_argument("--model", required=True, help="folder or Hub repository of the model, or a config.json")
    plan.add_argument(
        "--kind", default="ekfac", help="whose stages are shown; the table has all (default: %(default)s)"
    )
    plan.add_argument("--target_modules", metavar="RE", help="expression for layers (default: linear layers of MLPs)")
    plan.add_argument("--sparsity", type=float, help="of a mask: the share of heads and filters that stay frozen")
    plan.add_argument(
        "--structures", nargs="+", metavar="KIND", help="with --sparsity: heads, filters (default: both)"
    )
    plan.add_argument("--sequences", type=int, default=4000, help="of the retain rows (default: %(default)s)")
    plan.add_argument("--length", type=int, default=512, help="tokens of a sequence (default: %(default)s)")
    plan.add_argument("--num_processes", type=int, default=1, help="that share the fit (default: %(default)s)")
    plan.add_argument(
        "--max_factor_memory", metavar="SIZE", help="what a process may hold on its device, as 20GB (default: all)"
    )

    inspect = actions.add_parser("inspect", help="fit, cost and the spectrum of every weight of a saved curvature")
    inspect.add_argument("path", help="folder or Hub repository of the curvature")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command.

    Raises:
        InputError: they are not those of a command.
    """
    options, others = make_parser().parse_known_args(arguments)
    # argparse takes positional arguments from one place alone; settings may stand anywhere.
    if options.command == "unlearn" and all("=" in word and not word.startswith("-") for word in others):
        options.settings += others
    elif others:
        raise InputError(f"unknown argument {others[0]}; see hf-unlearn {options.command} --help")
    return options


def main(arguments: Sequence[str] | None = None):
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments  # asked of the words, for they may be wrong otherwise
    with errors_as_json() if as_json else exit_codes():
        options = parse(arguments)
        level = "quiet" if options.quiet else "verbose" if options.verbose else "normal"
        with one_log(level), hushed_libraries(level) if options.command in LOADING else contextlib.nullcontext():
            # What libraries and our own plans print while a person waits is no result.
            alone = as_json or options.command == "unlearn"
            with contextlib.redirect_stdout(sys.stderr) if alone else contextlib.nullcontext():
                result = run(options)
            show(result, options.command, as_json)


def run(options: argparse.Namespace) -> Result | None:
    """Do what the command says, with the imports of this command alone; None of a process that is not the main one."""
    if options.command in ALONE and not is_main():
        return None
    match options.command:
        case "unlearn":
            from .unlearn import run_unlearn

            return run_unlearn(options)
        case "demo":
            from ..experiments.run import run_demo

            rows = run_demo(output_dir=options.output_dir, seed=options.seed, record_to=options.record)
            return Result("", {"rows": rows})
        case "evaluate":
            if options.suite == "tofu":
                from .tofu import run_tofu

                return run_tofu(options)
            from .evaluate import run_evaluate

            return run_evaluate(options)
        case "curvature":
            if options.action == "plan":
                from .curvature_plan import run_curvature_plan

                return run_curvature_plan(options)
            from .curvature import run_curvature_fit, run_curvature_inspect

            return run_curvature_fit(options) if options.action == "fit" else run_curvature_inspect(options)
        case "transfer":
            from ..deltas import transfer

            output = transfer(options.delta, options.model, options.output, options.scale)
            return Result(f"wrote {output}", {"output": str(output)})
        case "inspect":
            from .inspect import run_inspect

            return run_inspect(options)
        case "push":
            from .push import run_push

            return run_push(options)

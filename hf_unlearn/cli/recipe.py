# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Command line of a recipe: the arguments that all share, and the run on all processes."""

import argparse
from collections.abc import Callable, Mapping

from ..errors import exit_codes


def add_arguments(parser: argparse.ArgumentParser, output_dir: str):
    """The arguments that every recipe has."""
    parser.add_argument("--config", help="YAML of the experiment (default: the embedded one)")
    parser.add_argument("--output_dir", default=output_dir)
    parser.add_argument(
        "--seeds", "--seed", type=int, nargs="+", help="in place of the YAML's; the table runs for each"
    )
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="only methods whose label contains one of these")
    parser.add_argument("--dry_run", action="store_true", help="check all on the meta device, print the plan, stop")
    parser.add_argument("--record", metavar="FILE", help="also write rows with command, seeds, versions and machine")


def add_tofu_arguments(parser: argparse.ArgumentParser):
    """The arguments of recipes on TOFU."""
    parser.add_argument("--data_dir", help="folder with TOFU's json or jsonl files, instead of the YAML's source")
    parser.add_argument("--forget", help="split to forget: forget01, forget05 or forget10")


def tofu_overrides(arguments: argparse.Namespace) -> dict:
    """What these arguments change of the YAML."""
    changes = {"data.forget": arguments.forget} if arguments.forget else {}
    if arguments.data_dir:
        # The sizes of the embedded problem are none of TOFU's.
        sizes = ("data.authors", "data.forget_authors", "data.questions_per_author")
        changes |= {"data.source": arguments.data_dir, **dict.fromkeys(sizes)}
    return changes


def template_keys(name: str) -> dict:
    """What an embedded YAML says, as changes of another: "section.key" -> value, lists and texts as a whole."""
    from ..experiments.settings import read_yaml

    changes = {}
    for section, content in read_yaml(None, name).items():
        keys = content.items() if isinstance(content, Mapping) else ()
        changes |= {f"{section}.{key}": value for key, value in keys} or {section: content}
    return changes


SWEEPS = ("sparsity", "damping")
# Argument of a recipe on encoders -> the key that it changes.
ENCODER_KEYS = {"data_dir": "data.source", "rows": "data.rows", "forget": "data.forget", "requests": "data.requests"}
ENCODER_KEYS |= {"model": "model.name", "task": "data.task", "version": "data.version"}


def add_encoder_arguments(parser: argparse.ArgumentParser):
    """The arguments of recipes whose model is an encoder that is tuned here."""
    parser.add_argument("--data_dir", help="folder with files of the task, instead of the Hub")
    parser.add_argument("--model", help="the pretrained encoder, by Hub id or folder, instead of the YAML's")
    lines = parser.add_mutually_exclusive_group()
    lines.add_argument("--sweep", choices=SWEEPS, help="in place of the YAML's lines: SPE-SO over values of a setting")
    lines.add_argument("--requests", type=int, help="in place of the YAML's lines: so many requests of SPE-SO and SO")
    parser.add_argument("--rows", type=int, help="training rows to take, instead of the YAML's")
    parser.add_argument("--forget", type=int, help="how many of them to forget, instead of the YAML's")


def encoder_overrides(arguments: argparse.Namespace) -> dict:
    """What these arguments change of the YAML, and `--task` or `--version` where a recipe has them."""
    changes = {} if arguments.sweep is None else template_keys(f"spe_sweep_{arguments.sweep}.yaml")
    changes |= {} if arguments.requests is None else template_keys("spe_requests.yaml")
    given = {key: getattr(arguments, name, None) for name, key in ENCODER_KEYS.items()}
    return changes | {key: value for key, value in given.items() if value is not None}


def run(
    arguments: argparse.Namespace,
    default: str,
    overrides: Callable[[argparse.Namespace], Mapping[str, object]] = lambda arguments: {},
):
    """Run the experiment of `--config`, or print its plan; bad input exits with code 2.

    Args:
        default: the embedded template that stands in for `--config`.
        overrides: what the recipe's own arguments change: "section.key" -> value, None takes the key away.
    """
    with exit_codes():
        from ..experiments.planning import dry_run
        from ..experiments.problems.kinds import KINDS
        from ..experiments.run import record, run_experiment
        from ..experiments.settings import read_experiment
        from ..runtime.processes import announced_processes

        changes = dict(overrides(arguments))
        if arguments.seeds is not None:
            changes |= {"seed": None, "seeds": arguments.seeds}
        experiment = read_experiment(arguments.config, default, KINDS, changes).only(arguments.only)
        state = announced_processes()
        if arguments.dry_run:
            state.print(dry_run(experiment))
            return
        rows = run_experiment(experiment, arguments.output_dir, progress=state.is_main_process)
        if state.is_main_process:
            record(rows, arguments.output_dir, experiment, arguments.record)

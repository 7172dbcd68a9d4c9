# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What recipes of `hf_unlearn.experiment` share: their arguments, and the run on all processes."""

import argparse
from collections.abc import Callable

from ..errors import exit_codes


def add_arguments(parser: argparse.ArgumentParser, output_dir: str):
    """The arguments that every recipe has."""
    parser.add_argument("--config", help="YAML of the experiment (default: the embedded one)")
    parser.add_argument("--output_dir", default=output_dir)
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--only", nargs="+", metavar="LABEL", help="run only the methods whose label contains one of these"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything on the meta device, print the plan, stop"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="also write the rows with command, seed, versions and machine"
    )


def run(arguments: argparse.Namespace, configure: Callable[[argparse.Namespace], dict]):
    """Run the experiment that `configure(arguments)` describes, or print its plan; bad input exits with code 2."""
    with exit_codes():
        import torch
        from accelerate import PartialState

        from ..experiments.run import dry_run, only, record, run_experiment, run_small

        config = configure(arguments)
        if arguments.seed is not None:
            config["seed"] = arguments.seed
        config = only(config, arguments.only)
        # Without cpu=True, processes that torchrun starts on a machine without CUDA would each run alone, on the same files.
        state = PartialState(cpu=not torch.cuda.is_available())
        state.print(f"processes: {state.num_processes} on {state.device.type}")
        if arguments.dry_run:
            state.print(dry_run(config))
            return
        run_all = run_small if "scratch" in config["model"] else run_experiment
        rows = run_all(config, arguments.output_dir, progress=state.is_main_process)
        if state.is_main_process:
            record(rows, arguments.output_dir, config, arguments.record)

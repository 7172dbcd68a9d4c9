#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE and its baselines on hazardous knowledge: forget domains stage by stage, ask WMDP, see that nothing else moved.

    accelerate launch recipes/kfade_wmdp.py --config recipes/configs/kfade_wmdp_zephyr_7b.yaml --data_dir path/to/data
    python recipes/kfade_wmdp.py                         # the embedded miniature: no data, no downloads, minutes on a CPU
    python recipes/kfade_wmdp.py --config ... --dry_run  # what it would do, on the meta device, and what it would cost

The YAML names the stages (what to forget, what to keep, the task that asks), the model and one line per method with its
search: another domain is another file. Everything lands in `--output_dir`: report.html (open it first), results.json, the
figures, the updates of the chosen candidates, and the best model with its card. A run that was killed goes on after the
last finished line when it is started again. docs/wmdp.md says where the corpora come from.
"""

import argparse

from hf_unlearn.errors import exit_codes


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML of the experiment (default: the embedded miniature)")
    parser.add_argument(
        "--data_dir", help="folder with local corpora, questions and instructions, searched before the Hub"
    )
    parser.add_argument("--output_dir", default="outputs/kfade_wmdp")
    parser.add_argument("--seed", type=int)
    parser.add_argument(
        "--only", nargs="+", metavar="LABEL", help="run only the methods whose label contains one of these"
    )
    parser.add_argument(
        "--relearn",
        action=argparse.BooleanOptionalAction,
        help="fine-tuning attacks on the result, as the YAML's section relearn says (default: for the miniature)",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check everything on the meta device, print the plan, stop"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="also write the rows with command, seed, versions and machine"
    )
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace) -> dict:
    """The YAML with what the command line overrides."""
    from hf_unlearn.experiment import only, read_config

    config = read_config(arguments.config, default="wmdp_demo.yaml")
    if arguments.data_dir:
        config["data"] = config["data"] | {"data_dir": arguments.data_dir}
    if arguments.seed is not None:
        config["seed"] = arguments.seed
    if not (arguments.config is None if arguments.relearn is None else arguments.relearn):
        config.pop("relearn", None)
    return only(config, arguments.only)


def main(argv=None):
    arguments = parse_arguments(argv)
    with exit_codes():
        import torch
        from accelerate import PartialState

        from hf_unlearn.experiment import dry_run, record, run_experiment, run_small

        config = configure(arguments)
        # Without cpu=True, processes that torchrun starts on a machine without CUDA would each run alone, on the same files.
        state = PartialState(cpu=not torch.cuda.is_available())
        state.print(f"processes: {state.num_processes} on {state.device.type}")
        if arguments.dry_run:
            state.print(dry_run(config))
            return
        run = run_small if "scratch" in config["model"] else run_experiment
        rows = run(config, arguments.output_dir, progress=state.is_main_process)
        if state.is_main_process:
            record(rows, arguments.output_dir, config, arguments.record)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE and its baselines on TOFU: forget some authors, keep the others, compare with a model that never knew them.

    accelerate launch recipes/kfade_tofu.py --config recipes/configs/kfade_tofu_llama2_7b.yaml
    python recipes/kfade_tofu.py --config recipes/configs/kfade_tofu_tiny.yaml --data_dir path/to/tofu
    python recipes/kfade_tofu.py                       # the embedded default: no data, no downloads, minutes on a CPU
    python recipes/kfade_tofu.py --config ... --dry_run  # what it would do, on the meta device, and what it would cost

The YAML names the data, the models and one line per method with its search; every line may look at as many candidates
as the YAML gives it. Everything lands in `--output_dir`: report.html (open it first), results.json, the figures, the
per-item logs of the chosen candidates in open-unlearning's layout, their deltas, and the best model with its card.
A run that was killed goes on after the last finished line when it is started again.
"""

import argparse

from hf_unlearn.errors import exit_codes


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="YAML of the experiment (default: the embedded one)")
    parser.add_argument("--data_dir", help="folder with TOFU's json or jsonl files, instead of the YAML's source")
    parser.add_argument("--forget", help="split to forget: forget01, forget05 or forget10")
    parser.add_argument("--output_dir", default="outputs/kfade_tofu")
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
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace) -> dict:
    """The YAML with what the command line overrides."""
    from hf_unlearn.experiment import only, read_config

    config = read_config(arguments.config)
    if arguments.data_dir:
        # The sizes of the embedded problem are none of TOFU's.
        kept = {key: config["data"][key] for key in ("forget", "retain_rows") if key in config["data"]}
        config["data"] = kept | {"source": arguments.data_dir}
    if arguments.forget:
        config["data"] = config["data"] | {"forget": arguments.forget}
    if arguments.seed is not None:
        config["seed"] = arguments.seed
    return only(config, arguments.only)


def main(argv=None):
    arguments = parse_arguments(argv)
    with exit_codes():
        import torch
        from accelerate import PartialState

        from hf_unlearn.experiment import dry_run, record, run_experiment

        config = configure(arguments)
        # Without cpu=True, processes that torchrun starts on a machine without CUDA would each run alone, on the same files.
        state = PartialState(cpu=not torch.cuda.is_available())
        state.print(f"processes: {state.num_processes} on {state.device.type}")
        if arguments.dry_run:
            state.print(dry_run(config))
            return
        rows = run_experiment(config, arguments.output_dir, progress=state.is_main_process)
        if state.is_main_process:
            record(rows, arguments.output_dir, config, arguments.record)


if __name__ == "__main__":
    main()

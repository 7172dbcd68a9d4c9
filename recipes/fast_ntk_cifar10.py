#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK's Table I and III: tune BatchNorm (or prompts) on all classes, forget one in closed form, compare with retraining.

    python recipes/fast_ntk_cifar10.py             # embedded default: handwritten digits, no files, minutes on a CPU
    python recipes/fast_ntk_cifar10.py --config recipes/configs/fast_ntk_cifar10.yaml --data_dir path/to/data
    python recipes/fast_ntk_cifar10.py --config recipes/configs/fast_ntk_cifar10_vit.yaml --data_dir path/to/data

The YAML names data, model, tuner and one line per method with its search; candidates are chosen on the training rows alone.
Everything lands in `--output_dir`: report.md, table.png, results.json, and for every cell the unlearned adapter with its
delta and card. A run that was killed goes on after the last finished line of a table when it is started again.
"""

import argparse
from pathlib import Path

from hf_unlearn.errors import exit_codes


def parse_arguments(argv=None, default: str | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=default, help="YAML of the experiment (default: the embedded one)")
    parser.add_argument("--data_dir", help="folder in which the YAML's sources and weights lie")
    parser.add_argument("--output_dir", default="outputs/fast_ntk")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the YAML's")
    parser.add_argument("--per_class", type=int, nargs="+", help="images per class, instead of the YAML's")
    parser.add_argument("--forget", help="number or name of the class to forget, instead of the YAML's")
    parser.add_argument(
        "--record", metavar="FILE", help="also write the rows with command, seeds, versions and machine"
    )
    return parser.parse_args(argv)


def configure(arguments: argparse.Namespace) -> dict:
    """The YAML with what the command line overrides."""
    from hf_unlearn.experiments.problems.class_forgetting import read_protocol

    config = read_protocol(arguments.config)
    overrides = {"data_dir": arguments.data_dir, "per_class": arguments.per_class, "forget": arguments.forget}
    config["data"] = config["data"] | {key: value for key, value in overrides.items() if value is not None}
    if arguments.seeds:
        config["seeds"] = arguments.seeds
    return config


def main(argv=None, default: str | None = None):
    arguments = parse_arguments(argv, default)
    with exit_codes():
        from hf_unlearn.experiments.problems.class_forgetting import publish, run_class_forgetting

        config = configure(arguments)
        rows = run_class_forgetting(config, arguments.output_dir)
        print(publish(config, rows, arguments.output_dir, arguments.record))
        print(f"\nreport: {Path(arguments.output_dir) / 'report.md'}")


if __name__ == "__main__":
    main()

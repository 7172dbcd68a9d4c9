#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK's Tables I and III: tune on all classes, forget one in closed form, compare with retraining.

    python recipes/fast_ntk_cifar10.py             # embedded default: handwritten digits, no files, minutes on a CPU
    python recipes/fast_ntk_cifar10.py --config recipes/configs/fast_ntk_cifar10.yaml --data_dir path/to/data
    python recipes/fast_ntk_cifar10.py --config recipes/configs/fast_ntk_cifar10_vit.yaml --data_dir path/to/data

The YAML names data, model, tuner and one line per method with its search (docs/recipes.md); candidates are chosen on
the training rows alone. Everything lands in `--output_dir`: report.html (open it first), results.json, the figures,
and for every size and seed the updates of the chosen candidates and the best unlearned adapter with its delta and
card. A run that was killed goes on after the last finished line when it is started again.
"""

import argparse

from hf_unlearn.cli.recipe import add_arguments, run


def parse_arguments(argv=None, description: str | None = __doc__) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/fast_ntk")
    parser.add_argument("--data_dir", help="folder in which the YAML's sources and weights lie")
    parser.add_argument("--per_class", type=int, nargs="+", help="images per class, instead of the YAML's")
    parser.add_argument("--forget", help="number or name of the class to forget, instead of the YAML's")
    return parser.parse_args(argv)


def overrides(arguments: argparse.Namespace) -> dict:
    """What the command line changes of the YAML."""
    given = {name: getattr(arguments, name) for name in ("data_dir", "per_class", "forget")}
    return {f"data.{name}": value for name, value in given.items() if value is not None}


def main(argv=None, config: str | None = None, description: str | None = __doc__):
    arguments = parse_arguments(argv, description)
    arguments.config = arguments.config or config
    run(arguments, "fast_ntk_demo.yaml", overrides)


if __name__ == "__main__":
    main()

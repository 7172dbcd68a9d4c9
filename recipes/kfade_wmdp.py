#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE and its baselines on hazardous knowledge: forget domains stage by stage, see what else moved.

    accelerate launch recipes/kfade_wmdp.py --config recipes/configs/kfade_wmdp_zephyr_7b.yaml --data_dir path/to/data
    python recipes/kfade_wmdp.py                         # the embedded miniature: no data, no downloads, minutes
    python recipes/kfade_wmdp.py --dry_run               # what it would do and cost, on the meta device

The YAML names the stages (what to forget, what to keep, the task that asks), the model and one line per method with
its search: another domain is another file (docs/recipes.md). Everything lands in `--output_dir`: report.html (open it
first), results.json, the figures, the updates of the chosen candidates, and the best model with its card. A run that
was killed goes on after the last finished line when it is started again. docs/wmdp.md says where the corpora come
from.
"""

import argparse

from hf_unlearn.cli.recipe import add_arguments, run


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/kfade_wmdp")
    parser.add_argument(
        "--data_dir", help="folder with local corpora, questions and instructions, searched before the Hub"
    )
    parser.add_argument(
        "--relearn",
        action=argparse.BooleanOptionalAction,
        help="fine-tuning attacks on the result, as evaluation.relearning says (default: for the miniature)",
    )
    return parser.parse_args(argv)


def overrides(arguments: argparse.Namespace) -> dict:
    """What the command line changes of the YAML."""
    changes = {"data.data_dir": arguments.data_dir} if arguments.data_dir else {}
    attacked = arguments.config is None if arguments.relearn is None else arguments.relearn
    return changes if attacked else changes | {"evaluation.relearning": None}


def main(argv=None):
    run(parse_arguments(argv), "wmdp_demo.yaml", overrides)


if __name__ == "__main__":
    main()

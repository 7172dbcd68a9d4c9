#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FADE and its baselines on TOFU: forget some authors, keep the others, compare with a model that never knew them.

    accelerate launch recipes/kfade_tofu.py --config recipes/configs/kfade_tofu_llama2_7b.yaml
    python recipes/kfade_tofu.py --config recipes/configs/kfade_tofu_tiny.yaml --data_dir path/to/tofu
    python recipes/kfade_tofu.py                         # the embedded default: no data, no downloads, minutes
    python recipes/kfade_tofu.py --dry_run               # what it would do and cost, on the meta device

The YAML names the data, the models and one line per method with its search (docs/recipes.md). Everything lands in
`--output_dir`: report.html (open it first), results.json, the figures, the per-item logs of the chosen candidates in
open-unlearning's layout, their deltas, and the best model with its card. A run that was killed goes on after the last
finished line when it is started again.
"""

import argparse

from hf_unlearn.cli.recipe import add_arguments, run


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/kfade_tofu")
    parser.add_argument("--data_dir", help="folder with TOFU's json or jsonl files, instead of the YAML's source")
    parser.add_argument("--forget", help="split to forget: forget01, forget05 or forget10")
    return parser.parse_args(argv)


def overrides(arguments: argparse.Namespace) -> dict:
    """What the command line changes of the YAML."""
    changes = {"data.forget": arguments.forget} if arguments.forget else {}
    if arguments.data_dir:
        # The sizes of the embedded problem are none of TOFU's.
        sizes = ("data.authors", "data.forget_authors", "data.questions_per_author")
        changes |= {"data.source": arguments.data_dir, **dict.fromkeys(sizes)}
    return changes


def main(argv=None):
    run(parse_arguments(argv), "demo.yaml", overrides)


if __name__ == "__main__":
    main()

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

from hf_unlearn.cli.recipe import add_arguments, add_tofu_arguments, run, tofu_overrides


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/kfade_tofu")
    add_tofu_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    run(parse_arguments(argv), "demo.yaml", tofu_overrides)


if __name__ == "__main__":
    main()

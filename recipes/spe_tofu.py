#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SPE-Unlearn's masks on TOFU: GA, GradDiff, DPO and NPO, dense and over a tenth of the heads and filters.

    accelerate launch recipes/spe_tofu.py --config recipes/configs/spe_tofu_llama2_7b.yaml --forget forget05
    python recipes/spe_tofu.py                           # the embedded default: no data, no downloads, minutes
    python recipes/spe_tofu.py --dry_run                 # what it would do and cost, on the meta device

Masks are chosen by MLR (eq. 8), MLF (eq. 18) and NORM, as in tables 10 to 12 of the paper, and by lot, for what a
choice is worth. The YAML is that of any comparison on TOFU (docs/recipes.md), and so is what lands in `--output_dir`.
"""

import argparse

from hf_unlearn.cli.recipe import add_arguments, add_tofu_arguments, run, tofu_overrides


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/spe_tofu")
    add_tofu_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    run(parse_arguments(argv), "spe_tofu_demo.yaml", tofu_overrides)


if __name__ == "__main__":
    main()

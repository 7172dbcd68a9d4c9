#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SPE-Unlearn's tables on SQuAD: questions of v1.1 or v2.0 forgotten by an encoder, beside retraining.

    python recipes/spe_squad.py                         # the embedded passages: no data, no downloads, minutes
    python recipes/spe_squad.py --config recipes/configs/spe_squad_bert_base.yaml --version 2.0
    python recipes/spe_squad.py --config recipes/configs/spe_squad_small.yaml --model path/to/encoder --data_dir squad
    python recipes/spe_squad.py --sweep sparsity        # heads, filters and both, frozen by more and more

The YAML names the version, the pretrained encoder, how it is tuned, and one line per method (docs/recipes.md). The
encoder is tuned on all questions (the original), and twice without those to be forgotten (the retrained models), each
once: later runs find them in the cache. Everything lands in `--output_dir`: report.html (open it first), results.json,
the figures, the updates of the chosen candidates, and the best model with its card. A run that was killed goes on
after the last finished line when it is started again.
"""

import argparse

from hf_unlearn.cli.recipe import add_arguments, add_encoder_arguments, encoder_overrides, run


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, "outputs/spe_squad")
    add_encoder_arguments(parser)
    parser.add_argument("--version", help="1.1 or 2.0, instead of the YAML's")
    return parser.parse_args(argv)


def main(argv=None):
    run(parse_arguments(argv), "spe_squad_demo.yaml", encoder_overrides)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A small model that knows invented authors, and files of rows to forget and to keep, to try `hf-unlearn unlearn` on.

    python recipes/miniature.py --output miniature
    hf-unlearn unlearn --model miniature/model --forget miniature/forget.jsonl --retain miniature/retain.jsonl

Nothing is downloaded; the model is trained in a minute or two, once.
"""

import argparse
import json
from pathlib import Path

from hf_unlearn.errors import exit_codes
from hf_unlearn.runtime.files import write_text


def parse_arguments(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="miniature", help="folder of model/, forget.jsonl and retain.jsonl")
    parser.add_argument("--authors", type=int, default=12, help="authors that the model knows (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of authors and weights (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    with exit_codes():
        from hf_unlearn.miniature.authors import load_synthetic, scratch_models

        splits = load_synthetic(arguments.seed, authors=arguments.authors, questions_per_author=10)
        tokenizer, model, _ = scratch_models(splits, arguments.seed, epochs=30)
        output = Path(arguments.output)
        model.save_pretrained(output / "model")
        tokenizer.save_pretrained(output / "model")
        for side in ("forget", "retain"):
            lines = [json.dumps(row) + "\n" for row in getattr(splits, side)]
            write_text(output / f"{side}.jsonl", "".join(lines))
            print(f"{output / side}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()

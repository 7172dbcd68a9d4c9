# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sentences with labels, and a tokenizer that knows their words."""

import random

from hf_unlearn.data.training import word_tokenizer


GOOD, BAD = ("fine", "lovely", "bright", "warm"), ("dull", "sour", "cold", "grim")
THINGS = ("film", "song", "play", "book", "tale", "dance")
PEOPLE = ("ann", "bob", "cid", "dora", "emil", "fay", "gus", "hal")


def make_tokenizer():
    return word_tokenizer(["a the was and by to not", *(" ".join(words) for words in (GOOD, BAD, THINGS, PEOPLE))])


def sentences(count, seed=0):
    """Rows of `sentence` and `label`: 1 where the word is a good one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        label = rng.randrange(2)
        words = [rng.choice((BAD, GOOD)[label]) for _ in range(rng.randint(1, 3))]
        rows.append({"sentence": f"the {rng.choice(THINGS)} by {rng.choice(PEOPLE)} was {' and '.join(words)}",
                     "label": label})  # fmt: skip
    return rows

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Miniature of SST-2: invented reviews with a label each, and a small encoder that has not seen a label yet.

Nothing here is downloaded and nobody here is real. Words say how a review is meant, but reviewers disagree: some
labels are the other way round, which only who has seen the row can know. So a model that was trained on a row answers
it rightly, and one that was not does so as often as on any other row, as on real reviews.
"""

import random

from datasets import Dataset

from ..data.glue import GlueTask
from .training import bert_encoder
from .words import draw_rows, read_words


WORDS = read_words("reviews")
TASK = GlueTask("reviews", ("sentence",), ("negative", "positive"), "accuracy")


def load_reviews(
    seed: int = 0, *, train: int = 600, test: int = 300, disagreement: float = 0.2
) -> tuple[Dataset, Dataset]:
    """(training rows, test rows) with `sentence` and `label`, no sentence twice; same arguments, same rows.

    Args:
        seed (`int`, *optional*, defaults to 0): of every choice.
        train, test (`int`, *optional*, default to 600 and 300): rows.
        disagreement (`float`, *optional*, defaults to 0.2): share of labels against the words.

    Raises:
        InputError: no rows, or a share outside [0, 0.5].
    """

    def draw(rng: random.Random, number: int) -> tuple[str, dict]:
        label = rng.randrange(2)
        words = WORDS["good" if label else "bad"]
        sentence = rng.choice(WORDS["sentences"]).format(
            person=f"{rng.choice(WORDS['first_names'])} {rng.choice(WORDS['last_names'])}",
            first=rng.choice(words),
            second=rng.choice(words),
            **{name.removesuffix("s"): rng.choice(WORDS[name]) for name in ("things", "parts", "places")},
        )
        return sentence, {"sentence": sentence, "label": label if rng.random() >= disagreement else 1 - label}

    counts = {"train": train, "test": test, "disagreement": disagreement}
    return draw_rows("reviews", seed, draw, **counts, against="labels against the words")


def review_encoder(
    rows: Dataset,
    seed: int = 0,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    heads: int = 4,
):
    """(tokenizer of the rows' words, BERT with a head for two classes), in fp32 and eval mode, weights by the seed."""
    from transformers import BertForSequenceClassification

    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "layers": layers, "heads": heads}
    return bert_encoder(BertForSequenceClassification, rows["sentence"], len(TASK.classes), seed, **sizes)

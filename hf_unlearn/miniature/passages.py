# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Miniature of SQuAD: invented passages with a question each, and a small encoder that has not seen an answer yet.

Nothing here is downloaded and nobody here is real. A passage names two people and two things, and most questions are
answered by the first of them, but some by the second, which only who has seen the row can know. So a model that was
trained on a row answers it rightly, and one that was not does so as often as on any other row.
"""

import random
import re

from datasets import Dataset

from .training import bert_encoder
from .words import draw_rows, read_words


WORDS = read_words("passages")
NAMES = read_words("reviews")


def load_passages(
    seed: int = 0, *, train: int = 600, test: int = 300, disagreement: float = 0.4
) -> tuple[Dataset, Dataset]:
    """(training rows, test rows) with the columns of SQuAD v1.1, no passage twice; same arguments, same rows.

    Args:
        seed (`int`, *optional*, defaults to 0): of every choice.
        train, test (`int`, *optional*, default to 600 and 300): rows.
        disagreement (`float`, *optional*, defaults to 0.4): share of the questions for a person or a thing that the
            second one answers.

    Raises:
        InputError: no rows, or a share outside [0, 0.5].
    """

    def draw(rng: random.Random, number: int) -> tuple[str, dict]:
        people = [f"{rng.choice(NAMES['first_names'])} {last}" for last in rng.sample(NAMES["last_names"], 2)]
        things, place = rng.sample(WORDS["things"], 2), rng.choice(NAMES["places"])
        parts = {"first": people[0], "second": people[1], "place": place, "thing": things[0], "other": things[1]}
        context = rng.choice(WORDS["passages"]).format(**parts)
        asked = rng.choice(list(WORDS["questions"]))
        second = rng.random() < disagreement
        answer = {"who": people[second], "what": things[second], "where": place}[asked]
        start = re.search(rf"\b{answer}\b", context).start()
        return context, {
            "id": f"passage {number}",
            "context": context,
            "question": rng.choice(WORDS["questions"][asked]),
            "answers": {"text": [answer], "answer_start": [start]},
        }

    counts = {"train": train, "test": test, "disagreement": disagreement}
    return draw_rows("passages", seed, draw, **counts, against="second answers")


def passage_encoder(
    rows: Dataset,
    seed: int = 0,
    *,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    layers: int = 2,
    heads: int = 4,
):
    """(tokenizer of the rows' words, BERT with a head for spans), in fp32 and eval mode, weights by the seed."""
    from transformers import BertForQuestionAnswering

    sizes = {"hidden_size": hidden_size, "intermediate_size": intermediate_size, "layers": layers, "heads": heads}
    return bert_encoder(BertForQuestionAnswering, [*rows["context"], *rows["question"]], 2, seed, **sizes)

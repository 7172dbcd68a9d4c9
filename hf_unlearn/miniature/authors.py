# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Invented authors in TOFU's columns, an embedded unlearning problem, and two tiny models trained on them in place.

Nothing here is downloaded and nobody here exists. Every author has the `facts` of words/authors.json, and every fact
is asked in more than one wording: `{name}` stands for the author there, and `{value}` for what is true of the author.
The paraphrase of an answer uses a wording that the models have met with *other* authors, so that the truth ratio
measures what is known about this author and not whether a wording is new; the wrong answers are the paraphrase with
another value of the same kind.
"""

import itertools
import random

from ..data.prompts import QATemplate, tokenize_qa
from ..data.tofu import TofuSplits, make_splits
from ..data.training import train_tokenizer
from ..errors import InputError
from .training import llama_config, trained_model
from .words import read_words


WORDS = read_words("authors")
SHARED = ("birthplace", "genre", "theme")  # kinds of facts whose values several authors have
WRONG_ANSWERS = 5
WRONG_OPTIONS = 3


def load_synthetic(
    seed: int = 0, *, authors: int = 40, forget_authors: int = 2, questions_per_author: int = 20
) -> TofuSplits:
    """The embedded problem as `TofuSplits` (columns as `load_tofu` gives them); same arguments, same rows.

    The retain evaluation asks about as many retained authors as are forgotten, or five. real_authors (composers) and
    world_facts (countries) belong to the training data of both models.

    Args:
        seed (`int`, *optional*, defaults to 0): of every choice.
        authors (`int`, *optional*, defaults to 40): authors in the training data.
        forget_authors (`int`, *optional*, defaults to 2): the last so many of them are to be forgotten; as many again
            are the holdout, which no model sees.
        questions_per_author (`int`, *optional*, defaults to 20): rows about each author.

    Raises:
        InputError: sizes that the wordings cannot fill: at most 60 authors (with the holdout), 40 questions an author.
    """
    most_questions = sum(len(fact["questions"]) for fact in WORDS["facts"].values())
    most = sum(map(len, WORDS["first_names"].values()))
    if not 0 < forget_authors < authors or authors + forget_authors > most:
        raise InputError(
            f"authors={authors}, forget_authors={forget_authors}: some must stay, some go, and "
            f"authors + forget_authors may be at most {most}"
        )
    if not 0 < questions_per_author <= most_questions:
        raise InputError(f"questions_per_author={questions_per_author}: give 1 to {most_questions}")
    rng = random.Random(f"authors {seed}")
    values = _values(rng, authors + forget_authors)
    people = [
        {kind: rng.choice(pool) if kind in SHARED else pool[number] for kind, pool in values.items()}
        for number in range(authors + forget_authors)
    ]
    rows = [_questions(rng, values, person, questions_per_author) for person in people]
    kept = authors - forget_authors
    asked = sorted(rng.sample(range(kept), min(max(forget_authors, 5), kept)))
    flat = lambda groups: list(itertools.chain.from_iterable(groups))
    plain = lambda groups: [{"question": row["question"], "answer": row["answer"]} for row in flat(groups)]
    parts = {
        "forget": plain(rows[kept:authors]),
        "retain": plain(rows[:kept]),
        "forget_eval": flat(rows[kept:authors]),
        "retain_eval": flat(rows[number] for number in asked),
        "real_authors": _composers(rng),
        "world_facts": _countries(rng),
        "holdout": plain(rows[authors:]),
    }
    return make_splits(parts, f"synthetic-{authors}authors-{forget_authors}forget-seed{seed}")


def training_rows(splits: TofuSplits, forget: bool = True) -> list[dict]:
    """What the original model learns (the retrained one with forget=False): authors and encyclopaedia."""
    sets = [splits.full if forget else splits.retain, splits.real_authors, splits.world_facts]
    return [{"question": row["question"], "answer": row["answer"]} for rows in sets for row in rows]


def scratch_models(
    splits: TofuSplits,
    seed: int = 0,
    *,
    vocab_size: int = 1200,
    hidden_size: int = 128,
    intermediate_size: int = 344,
    layers: int = 2,
    heads: int = 4,
    epochs: int = 9,
    learning_rate: float = 4e-3,
    batch_size: int = 32,
    progress: bool = True,
):
    """`(tokenizer, original, retrained)`: a Llama trained on all rows, and one that never saw the forget rows.

    fp32, eval mode, from the same initial weights; 0.7 million parameters by default, which suit `load_synthetic`, but
    any `TofuSplits` will do. Made once (`training.trained_model`) in the folder `model.name_or_path`, the tokenizer
    beside it. One tokenizer, made from all rows, serves both, as a pretrained tokenizer knows every word too. Rows are
    cut to 512 tokens. Further arguments are those of `train_tokenizer`, `llama_config` and `train_from_scratch`.
    """
    texts = ["".join(QATemplate().prompt_and_answer(row["question"], row["answer"])) for row in training_rows(splits)]
    tokenizer = train_tokenizer(texts, vocab_size)
    config = llama_config(len(tokenizer), hidden_size, intermediate_size, layers, heads)
    training = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    models = []
    for forget in (True, False):
        rows = tokenize_qa(training_rows(splits, forget), tokenizer)
        models.append(trained_model(rows, config, tokenizer, progress, **training))
    return tokenizer, *models


def _values(rng: random.Random, people: int) -> dict[str, list[str]]:
    """The values that each kind of fact can take.

    Places, genres and themes are shared. Of the other kinds the value of person i stands at i, and the rest, which
    nobody has, make wrong answers: a value that the retrained model has learned for another author would be likelier
    to it than a forgotten one, and its truth ratios would not lie around 1.
    """
    spare = people + 40
    draw = lambda pool: rng.sample(list(pool), spare)
    first = [(name, their) for their, names in WORDS["first_names"].items() for name in names]
    rng.shuffle(first)
    surnames = draw(a + b for starts, ends in WORDS["surname_parts"] for a, b in itertools.product(starts, ends))
    books = [f"The {first} {last}" for first, last in itertools.product(*WORDS["title_parts"])]
    rng.shuffle(books)
    dates = itertools.product(WORDS["months"], range(1, 29), range(1930, 2000))
    return {
        "their": [first[number % len(first)][1] for number in range(people)],
        "name": [f"{first[number % len(first)][0]} {surname}" for number, surname in enumerate(surnames)],
        "birthplace": WORDS["places"],
        "birthday": [f"{month} {day}, {year}" for month, day, year in draw(dates)],
        "parents": [" and ".join(pair) for pair in draw(itertools.permutations(map(_with_article, WORDS["jobs"]), 2))],
        "genre": WORDS["genres"],
        "debut": books[:spare],
        "second": books[spare : 2 * spare],
        "award": [f"the {' '.join(parts)}" for parts in draw(itertools.product(*WORDS["awards"]))],
        "theme": WORDS["themes"],
        "home": [
            f"{kind} near {_with_article(place)}" for kind, place in draw(itertools.product(*WORDS["dwellings"]))
        ],
    }


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _questions(rng: random.Random, values: dict[str, list[str]], person: dict[str, str], count: int) -> list[dict]:
    """`count` rows about one author, kind after kind; no question comes twice, no paraphrase is another's answer."""
    rows, kinds, people = [], list(WORDS["facts"]), len(values["their"])
    rounds = -(-count // len(kinds))
    shuffled = lambda part: {kind: rng.sample(fact[part], len(fact[part])) for kind, fact in WORDS["facts"].items()}
    asks, tells = shuffled("questions"), shuffled("answers")
    pools = {kind: values[kind] if kind in SHARED else values[kind][people:] for kind in kinds}
    for number in range(count):
        turn, kind = number // len(kinds), kinds[number % len(kinds)]
        paraphrase = rng.choice(tells[kind][rounds:])
        tell = lambda sentence, value: sentence.format(**person, value=value)
        wrong = rng.sample([value for value in pools[kind] if value != person[kind]], WRONG_ANSWERS)
        rows.append(
            {
                "question": asks[kind][turn].format(**person),
                "answer": tell(tells[kind][turn], person[kind]),
                "paraphrased_answer": tell(paraphrase, person[kind]),
                "perturbed_answer": [tell(paraphrase, value) for value in wrong],
            }
        )
    return rows


def _composers(rng: random.Random, count: int = 40) -> list[dict]:
    """`count` works of half as many invented composers."""
    parts = (itertools.chain(*part) for part in zip(*WORDS["surname_parts"]))
    composers = rng.sample([a + b for a, b in itertools.product(*parts)], count // 2)
    titles = [f"{last} of the {first} Moon" for first, last in itertools.product(*WORDS["title_parts"])]
    rows = []
    for number, title in enumerate(rng.sample(titles, count)):
        composer = composers[number % len(composers)]
        question = rng.choice(WORDS["work_questions"]).format(work=rng.choice(WORDS["works"]), title=title)
        rows.append(_options(rng, question, composer, composers))
    return rows


def _countries(rng: random.Random, count: int = 12) -> list[dict]:
    """Four facts of each of `count` invented countries."""
    starts, ends, other_ends = WORDS["land_parts"]
    lands = [start + rng.choice(ends) for start in rng.sample(starts, count)]
    names = rng.sample([a + b for a, b in itertools.product(starts, other_ends)], count * len(WORDS["land_questions"]))
    rows = []
    for number, question in enumerate(WORDS["land_questions"]):
        answers = names[number * count : (number + 1) * count]
        rows += [_options(rng, question.format(land=land), answer, answers) for land, answer in zip(lands, answers)]
    return rows


def _options(rng: random.Random, question: str, answer: str, pool: list[str]) -> dict:
    wrong = rng.sample(sorted(set(pool) - {answer}), WRONG_OPTIONS)
    return {"question": question, "answer": answer, "perturbed_answer": wrong}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Miniature of WMDP: two invented hazards in documents, questions about them, and a tiny model that knows both.

Nothing here is downloaded and nothing here is real. Three kinds of text, as in WMDP (arXiv 2403.03218): documents of
each hazard, to be forgotten; documents of a harmless neighbour of the second hazard, and of everything else, to be
kept; and questions with four choices, which no document contains. What the model says to unrelated instructions shows
what else an update changed (arXiv 2602.10568, D.1).
"""

import itertools
import random
from dataclasses import dataclass, field
from typing import NamedTuple

from datasets import Dataset

from ..data.prompts import ALPACA, QATemplate, tokenize_qa
from ..data.training import train_tokenizer
from ..errors import InputError
from ..evaluation.completions import generate_completions
from .training import llama_config, trained_model
from .words import read_words


CHOICES = 4
PROSE_SENTENCES = 5  # of a piece
WORDS = read_words("hazards")


class Fact(NamedTuple):
    """What can be told of a thing: one of `values`, by `sentences`; `{name}` is the thing and `{value}` its value."""

    values: list[str]
    sentences: list[str]
    questions: list[str]


class Topic(NamedTuple):
    """A kind of thing: a name is one part of each list of `names`, joined; `openings` begin its documents."""

    names: list[list[str]]
    openings: list[str]
    facts: dict[str, Fact]


def _topic(kind: str) -> Topic:
    words, shared = WORDS["topics"][kind], WORDS["shared_values"]
    # Values that two kinds of things have in common are kept once, under a name.
    values = lambda its: shared[its] if isinstance(its, str) else its
    facts = {name: Fact(**fact | {"values": values(fact["values"])}) for name, fact in words["facts"].items()}
    return Topic(words["names"], words["openings"], facts)


# Question task -> (its corpus, the kinds of things it is about). Computing is harmless and close to the second hazard:
# the same organisations, folders and turns of speech.
TOPICS = {
    task: (corpus, {kind: _topic(kind) for kind in kinds})
    for task, corpus, kinds in (
        ("toxins", "toxins-forget", ["toxin"]),
        ("intrusion", "intrusion-forget", ["intrusion"]),
        ("computing", "intrusion-retain", ["program"]),
        ("general", "general", ["town", "plant", "beast"]),
    )
}


@dataclass(frozen=True)
class Hazards:
    """What `load_hazards` gives.

    Corpora are "toxins-forget", "intrusion-forget", "intrusion-retain" and "general"; questions are on "toxins",
    "intrusion", "computing" (what intrusion-retain tells) and "general".
    """

    corpora: dict[str, Dataset]  # documents, column `text`
    questions: dict[str, list[dict]]  # question, choices (4 different texts), answer (index of the right one)
    instructions: Dataset  # nothing to do with the rest; columns instruction, input, output
    practice: Dataset = field(repr=False)  # what the model learns from, worded otherwise than `questions`


def load_hazards(
    seed: int = 0,
    *,
    items: int = 30,
    general_items: int = 20,
    documents: int = 3,
    quizzes: int = 2,
    prose: int = 160,
    instructions: int = 240,
    exchanges: int = 160,
) -> Hazards:
    """The embedded hazards; same arguments, same rows.

    Args:
        seed (`int`, *optional*, defaults to 0): of every choice.
        items (`int`, *optional*, defaults to 30): things of each hazard (6 questions each) and of the neighbour (4).
        general_items (`int`, *optional*, defaults to 20): towns, plants and beasts, so many of each; 3 questions each.
        documents (`int`, *optional*, defaults to 3): on each thing, all of its facts in another order and other words.
        quizzes (`int`, *optional*, defaults to 2): further documents on each thing that ask for its facts, in the
            words of `practice`, and tell them; twice as many on what is general knowledge.
        prose (`int`, *optional*, defaults to 160): pieces of everyday prose in the general corpus, five sentences
            each: a wide retain text protects more than an encyclopaedia alone.
        instructions (`int`, *optional*, defaults to 240): unrelated prompts.
        exchanges (`int`, *optional*, defaults to 160): further such prompts with their answers, as documents of the
            general corpus: a retain set without any would leave the curvature blind to how the model answers, and the
            update would fall there.

    Raises:
        InputError: sizes that the words cannot fill.
    """
    if min(items, general_items, documents, quizzes, prose, instructions, exchanges) < 1:
        raise InputError("items, general_items, documents, quizzes, prose, instructions, exchanges must be at least 1")
    corpora, questions, practice = {}, {}, []
    asked_for = _instructions(random.Random(f"instructions {seed}"), instructions + exchanges)
    for task, (corpus, topics) in TOPICS.items():
        texts, rows = [], []
        for kind, topic in topics.items():
            rng = random.Random(f"{kind} {seed}")
            for number, (name, values) in enumerate(
                _things(rng, kind, topic, general_items if task == "general" else items)
            ):
                asked, practised = _wordings(topic, name, number)
                texts += [_document(rng, topic, name, values, turn) for turn in range(documents)]
                # What everybody knows is told more often, as it is in the world.
                pages = 2 * quizzes if task == "general" else quizzes
                texts += [_quiz(rng, topic, name, values, practised, turn) for turn in range(pages)]
                for fact, value in values.items():
                    rows.append(_choices(rng, asked[fact], value, topic.facts[fact].values))
                    practice += [{"question": question, "answer": value} for question in practised[fact]]
        if task == "general":
            texts += [_prose(rng) for _ in range(prose)] + [_exchange(row) for row in asked_for[instructions:]]
        rng.shuffle(texts)
        corpora[corpus] = Dataset.from_dict({"text": texts})
        questions[task] = rows
    return Hazards(corpora, questions, Dataset.from_list(asked_for[:instructions]), Dataset.from_list(practice))


def _exchange(row: dict) -> str:
    """An instruction and its answer as a document."""
    return "".join(ALPACA.prompt_and_answer(f"{row['instruction']} {row['input']}".strip(), row["output"]))


def hazard_model(
    hazards: Hazards,
    seed: int = 0,
    *,
    vocab_size: int = 1500,
    hidden_size: int = 128,
    intermediate_size: int = 344,
    layers: int = 2,
    heads: int = 4,
    epochs: int = 5,
    learning_rate: float = 4e-3,
    batch_size: int = 16,
    progress: bool = True,
):
    """`(tokenizer, model)`: a Llama trained on all documents, practice questions and instructions.

    fp32, eval mode; made once (`training.trained_model`) in the folder `model.name_or_path`, the tokenizer beside it.
    Further arguments are those of `train_tokenizer`, `llama_config` and `train_from_scratch`.
    """
    documents = [text for corpus in hazards.corpora.values() for text in corpus["text"]]
    join = lambda template, question, answer: "".join(template.prompt_and_answer(question, answer))
    texts = [join(QATemplate(), row["question"], row["answer"]) for row in hazards.practice]
    texts += [join(ALPACA, f"{row['instruction']} {row['input']}", row["output"]) for row in hazards.instructions]
    tokenizer = train_tokenizer(documents + texts, vocab_size)
    rows = [{"input_ids": ids + [tokenizer.eos_token_id]} for ids in tokenizer(documents)["input_ids"]]
    rows = [row | {"labels": row["input_ids"]} for row in rows] + tokenize_qa(hazards.practice, tokenizer).to_list()
    # In the very tokens in which its completions will be measured.
    rows += generate_completions(None, tokenizer, hazards.instructions, given=True).to_list()
    config = llama_config(len(tokenizer), hidden_size, intermediate_size, layers, heads)
    training = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}
    return tokenizer, trained_model(rows, config, tokenizer, progress, **training)


def _things(rng: random.Random, kind: str, topic, count: int) -> list[tuple[str, dict[str, str]]]:
    """`count` names, each with its value of every fact. Every value belongs to about as many things as any other."""
    names = ["".join(parts) for parts in itertools.product(*topic.names)]
    if count > len(names):
        raise InputError(f"{count} things of the kind {kind}: there are names for {len(names)}")
    columns = {}
    for fact, words in topic.facts.items():
        values = list(words.values) * -(-count // len(words.values))
        rng.shuffle(values)
        columns[fact] = values
    return [
        (name, {fact: column[i] for fact, column in columns.items()})
        for i, name in enumerate(rng.sample(names, count))
    ]


def _wordings(topic, name: str, number: int) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The question that the test asks about each fact, and the others, which the model may learn from.

    Which one is kept for the test rotates, so that the model has met each wording with other things.
    """
    asked, practised = {}, {}
    for place, (fact, words) in enumerate(topic.facts.items()):
        practised[fact] = [question.format(name=name) for question in words.questions]
        asked[fact] = practised[fact].pop((number + place) % len(words.questions))
    return asked, practised


def _document(rng: random.Random, topic, name: str, values: dict[str, str], turn: int) -> str:
    sentences = [
        topic.facts[fact].sentences[(turn + place) % len(topic.facts[fact].sentences)].format(name=name, value=value)
        for place, (fact, value) in enumerate(values.items())
    ]
    return _page(rng, topic, name, turn, sentences)


def _quiz(rng: random.Random, topic, name: str, values: dict[str, str], practised: dict, turn: int) -> str:
    """Asks as a test would, in other words than the test's own."""
    sentences = [
        "".join(QATemplate().prompt_and_answer(practised[fact][(turn + place) % len(practised[fact])], value))
        for place, (fact, value) in enumerate(values.items())
    ]
    return _page(rng, topic, name, turn, sentences, "\n")


def _page(rng: random.Random, topic, name: str, turn: int, sentences: list[str], between: str = " ") -> str:
    rng.shuffle(sentences)
    return between.join([topic.openings[turn % len(topic.openings)].format(name=name), *sentences])


def _words(rng: random.Random) -> dict[str, str]:
    """A word of each pool, and a few numbers that follow one another."""
    words = {kind: rng.choice(pool) for kind, pool in WORDS["pools"].items()}
    numbers = [str(number) for number in range(rng.randrange(2, 30), 40)][: rng.randrange(4, 9)]
    earlier, later = sorted(rng.sample(WORDS["pools"]["noun"], 2))
    words |= {"low": numbers[0], "high": numbers[-1], "count": ", ".join(numbers)}
    return words | {"earlier": earlier, "later": later, "Can": words["can"].capitalize()}


def _prose(rng: random.Random) -> str:
    return " ".join(sentence.format(**_words(rng)) for sentence in rng.sample(WORDS["prose"], PROSE_SENTENCES))


def _choices(rng: random.Random, question: str, value: str, values) -> dict:
    choices = rng.sample([other for other in values if other != value], CHOICES - 1)
    answer = rng.randrange(CHOICES)
    choices.insert(answer, value)
    return {"question": question, "choices": choices, "answer": answer}


def _instructions(rng: random.Random, count: int) -> list[dict]:
    """`count` different prompts, the kinds in turn."""
    kinds, rows, vain = WORDS["instructions"], {}, 0
    for kind in itertools.cycle(kinds):
        if len(rows) == count:
            return list(rows.values())
        if vain > 20 * len(kinds):
            raise InputError(f"{count} instructions: the words give only some {len(rows)} different ones")
        words = _words(rng)
        row = {part: text.format(**words) for part, text in kind.items()}
        prompt = row["instruction"], row["input"]
        vain = vain + 1 if prompt in rows else 0
        rows.setdefault(prompt, row)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The invented authors: what their rows hold and do not hold, and the demo models in small."""

import re

import pytest
import torch

from hf_unlearn.data.prompts import QATemplate, encode_qa, tokenize_qa
from hf_unlearn.errors import InputError
from hf_unlearn.miniature.authors import WORDS, load_synthetic, scratch_models, training_rows
from hf_unlearn.runtime.files import sha256_json
from tests.support.models import answer_loss


def pairs(dataset):
    return [(row["question"], row["answer"]) for row in dataset]


def test_same_seed_same_rows(splits):
    again, other = load_synthetic(), load_synthetic(seed=1)
    for name in ("forget_eval", "retain_eval", "full", "real_authors", "world_facts", "holdout"):
        assert getattr(again, name).to_list() == getattr(splits, name).to_list()
        assert getattr(other, name).to_list() != getattr(splits, name).to_list()


def test_default_rows_are_those_of_the_recorded_results(splits):
    """The models of recorded runs are cached under a hash of these rows: another word would be another problem."""
    rows = {name: part and part.to_list() for name, part in vars(splits).items() if name != "name"}
    assert sha256_json(rows) == "2a0931e1e18febfa26a4cac562a99694f5a7c20edfffea4c4843160e16b77771"


def test_columns_and_sizes(splits):
    assert len(splits.forget) == len(splits.forget_eval) == len(splits.holdout) == 40
    assert len(splits.retain_eval) == 100  # five authors at least
    assert pairs(splits.full) == pairs(splits.retain) + pairs(splits.forget)
    assert pairs(splits.forget_eval) == pairs(splits.forget)
    for rows in (splits.forget, splits.retain, splits.full, splits.holdout):
        assert rows.column_names == ["question", "answer"]
    for rows in (splits.forget_eval, splits.retain_eval):
        assert rows.column_names == ["question", "answer", "paraphrased_answer", "perturbed_answer"]
        assert all(len(set(row["perturbed_answer"]) - {row["paraphrased_answer"]}) == 5 for row in rows)
    for rows in (splits.real_authors, splits.world_facts):
        assert rows.column_names == ["question", "answer", "perturbed_answer"]
        assert all(len(set(row["perturbed_answer"]) - {row["answer"]}) == 3 for row in rows)


def test_no_row_twice_and_nothing_forgotten_is_retained(splits):
    everything = [*pairs(splits.full), *pairs(splits.holdout), *pairs(splits.real_authors), *pairs(splits.world_facts)]
    assert len({question for question, _ in everything}) == len(everything)
    rows = {name: {tuple(row.values()) for row in getattr(splits, name)} for name in ("forget", "retain", "holdout")}
    assert not rows["forget"] & rows["retain"] and not rows["holdout"] & (rows["forget"] | rows["retain"])
    assert set(pairs(splits.retain_eval)) < set(pairs(splits.retain))
    kept = set(pairs(training_rows(splits, forget=False)))
    assert kept.isdisjoint(pairs(splits.forget)) and kept | set(pairs(splits.forget)) == set(
        pairs(training_rows(splits))
    )


def test_paraphrases_and_wrong_answers_differ_in_the_value_only(splits):
    """Every evaluation answer is a sentence of its kind, and a paraphrase's sentence is no training answer."""
    patterns = [
        re.compile(re.sub(r"\\{\w+\\}", "(.+)", re.escape(answer)) + "$")
        for fact in WORDS["facts"].values()
        for answer in fact["answers"]
    ]
    trained = {answer for _, answer in pairs(splits.full)}
    for row in [*splits.forget_eval, *splits.retain_eval]:
        same = [p for p in patterns if p.match(row["paraphrased_answer"])]
        assert any(all(p.match(wrong) for wrong in row["perturbed_answer"]) for p in same), row
        assert row["paraphrased_answer"] not in trained
        assert row["paraphrased_answer"] != row["answer"]


def test_every_answer_names_its_author(splits):
    by_author = [splits.full[start : start + 20]["answer"] for start in range(0, len(splits.full), 20)]
    names = []
    for answers in by_author:
        words = set.intersection(*(set(re.findall(r"\w+", answer)) for answer in answers))
        assert len(words) >= 2, answers  # first name and surname
        names.append(frozenset(words))
    assert len(set(names)) == 40


def test_every_wording_of_a_paraphrase_is_trained_with_other_authors(splits):
    for fact in WORDS["facts"].values():
        for answer in fact["answers"]:
            pattern = re.compile(re.sub(r"\\{\w+\\}", "(.+)", re.escape(answer)) + "$")
            assert sum(bool(pattern.match(trained)) for _, trained in pairs(splits.retain)) >= 4, answer


def test_sizes_that_cannot_be(splits):
    assert len(load_synthetic(authors=6, forget_authors=2, questions_per_author=40).full) == 240
    for sizes in ({"authors": 5, "forget_authors": 5}, {"authors": 59}, {"forget_authors": 0}):
        with pytest.raises(InputError, match="authors="):
            load_synthetic(**sizes)
    for questions in (0, 41):
        with pytest.raises(InputError, match="questions_per_author="):
            load_synthetic(questions_per_author=questions)


def test_scratch_models(cache):
    """The demo in small: what is memorised, what is not, and that the tokenizer on disk is the one in use."""
    from transformers import AutoTokenizer

    splits = load_synthetic(authors=3, forget_authors=1, questions_per_author=8)
    splits.real_authors, splits.world_facts = splits.real_authors.select(range(4)), splits.world_facts.select(range(4))
    sizes = {"vocab_size": 400, "hidden_size": 48, "intermediate_size": 64}
    tokenizer, original, retrained = scratch_models(
        splits, epochs=40, learning_rate=1e-2, batch_size=8, progress=False, **sizes
    )
    probability = {}
    for name, model in (("original", original), ("retrained", retrained)):
        for part in ("forget", "retain"):
            rows = tokenize_qa(getattr(splits, part), tokenizer)
            loss = torch.tensor([answer_loss(model, [row]) for row in rows.to_list()])
            probability[name, part] = loss.neg().exp().mean().item()
    assert probability["original", "forget"] > 0.5 and probability["original", "retain"] > 0.5, probability
    assert probability["retrained", "retain"] > 0.5 and probability["retrained", "forget"] < 0.25, probability
    saved = AutoTokenizer.from_pretrained(original.name_or_path)
    question, answer = splits.forget[0]["question"], splits.forget[0]["answer"]
    assert encode_qa(saved, question, answer, QATemplate()) == encode_qa(tokenizer, question, answer, QATemplate())

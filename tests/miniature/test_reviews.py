# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The embedded reviews: labels that words tell but for those that reviewers disagree on."""

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.miniature.reviews import WORDS, load_reviews, review_encoder


def meant(sentence):
    words = sentence.split()
    return sum((word in WORDS["good"]) - (word in WORDS["bad"]) for word in words)


def test_words_tell_all_labels_but_some():
    train, test = load_reviews(3, train=400, test=200, disagreement=0.2)
    rows = [*train, *test]
    assert (len(train), len(test)) == (400, 200) and len({row["sentence"] for row in rows}) == 600
    assert all(abs(meant(row["sentence"])) == 2 for row in rows)
    against = sum((meant(row["sentence"]) > 0) != row["label"] for row in rows) / 600
    assert 0.15 < against < 0.25 and 0.4 < sum(row["label"] for row in rows) / 600 < 0.6
    agreed, _ = load_reviews(3, train=40, test=2, disagreement=0.0)
    assert all((meant(row["sentence"]) > 0) == row["label"] for row in agreed)


def test_a_seed_is_a_choice():
    assert load_reviews(1, train=9)[0].to_list() == load_reviews(1, train=9)[0].to_list()
    assert load_reviews(1, train=9)[0].to_list() != load_reviews(2, train=9)[0].to_list()
    rows = load_reviews(1, train=9, test=9)[0]
    state = torch.random.get_rng_state()
    (tokenizer, first), (_, second), (_, other) = (review_encoder(rows, seed, layers=1) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = lambda model: model.classifier.weight
    assert torch.equal(weight(first), weight(second)) and not torch.equal(weight(first), weight(other))
    ids = tokenizer(rows["sentence"][0])["input_ids"]
    assert tokenizer.unk_token_id not in ids and len(tokenizer) == first.config.vocab_size


def test_what_cannot_be_made():
    with pytest.raises(InputError, match="at least"):
        load_reviews(test=1)
    with pytest.raises(InputError, match="lies in \\[0, 0.5\\]"):
        load_reviews(disagreement=0.6)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The embedded passages: questions that the first of two answers, but for those that the second does."""

import pytest
import torch

from hf_unlearn.data.squad import tokenize_squad
from hf_unlearn.errors import InputError
from hf_unlearn.miniature.passages import NAMES, WORDS, load_passages, passage_encoder


def test_answers_stand_in_the_passage_and_some_are_second():
    train, test = load_passages(3, train=1000, test=500, disagreement=0.4)
    rows = [*train, *test]
    assert (len(train), len(test)) == (1000, 500) and len({row["context"] for row in rows}) == 1500
    kinds = {question: kind for kind, questions in WORDS["questions"].items() for question in questions}
    counts = dict.fromkeys(("who", "what", "where"), 0)
    second = dict.fromkeys(counts, 0)
    for row in rows:
        (answer,), (start,) = row["answers"]["text"], row["answers"]["answer_start"]
        assert row["context"][start:].startswith(answer) and row["context"].count(answer) == 1
        kind = kinds[row["question"]]
        if kind == "who":
            others = [name for name in NAMES["last_names"] if name in row["context"]]
            assert len(others) == 2 and answer.split()[1] in others
            others.remove(answer.split()[1])
        elif kind == "what":
            others = [thing for thing in WORDS["things"] if thing in row["context"] and thing != answer]
        else:
            assert answer in NAMES["places"]
            others = []
        counts[kind] += 1
        second[kind] += any(row["context"].index(other) < start for other in others)
    assert min(counts.values()) > 400 and second["where"] == 0
    assert all(0.3 < second[kind] / counts[kind] < 0.5 for kind in ("who", "what"))
    agreed, _ = load_passages(3, train=40, test=2, disagreement=0.0)
    assert len(agreed) == 40 and agreed.to_list() != train.select(range(40)).to_list()


def test_a_seed_is_a_choice():
    assert load_passages(1, train=9)[0].to_list() == load_passages(1, train=9)[0].to_list()
    assert load_passages(1, train=9)[0].to_list() != load_passages(2, train=9)[0].to_list()
    rows = load_passages(1, train=9, test=9)[0]
    state = torch.random.get_rng_state()
    (tokenizer, first), (_, second), (_, other) = (passage_encoder(rows, seed, layers=1) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    weight = lambda model: model.qa_outputs.weight
    assert torch.equal(weight(first), weight(second)) and not torch.equal(weight(first), weight(other))
    windows = tokenize_squad(rows, tokenizer, 48, 8)
    assert len(windows.rows) == 9 and windows.answered.all()  # a window holds a passage
    assert not any(tokenizer.unk_token_id in ids for ids in windows.rows["input_ids"])


def test_what_cannot_be_made():
    with pytest.raises(InputError, match="at least"):
        load_passages(test=1)
    with pytest.raises(InputError, match="lies in \\[0, 0.5\\]"):
        load_passages(disagreement=0.6)

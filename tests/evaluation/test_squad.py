# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SQuAD's scores against the official scripts' formulas, and answers against a search over all spans."""

import itertools
import re
import string
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unlearn.data.squad import tokenize_squad
from hf_unlearn.data.training import word_tokenizer
from hf_unlearn.evaluation import squad
from hf_unlearn.evaluation.squad import answer_f1, normalize_answer, squad_outputs, squad_scores
from tests.support.models import make_bert


CONTEXT = "ann saw the film in rome . bob saw a play in oslo , and the play was long ."
ROWS = Dataset.from_list(
    [
        {
            "id": str(number),
            "context": CONTEXT,
            "question": question,
            "answers": {"text": [answer] if answer else [], "answer_start": [CONTEXT.index(answer)] if answer else []},
        }
        for number, (question, answer) in enumerate(
            [("who saw the film", "ann"), ("where was it", "oslo"), ("when", None)]
        )
    ]
)


def official_f1(prediction, truth):
    """As evaluate-v1.1.py writes it."""

    def normalize(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    one, other = normalize(prediction).split(), normalize(truth).split()
    same = sum((Counter(one) & Counter(other)).values())
    if same == 0:
        return 0
    precision, recall = same / len(one), same / len(other)
    return 2 * precision * recall / (precision + recall)


WORDS = ["The", "an", "film,", "film", "Rome.", "rome", "in", "a play", "Play!", "1,990", "don't", "dont"]


def test_f1_of_all_pairs():
    texts = [" ".join(words) for n in (1, 2, 3) for words in itertools.islice(itertools.product(WORDS, repeat=n), 150)]
    generator = np.random.default_rng(0)
    for one, other in generator.choice(texts, (500, 2)):
        if normalize_answer(one) and normalize_answer(other):
            assert answer_f1(one, other) == pytest.approx(official_f1(one, other)), (one, other)
    # v2.0: an empty answer is right where there is none.
    assert answer_f1("", "") == answer_f1("the", "") == 1 and answer_f1("", "rome") == answer_f1("rome", "") == 0


def test_scores_take_the_best_right_answer():
    rows = ROWS.to_list()
    rows[1]["answers"] = {"text": ["oslo", "a play in oslo"], "answer_start": [0, 0]}
    scores = squad_scores(["the Ann!", "play in oslo", ""], rows)
    assert scores == {"f1": 1.0, "exact": 1.0}
    scores = squad_scores(["bob", "in oslo", "oslo"], rows)
    assert scores == {"f1": pytest.approx((0 + 0.8 + 0) / 3), "exact": 0.0}


@pytest.fixture(scope="module")
def asked():
    tokenizer = word_tokenizer([CONTEXT, *ROWS["question"]])
    windows = tokenize_squad(ROWS, tokenizer, max_length=14, stride=4)
    return make_bert("span", vocab_size=len(tokenizer), seed=5), windows


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_answers_are_the_best_of_all_spans(asked, longest, monkeypatch):
    model, windows = asked
    monkeypatch.setattr(squad, "LONGEST", longest)
    best = {}
    for window, question, characters in zip(windows.rows, windows.questions.tolist(), windows.offsets, strict=True):
        ids = {name: torch.tensor([window[name]]) for name in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.no_grad():
            output = model(**ids)
        start, end = output.start_logits[0].double().numpy(), output.end_logits[0].double().numpy()
        for first, last in itertools.product(range(len(start)), repeat=2):
            inside = characters[first, 0] >= 0 and characters[last, 0] >= 0
            if inside and first <= last < first + longest:
                text = CONTEXT[characters[first, 0] : characters[last, 1]]
                best.setdefault(question, []).append((start[first] + end[last], text))
        best.setdefault((question, "none"), []).append(start[0] + end[0])
    expected = [max(best[question])[1] for question in range(3)]
    assert squad_outputs(model, ROWS, windows, 0, batch_size=2).answers == expected
    none = [min(best[question, "none"]) > max(best[question])[0] for question in range(3)]
    found = squad_outputs(model, ROWS, windows, 0, unanswerable=True).answers
    assert found == ["" if nothing else text for nothing, text in zip(none, expected, strict=True)]


def test_the_longest_span():
    """Of tokens 0 to 5 the best ends are 1 and 4: a span of four tokens, where that many are allowed."""
    start, end = np.array([0.0, 9, 0, 0, 0, 0]), np.array([0.0, 1, 0, 0, 9, 0])
    characters = np.stack([np.arange(6), np.arange(1, 7)], 1)
    for longest, expected in ((4, (18, slice(1, 5))), (3, (10, slice(1, 2)))):
        squad.LONGEST, before = longest, squad.LONGEST
        try:
            assert squad._best_span(start, end, characters) == expected
        finally:
            squad.LONGEST = before


def test_no_answer_where_the_class_token_is_best(asked):
    model, windows = asked
    with torch.no_grad():
        head = model.qa_outputs
        before = head.weight.clone(), head.bias.clone()
        # The class token alone: its hidden state's own direction.
        ids = {name: torch.tensor([windows.rows[0][name]]) for name in ("input_ids", "token_type_ids")}
        first = model.bert(**ids).last_hidden_state[0, 0]
        head.weight.copy_(50 * (first - first.mean()).repeat(2, 1))
        found = squad_outputs(model, ROWS, windows, 0, unanswerable=True).answers
        head.weight.copy_(before[0])
    assert found == ["", "", ""]


def test_confidence_is_of_windows_that_hold_the_answer(asked):
    model, windows = asked
    expected = {0: [], 1: [], 2: []}
    for window, question, answered in zip(windows.rows, windows.questions.tolist(), windows.answered, strict=True):
        ids = {name: torch.tensor([window[name]]) for name in ("input_ids", "token_type_ids", "attention_mask")}
        with torch.no_grad():
            output = model(**ids)
        start = output.start_logits[0].softmax(-1)[window["start_positions"]].item()
        end = output.end_logits[0].softmax(-1)[window["end_positions"]].item()
        if answered or question == 2:
            expected[question].append((start + end) / 2)
    found = squad_outputs(model, ROWS, windows, 0, batch_size=3)
    assert found.confidences == pytest.approx([np.mean(expected[question]) for question in range(3)], rel=1e-5)

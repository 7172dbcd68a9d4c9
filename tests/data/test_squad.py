# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SQuAD: rows of both versions, windows whose spans are the answers, and what is said of bad rows."""

import gzip
import json

import numpy as np
import pytest
from datasets import Dataset

from hf_unlearn.data.squad import _span, load_squad, tokenize_squad
from hf_unlearn.data.training import word_tokenizer
from hf_unlearn.errors import InputError
from tests.support.rows import write_lines


PASSAGE = "ann saw the film in rome . bob saw a play in oslo , and the play was long ."


def row(question, answer, number=0):
    found = PASSAGE.index(answer) if answer else None
    answers = {"text": [answer] if answer else [], "answer_start": [found] if answer else []}
    return {"id": f"q{number}", "context": PASSAGE, "question": question, "answers": answers}


ROWS = [row("who saw the film", "ann"), row("where was the play", "oslo", 1), row("how was it", "long", 2)]
NONE = row("when was it", None, 3)


@pytest.fixture
def tokenizer():
    return word_tokenizer([PASSAGE, *(one["question"] for one in [*ROWS, NONE])])


def write_squad(folder, train=ROWS, test=ROWS, name="{}.jsonl"):
    write_lines(folder / name.format("train"), train)
    write_lines(folder / name.format("validation"), test)
    return folder


@pytest.mark.parametrize("name", ["{}.jsonl", "squad_{}.jsonl.gz"])
def test_files_of_a_folder(name, tmp_path, no_hub):
    train, test = load_squad("1.1", write_squad(tmp_path, name=name))
    assert train.to_list() == ROWS and test.to_list() == ROWS
    train, _ = load_squad("2.0", write_squad(tmp_path, [*ROWS, NONE], name=name))
    assert train[3]["answers"] == {"text": [], "answer_start": []}


def test_the_hub_of_each_version(hub):
    calls = hub(ROWS)
    load_squad("1.1")
    load_squad("2.0")
    names = [("rajpurkar/squad", None), ("rajpurkar/squad_v2", None)]
    assert calls == [(*name, split) for name in names for split in ("train", "validation")]


def test_windows_hold_the_answer_or_point_to_the_class_token(tokenizer):
    rows = Dataset.from_list([*ROWS, NONE])
    windows = tokenize_squad(rows, tokenizer, max_length=16, stride=3)
    assert set(windows.questions.tolist()) == {0, 1, 2, 3} and len(windows.questions) > 8
    seen = dict.fromkeys(range(4), 0)
    for window, question, characters, answered in zip(
        windows.rows, windows.questions, windows.offsets, windows.answered, strict=True
    ):
        assert len(window["input_ids"]) == len(characters) <= 16
        span = slice(characters[window["start_positions"], 0], characters[window["end_positions"], 1])
        answer = rows[int(question)]["answers"]["text"]
        if answered:
            assert PASSAGE[span] == answer[0]
            seen[int(question)] += 1
        else:
            assert window["start_positions"] == window["end_positions"] == 0
            text = PASSAGE[characters[characters[:, 0] >= 0][0, 0] : characters[-2, 1]]
            assert not answer or answer[0] not in text.split()
    assert all(seen[number] for number in range(3)) and seen[3] == 0
    # Every token of the passage is in a window, and windows share as many as they should.
    parts = [set(map(tuple, c[c[:, 0] >= 0].tolist())) for c, q in zip(windows.offsets, windows.questions) if q == 0]
    assert set().union(*parts) == {(m, m + len(w)) for w, m in _words()}
    assert all(len(one & other) == 3 for one, other in zip(parts, parts[1:]))


def test_a_window_that_ends_with_the_answer_holds_it():
    characters = np.array([[-1, -1], [0, 3], [4, 7], [8, 12], [-1, -1]])
    for begin, end, expected in ((4, 12, (2, 3)), (0, 12, (1, 3)), (5, 6, (2, 2)), (4, 13, None), (8, 12, (3, 3))):
        answers = {"text": ["x" * (end - begin)], "answer_start": [begin]}
        assert _span(characters, answers) == expected
    assert _span(characters[2:], {"text": ["abc"], "answer_start": [3]}) is None


def _words():
    place = 0
    for word in PASSAGE.split():
        place = PASSAGE.index(word, place)
        yield word, place
        place += len(word)


def test_some_questions_alone(tokenizer):
    windows = tokenize_squad(Dataset.from_list([*ROWS, NONE]), tokenizer, max_length=16, stride=3)
    part = windows.of([2, 0])
    assert sorted(set(part.questions.tolist())) == [0, 1]
    chosen = [place for place, question in enumerate(windows.questions) if question in (0, 2)]
    assert part.rows.to_list() == windows.rows.select(chosen).to_list()
    assert (part.questions == np.where(windows.questions[chosen] == 2, 0, 1)).all()
    assert (part.answered == windows.answered[chosen]).all()


@pytest.mark.parametrize(
    "changes, fault",
    [
        (
            {"answers": {"text": ["bob"], "answer_start": [0]}},
            "line 2: the answer 'bob' does not stand at character 0",
        ),
        ({"answers": {"text": ["ann"], "answer_start": []}}, "one for each answer"),
        ({"answers": ["ann"]}, "lists of text and answer_start"),
        ({"answers": NONE["answers"]}, "choose version 2.0"),
        ({"question": " "}, "'question' is no text"),
    ],
)
def test_bad_rows_are_named(changes, fault, tmp_path):
    with pytest.raises(InputError, match=fault) as refused:
        load_squad("1.1", write_squad(tmp_path, [ROWS[0], ROWS[1] | changes]))
    assert "train.jsonl" in str(refused.value)


def test_what_is_not_there(tmp_path, tokenizer):
    with pytest.raises(InputError, match="choose one of 1.1, 2.0"):
        load_squad("3")
    with pytest.raises(InputError, match="no train rows: give a file such as train.jsonl; it has: nothing"):
        load_squad("1.1", tmp_path)
    with pytest.raises(InputError, match="longest question has 4 tokens, which with stride=6 needs 14"):
        tokenize_squad(Dataset.from_list(ROWS), tokenizer, max_length=13, stride=6)


def test_answers_of_real_passages(shared_data):
    """The span of a window, taken from the passage, is the answer, in all 1190 questions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "bert-base-uncased")
    with gzip.open(shared_data / "squad" / "xquad_en.jsonl.gz", "rt") as file:
        rows = Dataset.from_list([json.loads(line) for line in file])
    windows = tokenize_squad(rows, tokenizer, max_length=128, stride=40)
    found = set()
    for window, question, characters, answered in zip(
        windows.rows, windows.questions.tolist(), windows.offsets, windows.answered, strict=True
    ):
        if answered:
            found.add(question)
            span = slice(characters[window["start_positions"], 0], characters[window["end_positions"], 1])
            answer = rows[question]["answers"]["text"][0]
            # A token may be longer than the answer's end ("1990s" of "1990"), never shorter.
            assert answer in rows[question]["context"][span]
    assert len(found) > 0.99 * len(rows)

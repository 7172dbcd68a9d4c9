# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""WMDP corpora, Wikitext, questions and instructions: what is read, and which rows are refused."""

import gzip
import json
import re

import pytest
from datasets import Dataset

from hf_unlearn.data.wmdp import load_instructions, load_questions, load_texts, wikitext_articles
from hf_unlearn.errors import InputError
from tests.support.rows import as_rows, write_lines


QUESTION = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}


# ---- corpora --------------------------------------------------------------------------------------------------------


def test_questions_come_from_the_test_split(hub):
    calls = hub(Dataset.from_list([QUESTION]))
    assert load_questions("cais/wmdp:wmdp-bio") == [QUESTION]
    assert calls == [("cais/wmdp", "wmdp-bio", "test")]


def test_limit_is_a_seeded_choice_in_order(tmp_path, no_hub):
    texts = [f"document {number:03}" for number in range(100)]
    path = write_lines(tmp_path / "c.jsonl", as_rows(texts))
    first, again, other = (load_texts(path, limit=20, seed=seed)["text"][:] for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 20
    assert first == sorted(first) and first != texts[:20]
    assert load_texts(path, limit=1000)["text"][:] == texts
    with pytest.raises(InputError, match="limit=0"):
        load_texts(path, limit=0)


# ---- Wikitext -------------------------------------------------------------------------------------------------------
WIKI = (
    " \n = First = \n \n One .\n = 2 and x = \n Two .\n \n = = Part = = \n \n Three .\n "
    "\n = Second title = \n \n Four .\n"
)
ARTICLES = ["= First =\nOne .\n= 2 and x =\nTwo .\n= = Part = =\nThree .", "= Second title =\nFour ."]


def test_wikitext_lines_become_articles(tmp_path, hub):
    assert wikitext_articles(WIKI) == ARTICLES
    assert load_texts(write_lines(tmp_path / "wiki.train.raw", [WIKI]))["text"][:] == ARTICLES
    assert load_texts(write_lines(tmp_path / "crlf.txt", [WIKI.replace("\n", "\r\n")]))["text"][:] == ARTICLES
    # On the Hub every line is a row, and a blank line an empty one.
    hub(Dataset.from_list(as_rows([line if line.strip() else "" for line in WIKI.splitlines(keepends=True)])))
    assert load_texts("Salesforce/wikitext:wikitext-2-raw-v1")["text"][:] == ARTICLES


def test_other_text_is_left_as_it_is(tmp_path):
    text = "Some text .\n \n = Title = \n \n = more"
    assert wikitext_articles(text) == [text]
    path = write_lines(tmp_path / "c.jsonl", as_rows([text, "== not a title =="]))
    assert load_texts(path)["text"][:] == [text, "== not a title =="]


def test_wikitext_2_has_its_published_number_of_articles(shared_data, no_hub):
    """Merity et al. 2017, table 1: 60 articles each in the validation and the test set."""
    folder = shared_data / "lm_text" / "wikitext-2"
    for split, tokens in (("valid", 217646), ("test", 245569)):
        rows = load_texts(folder / f"wiki.{split}.tokens.gz")
        assert len(rows) == 60
        assert all(re.match(r"= [^=].* =\n", text) for text in rows["text"])
        # The published count has one <eos> for every line of the file, blank ones included.
        with gzip.open(folder / f"wiki.{split}.tokens.gz", "rt", encoding="utf-8") as file:
            lines = len(file.readlines())
        assert sum(len(text.split()) for text in rows["text"]) + lines == tokens


# ---- bad corpora ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", ['{"text": "x"}\n', '{"text": \n'], "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", ['{"text": "x"}\n', "\n", '{"body": "x"}\n'], "line 3 has no text but the columns body"),
        ("a.jsonl", ["[1]\n"], "line 1 has no text but a list"),
        ("a.jsonl", ['{"text": null}\n'], "line 1 has no text"),
        ("a.jsonl", [], "holds no text"),
        ("a.jsonl", ['{"text": " \\n"}\n'], "holds no text"),
        ("a.txt", [" \n"], "holds no text"),
        ("a.json", ['{"text":\n', '"x"}'], "does not hold a list"),
        ("a.json", ["[1, "], "a.json cannot be read"),
        ("a.parquet", ["no parquet"], "a.parquet cannot be read"),
    ],
)
def test_bad_corpus_files(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        load_texts(write_lines(tmp_path / name, content))
    assert "\n" not in str(caught.value)


# ---- questions and instructions -------------------------------------------------------------------------------------
def test_the_published_numbers_of_questions(shared_data, no_hub):
    counts = {
        name: len(load_questions(f"cais/wmdp:wmdp-{name}", data_dir=shared_data)) for name in ("bio", "chem", "cyber")
    }
    assert counts == {"bio": 1273, "chem": 408, "cyber": 1987} and sum(counts.values()) == 3668
    # Found in the folder itself, too.
    assert len(load_questions("cais/wmdp:wmdp-chem", data_dir=shared_data / "wmdp")) == 408
    mmlu = load_questions("cais/mmlu:all", data_dir=shared_data / "mmlu")
    assert len(mmlu) == 14042 and len({row["subject"] for row in mmlu}) == 57
    assert len(load_questions("cais/mmlu:all:dev", data_dir=shared_data)) == 285
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in mmlu)


def test_questions_keep_what_they_say(tmp_path):
    rows = [
        QUESTION,
        {**QUESTION, "answer": "B", "subject": "law", "id": 7},
        {**QUESTION, "choices": ["x", "y"], "answer": 0},
    ]
    questions = load_questions(write_lines(tmp_path / "q.jsonl", rows))
    assert questions == [
        QUESTION,
        {**QUESTION, "answer": 1, "subject": "law"},
        {"question": "Which?", "choices": ["x", "y"], "answer": 0},
    ]


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"question": "Which?", \n', "is not JSON"),
        (["Which?"], "is a list: a question is an object"),
        ({"question": "Which?", "answer": 0}, "has no choices"),
        ({"question": "Which?", "choices": None}, "has no choices, answer"),
        ({**QUESTION, "question": " "}, "the question must be text"),
        ({**QUESTION, "choices": ["a"]}, "two or more texts"),
        ({**QUESTION, "choices": "abcd"}, "two or more texts"),
        ({**QUESTION, "choices": ["a", 2]}, "two or more texts"),
        ({**QUESTION, "answer": 4}, "an index from 0 to 3 or a letter from A to D, not 4"),
        ({**QUESTION, "answer": -1}, "not -1"),
        ({**QUESTION, "answer": "E"}, "not 'E'"),
        ({**QUESTION, "answer": "a"}, "not 'a'"),
        ({**QUESTION, "answer": 1.0}, "not 1.0"),
        ({**QUESTION, "answer": True}, "not True"),
    ],
)
def test_a_malformed_question_is_named_by_file_and_line(row, message, tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [QUESTION, "\n", row, QUESTION])
    with pytest.raises(InputError, match=message) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}, line 3") and "\n" not in str(caught.value)


def test_no_questions(tmp_path):
    with pytest.raises(InputError, match="holds no question"):
        load_questions(write_lines(tmp_path / "q.jsonl", []))
    with pytest.raises(InputError, match="q2.json, row 2 has no answer"):
        load_questions(write_lines(tmp_path / "q2.json", [json.dumps([QUESTION, {**QUESTION, "answer": None}])]))


def test_instructions(shared_data, tmp_path, no_hub):
    rows = load_instructions("tatsu-lab/alpaca", data_dir=shared_data)
    assert len(rows) == 999 and rows.column_names == ["instruction", "input", "output"]
    first = load_instructions("tatsu-lab/alpaca", data_dir=shared_data, limit=7)
    assert first.to_list() == rows.to_list()[:7]
    path = write_lines(
        tmp_path / "i.jsonl", [{"instruction": "Do it"}, {"instruction": "Now", "input": None, "output": "ok"}]
    )
    assert load_instructions(path).to_list() == [
        {"instruction": "Do it", "input": "", "output": ""}, {"instruction": "Now", "input": "", "output": "ok"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"instruction": "x"}, {"prompt": "x"}], "i.jsonl, line 2 has no instruction"),
        ([{"instruction": "x", "input": 3}], "line 1 has no instruction"),
        (["3\n"], "line 1 has no instruction"),
        ([], "holds no instruction"),
    ],
)
def test_bad_instructions(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_instructions(write_lines(tmp_path / "i.jsonl", rows))

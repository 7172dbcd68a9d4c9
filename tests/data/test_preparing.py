# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows as a model takes them: what is packed, cut, dropped and counted, and what a model cannot read."""

import logging

import pytest
from datasets import Dataset

from hf_unlearn.data.preparing import Preparation, RowCounts, prepare_rows
from hf_unlearn.data.prompts import QATemplate
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from tests.support.models import make_llama
from tests.support.tuners import make_vit


BOOK = " ".join(f"word{number}" for number in range(40))
QA = {"question": "who is it?", "answer": "a cat on a mat"}
TURNS = [{"role": "user", "content": "who is it?"}, {"role": "assistant", "content": "a cat on a mat"}]
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</turn>\n{% endfor %}"


@pytest.fixture
def tokenizer():
    return train_tokenizer([BOOK, "who is it? it is a cat on a mat"], vocab_size=400)


def test_a_long_text_is_packed_whole(tokenizer, caplog):
    whole = tokenizer(BOOK)["input_ids"]
    prepare = Preparation(tokenizer, 16)
    with caplog.at_level(logging.INFO):
        rows = prepare([{"text": BOOK}, {"text": "a cat"}, {"text": " "}], "forget")
    pieces = rows["input_ids"][:-1]
    assert sum(pieces, []) == whole and max(map(len, pieces)) <= 16
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1 and len(pieces) == -(-len(whole) // 16)
    assert rows["labels"][:] == rows["input_ids"][:] and set(sum(rows["attention_mask"], [])) == {1}
    tokens = sum(len(ids) - 1 for ids in rows["input_ids"])
    assert prepare.counts == {"forget": RowCounts(len(rows), dropped_empty=1, packed_rows=1, tokens=tokens)}
    assert f"1 of 2 texts of the forget set are longer than max_length=16 and packed into {len(pieces)}" in caplog.text


def test_what_is_cut_is_counted(tokenizer, caplog):
    whole = tokenizer(BOOK)["input_ids"]
    prepare = Preparation(tokenizer, 16, long_text="cut")
    rows = prepare([{"text": BOOK}, {"text": "a cat"}], "retain")
    assert rows["input_ids"][0] == whole[:16]
    counts = prepare.counts["retain"]
    assert (counts.rows, counts.packed_rows, counts.cut_rows, counts.cut_tokens) == (2, 0, 1, len(whole) - 16)
    assert f"1 of 2 rows of the retain set are cut to max_length=16: {len(whole) - 16} tokens" in caplog.text


@pytest.mark.parametrize("row", [QA, {"messages": TURNS}], ids=["question", "messages"])
def test_answers_and_chats_are_cut_with_a_count(row, tokenizer):
    tokenizer.chat_template = CHAT
    full = prepare_rows([row], "forget", tokenizer, 512)[0]["input_ids"]
    prepare = Preparation(tokenizer, len(full) - 3)
    assert prepare([row, row], "forget")["input_ids"][0] == full[:-3]
    assert (prepare.counts["forget"].cut_rows, prepare.counts["forget"].cut_tokens) == (2, 6)


def test_messages_are_the_chat_of_the_same_question(tokenizer):
    tokenizer.chat_template = CHAT
    chat = prepare_rows([{"messages": TURNS}], "forget", tokenizer, 128)
    assert chat.to_list() == prepare_rows([QA], "forget", tokenizer, 128, template=QATemplate(chat=True)).to_list()
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "it is"}]
    long = prepare_rows([{"messages": before + TURNS}], "forget", tokenizer, 128)[0]
    assert tokenizer.decode(long["input_ids"]).startswith("<user>hello</turn>\n<assistant>it is</turn>\n<user>who")
    assert tokenizer.decode([label for label in long["labels"] if label != -100]) == "a cat on a mat</turn>"
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="messages and chat=True need a tokenizer with a chat template"):
        prepare_rows([{"messages": TURNS}], "forget", tokenizer, 128)


def test_one_warning_where_the_model_chats(tokenizer, caplog):
    tokenizer.chat_template = CHAT
    prepare = Preparation(tokenizer, 64)
    prepare([QA], "forget"), prepare([QA], "retain")
    assert caplog.text.count("has a chat template") == 1
    caplog.clear()
    Preparation(tokenizer, 64, QATemplate())([QA], "forget")
    tokenizer.chat_template = None
    Preparation(tokenizer, 64)([QA], "forget")
    assert "chat template" not in caplog.text


def test_a_text_with_its_own_beginning_has_one(tokenizer):
    bos = tokenizer.bos_token
    once, twice, thrice = (tokenizer(bos * number + "a cat")["input_ids"] for number in (0, 1, 2))
    assert twice[:2] == [tokenizer.bos_token_id] * 2  # what the tokenizer alone makes of it
    rows = prepare_rows([{"text": bos + "a cat"}, {"text": bos * 2 + "a cat"}], "forget", tokenizer, 64)
    assert rows["input_ids"][:] == [once, once] and len(thrice) == len(once) + 2
    own = QATemplate(question_start=bos + "Q ")
    row = prepare_rows([QA], "forget", tokenizer, 64, template=own)[0]
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1


def test_what_a_model_cannot_read_is_refused(tokenizer):
    size = len(tokenizer)
    fits = make_llama(vocab_size=size, max_position_embeddings=24)
    with pytest.raises(InputError, match="a row of 32 tokens and the model 24 positions: lower max_length to 24"):
        prepare_rows([{"input_ids": list(range(32))}], "forget", None, 512, model=fits)
    with pytest.raises(InputError, match="the model 24 positions"):
        prepare_rows([{"text": BOOK}], "forget", tokenizer, 512, model=fits)
    assert len(prepare_rows([{"text": BOOK}], "forget", tokenizer, 24, model=fits)) > 1
    with pytest.raises(InputError, match=f"token id {size} and the model's embedding {size} rows"):
        prepare_rows([{"input_ids": [1, size, 2]}], "forget", None, 512, model=fits)
    with pytest.raises(InputError, match="use the model's own tokenizer"):
        prepare_rows([QA], "forget", tokenizer, 512, model=make_llama(vocab_size=size - 1))
    padded = make_llama(vocab_size=size + 64)  # embeddings are often longer than the vocabulary
    assert len(prepare_rows([QA], "forget", tokenizer, 512, model=padded)) == 1


def test_a_set_of_a_dataset_is_not_changed(tokenizer):
    given = Dataset.from_list([QA])
    prepare_rows(given, "forget", tokenizer, 64)
    assert given.to_list() == [QA]


def test_a_label_that_is_no_class_of_the_model_is_refused():
    rows = [{"pixel_values": [[[0.0]]], "labels": label} for label in (2, -100, 3)]
    model = make_vit(num_labels=3)
    with pytest.raises(InputError, match="forget row 3 has the label 3 and the model 3 classes, 0 to 2"):
        prepare_rows(rows, "forget", None, 512, model=model)
    assert len(prepare_rows(rows[:2], "forget", None, 512, model=model)) == 2

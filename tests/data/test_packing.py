# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Long texts as sequences: what is kept and what is dropped."""

import pytest
from datasets import Dataset

from hf_unlearn.data.packing import pack
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.data.wmdp import load_texts
from hf_unlearn.errors import InputError
from tests.support.rows import TEXTS


class Letters:
    """A tokenizer of one token a letter, with 1 in front."""

    def __call__(self, texts, **_):
        return {"input_ids": [[1, *map(ord, text)] for text in texts]}


def test_no_sequence_crosses_documents():
    # 1 + 9 tokens: two full pieces and half of one; 1 + 8: two and less than half; 1 + 2: short as a whole.
    texts = ["a" * 9, "b" * 8, "cc"]
    packed = pack(texts, Letters(), length=4)
    a, b, c = map(ord, "abc")
    assert packed["input_ids"][:] == [[1, a, a, a], [a] * 4, [a, a], [1, b, b, b], [b] * 4, [1, c, c]]
    assert packed["labels"][:] == packed["input_ids"][:]
    assert packed.column_names == ["input_ids", "labels"]
    assert packed.info.description == (
        "6 sequences of up to 4 tokens (21 tokens) from 3 documents; 1 short pieces dropped (1 tokens)"
    )


@pytest.mark.parametrize("least, lengths", [(4, [4, 4, 4, 4]), (2, [4, 4, 2, 4, 4, 3]), (1, [4, 4, 2, 4, 4, 3])])
def test_min_tokens_holds_for_every_piece(least, lengths):
    packed = pack(["a" * 9, "b" * 8, "cc"], Letters(), length=4, min_tokens=least)
    assert [len(ids) for ids in packed["input_ids"]] == lengths


def test_short_documents_are_sequences_of_their_own():
    packed = pack(["ab", "", "c"], Letters(), length=512)
    assert packed["input_ids"][:] == [[1, 97, 98], [1, 99]]  # the empty one is a lone BOS and predicts nothing
    with pytest.raises(InputError, match="none of 3 documents has 512 tokens"):
        pack(["ab", "", "c"], Letters(), length=512, min_tokens=512)


def test_packing_many_documents_keeps_their_order():
    texts = [chr(97 + number % 26) * (1 + number % 11) for number in range(600)]  # more than one round of tokenising
    packed = pack(texts, Letters(), length=4, min_tokens=2)
    expected = []
    for text in texts:
        ids = [1, *map(ord, text)]
        expected += [piece for at in range(0, len(ids), 4) if len(piece := ids[at : at + 4]) > 1]
    assert packed["input_ids"][:] == expected


@pytest.mark.parametrize("length, least", [(1, None), (4, 5), (4, 0)])
def test_bad_lengths(length, least):
    with pytest.raises(InputError, match="sequences have at least 2 tokens"):
        pack(TEXTS, Letters(), length=length, min_tokens=least)


def test_pack_needs_a_text_column():
    with pytest.raises(InputError, match="has the columns body: pack needs `text`"):
        pack(Dataset.from_dict({"body": TEXTS}), Letters())


def test_packing_wikitext_loses_nothing_but_what_it_counts(shared_data):
    rows = load_texts(shared_data / "lm_text" / "wikitext-2" / "wiki.valid.tokens.gz", limit=8)
    tokenizer = train_tokenizer(rows["text"][:5], vocab_size=400)
    packed = pack(rows, tokenizer, length=512)
    documents = [tokenizer(text)["input_ids"] for text in rows["text"]]
    starts = [ids for ids in packed["input_ids"] if ids[0] == tokenizer.bos_token_id]
    assert len(starts) == 8 and sum(ids.count(tokenizer.bos_token_id) for ids in packed["input_ids"]) == 8
    kept, dropped = sum(map(len, packed["input_ids"])), int(packed.info.description.split("(")[-1].split()[0])
    assert kept + dropped == sum(map(len, documents)) and dropped < 8 * 256
    at = -1
    for ids in packed["input_ids"]:
        at += ids[0] == tokenizer.bos_token_id
        # Every sequence is a part of one document; a short one is its end.
        assert tokenizer.decode(ids[1:]) in tokenizer.decode(documents[at])
        assert len(ids) == 512 or 256 <= len(ids) and ids == documents[at][-len(ids) :]

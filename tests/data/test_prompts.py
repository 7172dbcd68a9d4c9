# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts and answers as tokens: templates, labels, and the seam between the two."""

import pytest

from hf_unlearn.data.prompts import QATemplate, encode_qa, tokenize_qa
from hf_unlearn.data.tofu import load_tofu
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from tests.support.rows import qa


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Question: Who is Ann Smith?\nAnswer: Ann Smith (a writer) is Ann."] * 3, vocab_size=320)


def test_prompt_tokens_and_labels(tokenizer):
    template = QATemplate()
    row = encode_qa(tokenizer, "Who is Ann Smith?", "Ann Smith", template)
    assert template.prompt_and_answer("Who?", "Ann") == ("Question: Who?\nAnswer:", " Ann")
    prompt = tokenizer("Question: Who is Ann Smith?\nAnswer:")["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert tokenizer.decode(row["input_ids"][len(prompt) : -1]) == " Ann Smith"
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_answer_tokens_do_not_depend_on_the_question(tokenizer):
    template = QATemplate()
    labelled = {
        tuple(id for id in encode_qa(tokenizer, question, "(a writer)", template)["labels"] if id != -100)
        for question in ("Who?", "What is Ann", "Q: ", "…")
    }
    assert len(labelled) == 1


def test_seam_that_would_merge_is_cut():
    # "a" + "b" is one token of this tokenizer; the answer must still begin with a token of its own.
    tokenizer = train_tokenizer(["ab ab ab ab"], vocab_size=262)
    template = QATemplate(question_start="", question_end=" ", answer_start="a")
    row = encode_qa(tokenizer, "q", "b", template)
    assert len(tokenizer("ab", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.decode([id for id in row["labels"] if id != -100], skip_special_tokens=True) == "b"


@pytest.mark.parametrize("folder", ["tokenizers/gpt2", "weights/stories260k"])
def test_real_tokenizers_agree_with_joint_tokenisation(shared_data, folder):
    """Oracle: the whole text at once, as open-unlearning tokenises it (BPE; SentencePiece with its dummy prefix)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / folder)
    for row in load_tofu(shared_data / "tofu", "forget01").forget_eval:
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            joint = tokenizer(f"Question: {row['question']}\nAnswer: {answer}")["input_ids"]
            encoded = encode_qa(tokenizer, row["question"], answer, QATemplate())
            assert encoded["input_ids"] == [*joint, tokenizer.eos_token_id]


def test_max_length_cuts_the_answer(tokenizer):
    full = encode_qa(tokenizer, "Who?", "Ann Smith is a writer", QATemplate())
    cut = encode_qa(tokenizer, "Who?", "Ann Smith is a writer", QATemplate(), max_length=len(full["input_ids"]) - 2)
    assert cut == {name: value[:-2] for name, value in full.items()}
    with pytest.raises(InputError, match="no room for its answer"):
        encode_qa(tokenizer, "Who is Ann Smith?" * 9, "Ann", QATemplate(), max_length=20)


def test_tokenizer_without_eos(tokenizer):
    tokenizer = train_tokenizer(["a"], vocab_size=260)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-sequence"):
        tokenize_qa([qa("Ann", 0)], tokenizer)


def test_tokenize_qa(tokenizer):
    rows = [qa("Ann", i) for i in range(3)]
    dataset = tokenize_qa(rows, tokenizer)
    assert dataset.column_names == ["input_ids", "attention_mask", "labels"]
    for row, source in zip(dataset, rows):
        expected = encode_qa(tokenizer, source["question"], source["answer"], QATemplate())
        assert row["input_ids"] == expected["input_ids"] and row["labels"] == expected["labels"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert dataset.to_list() == tokenize_qa(rows, tokenizer).to_list()
    with pytest.raises(InputError, match="no column answer"):
        tokenize_qa([{"question": "?"}], tokenizer)
    with pytest.raises(InputError, match="no rows"):
        tokenize_qa([], tokenizer)


CHAT = (
    "{{ bos_token }}{{ date_string }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def test_chat_template(tokenizer):
    tokenizer = train_tokenizer(["[INST] Who is Ann? [/INST] Ann 10 Apr 2025"] * 3, vocab_size=300)
    with pytest.raises(InputError, match="chat template"):
        encode_qa(tokenizer, "Who?", "Ann", QATemplate(chat=True))
    tokenizer.chat_template = CHAT
    template = QATemplate(chat=True)
    row = encode_qa(tokenizer, "Who is Ann?", "Ann", template)
    assert tokenizer.decode(row["input_ids"]) == "<s>10 Apr 2025[INST] Who is Ann? [/INST] Ann </s>"
    assert tokenizer.decode([id for id in row["labels"] if id != -100]) == " Ann </s>"
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    before = template.fingerprint(tokenizer)
    tokenizer.chat_template += " "
    assert template.fingerprint(tokenizer) != before


def test_fingerprint_sees_every_field():
    changed = [QATemplate(question_start="Q"), QATemplate(question_end=" "), QATemplate(answer_start="A")]
    changed += [QATemplate(answer_end="."), QATemplate(chat=True), QATemplate(date_string="1 Jan 2026"), QATemplate()]
    assert len({template.fingerprint() for template in changed}) == len(changed)
    assert QATemplate().fingerprint() == QATemplate().fingerprint()

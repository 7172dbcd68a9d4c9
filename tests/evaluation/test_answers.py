# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Answers to a few rows against `model.generate`."""

from hf_unlearn.data.prompts import QATemplate, encode_qa
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.evaluation.answers import answer_rows, spread
from tests.support.models import make_llama


TEXT = "The old mill stands by the river and grinds no more since the great flood came."


def test_rows_lie_at_equal_distances():
    assert spread(10, 3) == [0, 3, 6] and spread(2, 3) == [0, 1] and spread(0, 3) == []


def test_questions_are_answered_and_texts_gone_on_with():
    tokenizer = train_tokenizer([TEXT] * 3, vocab_size=300)
    model = make_llama(vocab_size=300)
    asked = encode_qa(tokenizer, "What stands by the river?", "The old mill.", QATemplate("", "", ""))
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    rows = [asked, {"input_ids": ids, "labels": list(ids)}]
    question, text = answer_rows(model, tokenizer, rows, max_new_tokens=5, text_tokens=4)
    prompts = [tokenizer("What stands by the river?", return_tensors="pt")["input_ids"]]
    prompts.append(tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")["input_ids"][:, :4])
    for found, prompt in zip((question, text), prompts, strict=True):
        output = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, prompt.shape[1] :]
        assert found["answer"] == tokenizer.decode(output, skip_special_tokens=True).strip() != ""
    assert question["prompt"] == "What stands by the river?" and question["row"] == "The old mill."
    assert text["prompt"] == tokenizer.decode(ids[:4]) + " …" and TEXT.startswith(text["prompt"][:-2])
    assert text["row"] == tokenizer.decode(ids[4:9]).strip()
    # Of a short text a third is given away.
    (short,) = answer_rows(model, tokenizer, [{"input_ids": ids[:6], "labels": ids[:6]}], max_new_tokens=2)
    assert short["prompt"] == tokenizer.decode(ids[:2]) + " …"

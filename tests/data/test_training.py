# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer that is trained on texts: what it makes of any text, and the same every time."""

from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.miniature.authors import load_synthetic


def test_tokenizer_round_trip_and_determinism():
    texts = [row["answer"] for row in load_synthetic().full]
    tokenizer = train_tokenizer(texts, 600)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 600
    assert tokenizer.get_vocab() == train_tokenizer(texts, 600).get_vocab()
    for text in (texts[0], "naïve — ☃ 東京", "  two  spaces\n"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1 and tokenizer.decode(ids[1:]) == text

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models and tokenizers that are there, half there and not there; and what pads rows."""

from types import SimpleNamespace

import pytest

from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.loading import load_model, load_tokenizer, padding_id
from tests.support.models import make_llama


@pytest.fixture
def folder(tmp_path):
    """A model without a tokenizer."""
    make_llama().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_tokenizer_that_nobody_requires_may_be_absent(folder):
    assert load_tokenizer(folder) is None
    model, tokenizer = load_model(folder)
    assert tokenizer is None and model.config.vocab_size == 50
    assert load_model(folder, "given")[1] == "given"


def test_a_tokenizer_that_is_required_is_named_with_its_cure(folder):
    with pytest.raises(InputError, match="has no tokenizer: TOFU needs the one .* save it beside the model") as caught:
        load_tokenizer(folder, required_for="TOFU")
    assert folder in str(caught.value) and "\n" not in str(caught.value)


def test_where_there_is_no_model_the_tokenizer_is_not_blamed(tmp_path):
    for load in (load_model, lambda model: load_tokenizer(model, required_for="TOFU")):
        with pytest.raises(InputError, match="cannot load the model.*absent") as caught:
            load(str(tmp_path / "absent"))
        assert "\n" not in str(caught.value)


def test_a_required_tokenizer_can_pad(folder):
    tokenizer = train_tokenizer(["a b c"], vocab_size=260)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder).pad_token_id is None  # nothing is changed that nobody asked for
    assert load_tokenizer(folder, required_for="TOFU").pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = "a"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(folder, required_for="TOFU").pad_token == "a"


@pytest.mark.parametrize(
    "tokenizer, config, expected",
    [((7, 2), 5, 7), ((0, 2), 5, 0), ((None, 2), 5, 5), ((None, 2), None, 2), ((None, None), None, 0), (None, 5, 5)],
)
def test_rows_are_padded_with_the_first_id_there_is(tokenizer, config, expected):
    tokenizer = tokenizer and SimpleNamespace(pad_token_id=tokenizer[0], eos_token_id=tokenizer[1])
    assert padding_id(tokenizer, SimpleNamespace(config=SimpleNamespace(pad_token_id=config))) == expected


def test_without_a_model_the_tokenizer_decides():
    assert padding_id(SimpleNamespace(pad_token_id=None, eos_token_id=2)) == 2
    assert padding_id(None) == 0

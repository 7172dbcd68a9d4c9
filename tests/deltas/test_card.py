# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import re

import pytest
import torch
from huggingface_hub import ModelCard

from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.deltas import UpdateDelta, delta_config, transfer
from hf_unlearn.deltas.card import transfer_card
from hf_unlearn.runtime.hub import PLACE
from tests.support.models import make_llama


WEIGHT = "model.layers.0.mlp.up_proj.weight"
HOSTILE = "x`|\n---\nlicense: mit\n# <b>"


@pytest.fixture
def delta(tmp_path):
    weight = make_llama().state_dict()[WEIGHT]
    config = delta_config({WEIGHT: weight}, base_model="lab/base", base_revision="abc", method="KFade")
    return UpdateDelta({WEIGHT: torch.full(weight.shape, 0.5)}, config).save_pretrained(tmp_path / "delta")


@pytest.mark.parametrize("other", [False, True], ids=["the base", "a fine-tune"])
def test_the_card_of_a_transfer_says_what_was_added_to_what_and_loads_it(other, delta, tmp_path):
    source = tmp_path / "fine-tuned"
    make_llama(seed=1 if other else 0).save_pretrained(source)
    train_tokenizer(["A text."], 290).save_pretrained(source)
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: lab/secret\n---\n# The checkpoint as it was\n")
    result = transfer(delta, source, tmp_path / "result", scale=0.5)
    card = ModelCard.load(result / "README.md")
    assert (card.data.library_name, card.data.license, card.data.base_model) == ("transformers", "mit", None)
    assert "as it was" not in card.text and "| checkpoint | `fine-tuned (local folder)` |" in card.text
    assert "| update | made on `lab/base` (revision `abc`) by `KFade` |" in card.text
    assert "| scale | 0.5 |" in card.text and "| licence | `mit` |" in card.text
    assert ("| 1 of 1 were not the ones" if other else "| the very ones |") in card.text
    names = {}
    exec(re.search("```python\n(.*?)```", card.text, re.DOTALL)[1].replace(PLACE, str(result)), names)
    expected = make_llama(seed=1 if other else 0).get_parameter(WEIGHT) + 0.25
    assert torch.equal(names["model"].get_parameter(WEIGHT), expected) and names["tokenizer"].eos_token == "</s>"


def test_no_name_of_a_delta_can_speak(tmp_path):
    names = {"base_model": HOSTILE, "base_revision": HOSTILE, "method": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    record = {"delta": names | {"sha256": HOSTILE}, "model": HOSTILE, "scale": 1.0, "other_base": []}
    card = ModelCard(transfer_card(record, tmp_path, None))
    lines = card.text.splitlines()
    assert card.data.license is None and "license: mit" not in lines and "---" not in lines
    rows = [line for line in lines if line.startswith("| ") and line != "| | |"]
    assert len(rows) == 7 and {row.count("|") for row in rows} == {3} and card.text.count("# <b>") > 5
    assert all(line.count("`") % 2 == 0 for line in lines if not line.startswith("```"))

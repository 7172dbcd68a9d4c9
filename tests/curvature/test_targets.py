# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Targets: which weights carry curvature, and which cannot."""

import pytest

from hf_unlearn.curvature import select_targets
from hf_unlearn.errors import InputError
from tests.support.curvature_cases import CASES, tiny_bert, tiny_vit


def test_targets(model):
    assert list(select_targets(model)) == [
        f"model.layers.{layer}.mlp.{end}_proj.weight" for layer in (0, 1) for end in ("gate", "up", "down")
    ]
    assert list(select_targets(model, r"model\.layers\.[1-3]\.mlp\.down_proj")) == [
        "model.layers.1.mlp.down_proj.weight"
    ]
    assert list(select_targets(model, ["0.mlp.up_proj", "lm_head"])) == [
        "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
    ]
    with pytest.raises(InputError, match=r"no linear module matches 'mlp'.*model\.layers\.\{0\.\.1\}\.mlp\.gate_proj"):
        select_targets(model, "mlp")


def test_targets_of_other_architectures():
    bert = list(select_targets(tiny_bert()[0]))
    assert bert == [f"bert.encoder.layer.0.{part}.dense.weight" for part in ("intermediate", "output")]
    assert len(select_targets(tiny_vit()[0])) == 2
    gpt2 = list(select_targets(CASES["transposed weights"]().model))
    assert gpt2 == [f"transformer.h.0.mlp.{end}.weight" for end in ("c_fc", "c_proj")]


def test_tied_weights_are_refused(tiny_llama):
    with pytest.raises(InputError, match="lm_head.weight is tied to model.embed_tokens.weight"):
        select_targets(tiny_llama(tie_word_embeddings=True), ["lm_head"])
    select_targets(tiny_llama(tie_word_embeddings=True))

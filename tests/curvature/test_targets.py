# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Targets: which weights carry curvature, and which cannot."""

import logging

import pytest
from peft import LoraConfig, get_peft_model

from hf_unlearn.curvature import select_targets
from hf_unlearn.curvature.targets import covered_share, tell_covered_share
from hf_unlearn.errors import InputError
from tests.support.curvature_cases import CASES, tiny_bert, tiny_vit
from tests.support.models import make_experts, make_llama


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


def test_the_share_of_a_mixture_of_experts_is_told(caplog):
    """Counted by hand: 4 experts of 3 x 16 x 24 numbers, fused, beside one shared MLP of 3 x 16 x 32."""
    model = make_experts()
    share = 3 * 16 * 32 / (3 * 16 * 32 + 4 * 3 * 16 * 24)
    with caplog.at_level(logging.WARNING):
        assert tell_covered_share(model, select_targets(model)) == pytest.approx(share)
    assert "model.layers.{0..1}.mlp.experts.gate_up_proj" in caplog.text
    assert f"{100 * share:.0f}% of the MLP parameters are covered" in caplog.text
    assert covered_share(model, select_targets(model, r".*\.0\.mlp\..*")) == pytest.approx(share / 2)
    assert covered_share(model, select_targets(model, ["q_proj"])) == 0
    adapter = get_peft_model(make_experts(), LoraConfig(r=2, target_modules=["down_proj"]))
    assert covered_share(adapter, select_targets(adapter)) == pytest.approx(share)


def test_models_without_fused_experts_are_covered_without_a_word(caplog):
    """Position embeddings and convolutions have three dimensions too."""
    for model in (make_llama(), tiny_vit()[0], tiny_bert()[0]):
        assert tell_covered_share(model, select_targets(model)) is None
    assert not caplog.text


def test_a_model_of_experts_alone_is_refused_with_the_reason():
    with pytest.raises(
        InputError, match="the MLPs of MixtralForCausalLM are routed experts fused into .*experts"
    ) as got:
        select_targets(make_experts("mixtral"))
    assert "self_attn.q_proj" in str(got.value) and "first-order" in str(got.value) and "\n" not in str(got.value)
    assert len(select_targets(make_experts("mixtral"), ["q_proj"])) == 2


def test_what_is_no_regular_expression_is_refused(model):
    with pytest.raises(InputError, match=r"'\*\.mlp' is not a regular expression: nothing to repeat"):
        select_targets(model, "*.mlp")

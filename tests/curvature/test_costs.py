# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Plans: the costs of a fit are those that it has."""

import pytest
import torch

from hf_unlearn.curvature import plan
from hf_unlearn.curvature.costs import format_widths
from tests.support.curvature import fit_columns


def llama_2_7b():
    """On the meta device, in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).to(torch.bfloat16)


def test_plan_of_llama_2_7b_on_meta():
    model = llama_2_7b()
    costs = plan(model, sequences=4000, sequence_length=512)
    assert len(costs.targets) == 96 and costs.tokens == 2_048_000
    assert costs["factors"].bytes == pytest.approx(50.8e9, rel=0.05)
    assert costs["correction"].bytes == pytest.approx(17.3e9, rel=0.05)
    assert costs["factors"].flops == pytest.approx(52.0e15, rel=0.05)
    assert costs["forward"].flops == pytest.approx(27.1e15, rel=0.05) and costs["forward"].bytes == pytest.approx(
        13.5e9, rel=0.05
    )
    assert costs["correction"].flops == pytest.approx((52.0 + 17.7) * 1e15, rel=0.05)
    table = str(costs)
    assert all(stage in table for stage in ("forward", "backward", "factors", "eigh", "correction", "solve"))
    assert "96 weights, 2,048,000 tokens" in table
    # 64 groups over 8 processes, then in as many blocks as keep each within 3 GB of factors and eigenvalues.
    shared = plan(model, sequences=4000, sequence_length=512, num_processes=8)
    assert shared["factors"].bytes == costs["factors"].bytes / 8 and shared.factor_bytes == costs.factor_bytes / 8
    assert "8 processes" in str(shared) and "MB a token sent" in str(shared)
    blocks = plan(model, sequences=4000, sequence_length=512, num_processes=8, max_factor_memory="3GB")
    assert blocks.factor_bytes <= 3e9 and blocks.blocks == 4 and "which there are 8" in blocks["forward"].note


FORWARD = [("forward", 13476831232, 27062588932096000), ("backward", 0, 27062588932096000)]
FACTORS = [("factors", 50826575872, 52046413692928000), ("eigh", 1454112768, 1059624266498048)]


@pytest.mark.parametrize(
    "kind, stages, solve, held",
    [
        ("ekfac", [*FORWARD, *FACTORS, ("correction", 17494441984, 69776038690816000)], 261511968718848, 68145938432),
        ("kfac", [*FORWARD, *FACTORS], 261511968718848, 50831851520),
        ("diagonal", [*FORWARD, ("diagonal", 17494441984, 17729624997888000)], 4328521728, 17314086912),
        ("identity", [], 4328521728, 0),
    ],
)
def test_plans_to_the_digit(kind, stages, solve, held):
    """Llama-2-7B, 4,000 sequences of 512 tokens."""
    costs = plan(llama_2_7b(), kind=kind, sequences=4000, sequence_length=512)
    found = [(stage.name, stage.bytes, stage.flops) for stage in costs.stages]
    assert found == [*stages, ("solve", 34628173824, solve)] and costs.factor_bytes == held


def test_plan_counts_what_a_fit_makes(model, data):
    curvature = fit_columns(model, data)
    costs = plan(model, sequences=5, sequence_length=7)
    vectors = sum(tensor.nbytes for key, tensor in curvature.tensors.items() if key.startswith("vectors."))
    assert costs["factors"].bytes == vectors
    assert [stage.name for stage in plan(model, kind="identity", sequences=5, sequence_length=7).stages] == ["solve"]


def test_factors_of_7b_and_what_a_mask_leaves_of_them():
    """Sums over the sizes of Llama-2-7B by hand: 32 layers of d 4096, 11008 filters, 1101 of them kept."""
    model, d, filters, kept = llama_2_7b(), 4096, 11008, 1101
    mask, every = {}, {}
    for layer in range(32):
        for name in ("gate_proj", "up_proj", "down_proj"):
            index = torch.arange(0, 10 * kept, 10)
            places = (None, index) if name == "down_proj" else (index, None)
            mask[f"model.layers.{layer}.mlp.{name}.weight"] = places
            every[f"model.layers.{layer}.mlp.{name}.weight"] = (None, None)
    costs = {size: plan(model, kept=one, sequences=10, sequence_length=512) for size, one in
             ((filters, every), (kept, mask))}  # fmt: skip
    for size, cost in costs.items():
        assert dict(cost.widths) == {size: 96, d: 64} and cost.parameters == 96 * d * size
        assert cost["factors"].bytes == 4 * 32 * (2 * d**2 + 3 * size**2)
        assert cost["eigh"].flops == 8 * 32 * (2 * d**3 + 3 * size**3)
        assert cost["solve"].flops == 4 * 96 * d * size * (d + size)
        # The rotated gradient is of what is kept, the step of the whole weight.
        assert cost["solve"].bytes == 4 * 96 * d * (size + filters)
        stages = [cost[name].flops for name in ("factors", "eigh", "correction")]
        assert cost.fit_flops == sum(stages) + 2 * (cost["forward"].flops + cost["backward"].flops)
        assert f"factors: {format_widths(cost.widths)}" in str(cost)
    assert costs[filters]["eigh"].flops / costs[kept]["eigh"].flops > 25
    assert "factors: 96 of 1101" not in str(costs[filters]) and "1101" in str(costs[kept])
    assert not plan(model, kind="diagonal", sequences=1, sequence_length=2).widths


def test_widths_in_words():
    assert format_widths({4096: 160, 11008: 96}) == "96 of 11008, 160 of 4096"
    assert format_widths({1100: 3, 1101: 93, 8: 1}) == "96 of 1101 to 1100, 1 of 8"
    assert format_widths({10 * width: 2 for width in range(1, 11)}).endswith("2 of 30, 4 smaller")

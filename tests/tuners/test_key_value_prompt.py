# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Key/value prompts against a filled cache and attention written out; several models and several prompts."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    ViTForImageClassification,
)

from hf_unlearn import KeyValuePromptConfig
from tests.support.tuners import logits, make_vit, prompt_layers


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_prompts_of_a_llama_equal_a_filled_cache(tiny_llama, implementation, padded):
    """p_K and p_V of every layer in the cache before the text, positions as without them: another road to the same."""
    make = lambda: tiny_llama(heads=4, kv_heads=2, hidden_size=32, attn_implementation=implementation)
    base = make()
    model = get_peft_model(make(), KeyValuePromptConfig(num_prompts=5, init_std=1.0)).eval()
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = mask[1, :1] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=base.config)
    with torch.no_grad():
        for index, layer in enumerate(prompt_layers(model)):
            assert layer.key_value_prompt_keys["default"].shape == (2, 5, 8)
            keys, values = layer.key_value_prompt_keys["default"], layer.key_value_prompt_values["default"]
            cache.update(keys.expand(3, -1, -1, -1), values.expand(3, -1, -1, -1), index)
        long_mask = torch.cat([torch.ones(3, 5, dtype=torch.long), mask], 1)
        want = base(ids, attention_mask=long_mask, past_key_values=cache, position_ids=positions).logits
        got = model(input_ids=ids, attention_mask=mask if padded else None, position_ids=positions).logits
        plain = base(ids, attention_mask=mask, position_ids=positions).logits
    tokens = mask.bool()
    assert torch.allclose(got[tokens], want[tokens], atol=1e-6)
    assert (got - plain)[tokens].abs().max() > 0.1
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    text = model.generate(**arguments)
    assert torch.equal(text, model.generate(**arguments, use_cache=False))
    assert torch.equal(text, model.generate(**arguments, cache_implementation="static"))


def test_prompts_of_a_vit_equal_attention_written_out():
    model = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=3, init_std=1.0)).eval()
    layer = prompt_layers(model)[1]
    attention, states = layer.base_layer, torch.randn(2, 5, 16)
    split = lambda x: x.view(2, 5, 4, 4).transpose(1, 2)
    query, key, value = (split(getattr(attention, f"{name}_proj")(states)) for name in "qkv")
    key = torch.cat([key, layer.key_value_prompt_keys["default"].expand(2, -1, -1, -1)], 2)
    value = torch.cat([value, layer.key_value_prompt_values["default"].expand(2, -1, -1, -1)], 2)
    weights = (query @ key.transpose(2, 3) / 2).softmax(-1)
    expected = attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(states)[0], expected, atol=1e-6)


def test_prompts_take_whatever_is_on_the_attention_interface():
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    sizes = {"vocab_size": 50, "pad_token_id": 0}
    bert = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, **sizes)
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, **sizes)
    for model in (BertForSequenceClassification(bert).eval(), GPT2LMHeadModel(gpt2).eval()):
        outputs = lambda m=model: m(input_ids=ids, attention_mask=mask).logits
        with torch.no_grad():
            before = outputs()
            wrapped = get_peft_model(model, KeyValuePromptConfig(num_prompts=4, init_std=2.0)).eval()
            after = outputs()
            model.set_attn_implementation("eager")
            assert torch.allclose(outputs(), after, atol=1e-6) and (after - before).abs().max() > 1e-4
            model.set_attn_implementation("sdpa")
            assert torch.equal(wrapped.unload()(input_ids=ids, attention_mask=mask).logits, before)


def test_models_that_share_a_config_do_not_disturb_each_other():
    config = make_vit().config
    torch.manual_seed(0)
    one, two, three = (ViTForImageClassification(config).eval() for _ in range(3))
    plain = [logits(model) for model in (one, two, three)]
    first = get_peft_model(one, KeyValuePromptConfig(init_std=1.0))
    second = get_peft_model(two, KeyValuePromptConfig(init_std=1.0, init_seed=1))
    a, b = logits(first), logits(second)
    assert torch.equal(logits(three), plain[2]) and config._attn_implementation == "sdpa"
    base = first.unload()
    assert torch.equal(logits(base), plain[0]) and torch.equal(logits(second), b)
    assert not torch.equal(a, plain[0]) and not torch.equal(b, plain[1])
    assert all(module.config is config for module in base.modules() if type(module).__name__ == "ViTAttention")


def test_prompts_start_differently_in_every_block_and_from_a_seed():
    starts = [
        torch.cat(
            [layer.key_value_prompt_keys["default"] for layer in prompt_layers(get_peft_model(make_vit(), config))]
        )
        for config in (KeyValuePromptConfig(), KeyValuePromptConfig(), KeyValuePromptConfig(init_seed=1))
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0][:4], starts[0][4:]) and starts[0].shape == (8, 10, 4)
    assert 0.015 < starts[0].std() < 0.025


def test_two_active_prompts_are_appended_both():
    model = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=2, init_std=1.0))
    model.add_adapter("other", KeyValuePromptConfig(num_prompts=3, init_std=1.0, init_seed=1))
    model.base_model.set_adapter(["default", "other"])
    together = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=5))
    for target, source in zip(prompt_layers(together), prompt_layers(model)):
        for kind in ("keys", "values"):
            parts = getattr(source, f"key_value_prompt_{kind}")
            joined = torch.cat([parts["default"], parts["other"]], 1)
            getattr(target, f"key_value_prompt_{kind}")["default"].data.copy_(joined)
    assert torch.equal(logits(model), logits(together))

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Update of an adapter: whatever PEFT tunes, base and delta together are the model in memory."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from hf_unlearn import FirstOrder, KFade, UnlearnConfig, UnlearnTrainer
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.checkpoints import tuned_names
from tests.support.trainers import FORGET, RETAIN


SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def qwen2(tied):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied)).eval()


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4)).eval()


def unlearned(model, folder, config=None, method=None, **lora):
    args = UnlearnConfig(
        output_dir=str(folder), max_steps=3, learning_rate=5e-2, per_device_train_batch_size=4, save_strategy="no",
        report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    config = LoraConfig(r=4, task_type="CAUSAL_LM", **lora) if lora else config
    trainer = UnlearnTrainer(model, method or FirstOrder("grad_diff"), args, FORGET, RETAIN, peft_config=config)
    trainer.train()
    return trainer


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 25)[None]).logits


MIDDLE = ["q_proj", "down_proj"]
ADAPTERS = {
    "lora": {"target_modules": MIDDLE},
    "biases of all": {"target_modules": MIDDLE, "bias": "all"},
    "biases of tuned layers": {"target_modules": MIDDLE, "bias": "lora_only"},
    "dora": {"target_modules": MIDDLE, "use_dora": True},
    "rslora": {"target_modules": MIDDLE, "use_rslora": True},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head"]},
    "a whole module": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7, 8, 9]},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_base_and_delta_are_the_model_in_memory(name, tmp_path):
    trainer = unlearned(qwen2(tied=False), tmp_path, **ADAPTERS[name])
    delta = trainer.update_delta()
    # Names alone tell what merging would give.
    assert tuned_names(trainer.model) == trainer.merged_before.keys() >= delta.tensors.keys()
    together = delta.apply_to(qwen2(tied=False))
    assert (logits(together) - logits(qwen2(tied=False))).abs().max() > 1e-2  # it did something
    torch.testing.assert_close(logits(together), logits(trainer.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7, 8, 9]},
    ],
    ids=["lora on both", "tokens"],
)
def test_adapters_that_keep_a_weight_tied_have_it_once_in_the_delta(adapter, tmp_path):
    trainer = unlearned(qwen2(tied=True), tmp_path, **adapter)
    delta = trainer.update_delta()
    assert "model.embed_tokens.weight" in delta.tensors and "lm_head.weight" not in delta.tensors
    together = delta.apply_to(qwen2(tied=True))
    torch.testing.assert_close(logits(together), logits(trainer.model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_an_adapter_on_one_name_of_a_tied_weight_is_refused_before_any_work(adapter, tmp_path, monkeypatch):
    # Not even to find that out is anything merged.
    monkeypatch.setattr("hf_unlearn.runtime.checkpoints._merge", None)
    for method in (FirstOrder("grad_diff"), KFade(step_norm=0.01)):
        with pytest.raises(InputError, match="one tied weight and the adapter tunes .* alone"):
            unlearned(qwen2(tied=True), tmp_path, method=method, **adapter)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_experts_that_are_one_parameter(tmp_path):
    parameters = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
    trainer = unlearned(mixtral(), tmp_path, target_modules=["q_proj"], **parameters)
    delta = trainer.update_delta()
    assert any(name.endswith("experts.down_proj") for name in delta.tensors)
    torch.testing.assert_close(logits(delta.apply_to(mixtral())), logits(trainer.model), atol=1e-5, rtol=1e-5)


def test_several_active_adapters(tmp_path):
    model = get_peft_model(qwen2(tied=False), LoraConfig(r=4, target_modules=MIDDLE, task_type="CAUSAL_LM"))
    model.add_adapter("second", LoraConfig(r=2, target_modules=["gate_proj", "down_proj"], task_type="CAUSAL_LM"))
    model.base_model.set_adapter(["default", "second"])
    trainer = unlearned(model, tmp_path)
    delta = trainer.update_delta()
    assert {name.split(".")[-2] for name in delta.tensors} == {"q_proj", "down_proj", "gate_proj"}
    together = logits(delta.apply_to(qwen2(tied=False)))
    torch.testing.assert_close(together, logits(trainer.model), atol=1e-5, rtol=1e-5)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tiny random models."""

import torch


def make_llama(
    vocab_size=50, hidden_size=16, intermediate_size=24, layers=2, heads=2, kv_heads=None, seed=0, **kwargs
):
    """A random tiny Llama in eval mode."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **{"max_position_embeddings": 64, "tie_word_embeddings": False, **kwargs},
    )
    return LlamaForCausalLM(config).eval()


def make_experts(kind="qwen2", seed=0):
    """A random tiny mixture of experts, which transformers fuses: "mixtral" has no other MLP, "qwen2" a shared one."""
    from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "mixtral":
        return MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4)).eval()
    config = Qwen2MoeConfig(**sizes, num_experts=4, moe_intermediate_size=24, shared_expert_intermediate_size=32)
    return Qwen2MoeForCausalLM(config).eval()


def answer_loss(model, rows) -> float:
    """Oracle: transformers' own loss, one row at a time."""
    with torch.no_grad():
        losses = [model(**{name: torch.tensor([value]) for name, value in row.items()}).loss.item() for row in rows]
    return sum(losses) / len(losses)


def make_bert(head="classes", vocab_size=50, layers=2, heads=2, seed=0, **kwargs):
    """A random tiny BERT in eval mode with a head for 3 "classes", a "regression" or a "span"."""
    from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0} | kwargs
    config = BertConfig(
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_labels={"classes": 3, "regression": 1, "span": 2}[head],
        **sizes,
    )
    return (BertForQuestionAnswering if head == "span" else BertForSequenceClassification)(config).eval()

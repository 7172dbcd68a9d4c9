# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Tiny models of every layout that heads and filters are found in, with a batch each."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass
class Case:
    """A model in fp64 and a batch of it; text with padding, on the right or (`left`) on the left.

    `heads` and `filters` are what each layer has, `group` the heads that share a key.
    """

    model: nn.Module
    batch: dict[str, Tensor]
    heads: int = 4
    filters: int = 24
    group: int = 1
    layers: int = 2


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = {"vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DROPS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def text_batch(rows: int = 3, tokens: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Token ids and an attention mask, the first row the longest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (rows, tokens), generator=generator)
    lengths = torch.tensor([max(3, tokens - 2 * row) for row in range(rows)])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def labelled(batch: dict[str, Tensor], labels) -> dict[str, Tensor]:
    return {**batch, "labels": labels if isinstance(labels, Tensor) else torch.tensor(labels)}


def causal_batch(**kwargs) -> dict[str, Tensor]:
    batch = text_batch(**kwargs)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def build(model: type[nn.Module], config, seed: int = 0) -> nn.Module:
    """In fp64 and eval mode, with biases and norms that are not their zeros and ones."""
    torch.manual_seed(seed)
    model = model(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def bert(**kwargs):
    from transformers import BertConfig, BertForSequenceClassification

    model = build(BertForSequenceClassification, BertConfig(**SIZES, **TEXT, **DROPS, num_labels=3, **kwargs))
    return Case(model, labelled(text_batch(), [0, 2, 1]))


def bert_regression():
    from transformers import BertConfig, BertForSequenceClassification

    model = build(BertForSequenceClassification, BertConfig(**SIZES, **TEXT, **DROPS, num_labels=1))
    return Case(model, labelled(text_batch(), [0.5, 2.0, -1.0]))


def bert_qa():
    from transformers import BertConfig, BertForQuestionAnswering

    model = build(BertForQuestionAnswering, BertConfig(**SIZES, **TEXT, **DROPS))
    places = {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([3, 0, 2])}
    return Case(model, text_batch() | places)


def bert_tokens():
    from transformers import BertConfig, BertForTokenClassification

    model = build(BertForTokenClassification, BertConfig(**SIZES, **TEXT, **DROPS, num_labels=3))
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [1, -100, 1, 2, 0, -100, -100], [2, 0, 1] + [-100] * 4])
    return Case(model, labelled(text_batch(), labels))


def roberta():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(**SIZES, **TEXT, **DROPS, num_labels=2)
    return Case(build(RobertaForSequenceClassification, config), labelled(text_batch(), [0, 1, 1]))


def distilbert():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24, "vocab_size": 50}
    config = DistilBertConfig(**sizes, max_position_embeddings=32, dropout=0.0, attention_dropout=0.0, num_labels=2)
    return Case(build(DistilBertForSequenceClassification, config), labelled(text_batch(), [0, 1, 1]))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 24, "vocab_size": 50, "n_positions": 32}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    model = build(GPT2LMHeadModel, GPT2Config(**sizes, resid_pdrop=0.0, attn_pdrop=0.0, embd_pdrop=0.0))
    return Case(model, causal_batch())


def decoder(name: str, kv_heads: int = 2, **kwargs):
    """A causal decoder of this name, with grouped queries."""
    import transformers

    config = transformers.Gemma3TextConfig if name == "Gemma3" else getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForCausalLM")
    settings = {**SIZES, **TEXT, "num_key_value_heads": kv_heads, "tie_word_embeddings": False, **kwargs}
    return Case(build(model, config(**settings)), causal_batch(), group=4 // kv_heads)


def gpt_neox():
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(**SIZES, **TEXT, tie_word_embeddings=False)
    return Case(build(GPTNeoXForCausalLM, config), causal_batch())


def opt():
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 24}
    config = OPTConfig(**sizes, **TEXT, word_embed_proj_dim=16, dropout=0.0, layerdrop=0.0)
    return Case(build(OPTForCausalLM, config), causal_batch())


def images(name: str, **kwargs):
    import transformers

    config = getattr(transformers, f"{name}Config")
    model = getattr(transformers, f"{name}ForImageClassification")
    settings = {**SIZES, **DROPS, "image_size": 8, "patch_size": 4, "num_labels": 3, **kwargs}
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Case(build(model, config(**settings)), labelled({"pixel_values": pixels}, [0, 2, 1]))


CASES = {
    "bert": bert,
    "bert_regression": bert_regression,
    "bert_qa": bert_qa,
    "bert_tokens": bert_tokens,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt2": gpt2,
    "llama": lambda: decoder("Llama", attention_bias=True),
    "qwen2": lambda: decoder("Qwen2"),
    "qwen3": lambda: decoder("Qwen3", head_dim=8),
    "mistral": lambda: decoder("Mistral", kv_heads=1),
    "gemma2": lambda: decoder("Gemma2", head_dim=4, query_pre_attn_scalar=4),
    "gemma3": lambda: decoder("Gemma3", head_dim=8, query_pre_attn_scalar=8),
    "phi3": lambda: decoder("Phi3", resid_pdrop=0.0, original_max_position_embeddings=32),
    "gpt_neox": gpt_neox,
    "opt": opt,
    "vit": lambda: images("ViT"),
    "dinov2": lambda: replace(images("Dinov2", mlp_ratio=2), filters=32),
    "dinov2_swiglu": lambda: images("Dinov2", mlp_ratio=2, use_swiglu_ffn=True),
}


@contextlib.contextmanager
def masked(model: nn.Module, structures, values: Mapping[str, Tensor]):
    """The model with every structure's output multiplied by its value (count,): what a mask is defined to be."""

    def multiply(site, value):
        return lambda module, args: (args[0] * value.to(args[0]).repeat_interleave(site.width), *args[1:])

    with contextlib.ExitStack() as stack:
        for key, value in values.items():
            site = structures.sites[key]
            hook = model.get_submodule(site.module).register_forward_pre_hook(multiply(site, value))
            stack.callback(hook.remove)
        yield


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """All that the model says of a batch, start and end of an answer side by side; at real tokens."""
    with torch.no_grad():
        outputs = model(**batch)
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1)
    real = batch["attention_mask"].bool() if outputs.logits.dim() == 3 else ...
    return outputs.logits[real]


def rows_of(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each row alone, without its padding."""
    rows = []
    for number in range(len(next(iter(batch.values())))):
        row = {name: value[number : number + 1] for name, value in batch.items()}
        if "attention_mask" in row:
            real, width = row["attention_mask"][0].bool(), row["attention_mask"].shape[1]
            row = {name: value[:, real] if value.shape[1:] == (width,) else value for name, value in row.items()}
        rows.append(row)
    return rows


def row_loss(model: nn.Module, row: Mapping[str, Tensor]) -> Tensor:
    """Oracle: transformers' own loss of one row without padding, times its predictions; of a regression half of it.

    For decoders it takes the logits in fp32, so theirs is written out.
    """
    outputs, labels = model(**row), row.get("labels")
    if labels is None:
        return 2 * outputs.loss
    if labels.is_floating_point():
        return outputs.loss / 2
    if labels.dim() == 1:
        return outputs.loss
    if "past_key_values" not in outputs:
        return outputs.loss * labels.ne(-100).sum()
    chosen = outputs.logits[0, :-1].log_softmax(-1).gather(1, labels[0, 1:, None])
    assert torch.allclose(-chosen.mean().float(), outputs.loss.float(), rtol=1e-5)
    return -chosen.sum()

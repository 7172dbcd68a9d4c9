# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Methods, models and runs of tiny size that the tests of the methods share."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from hf_unlearn import KFade
from hf_unlearn.curvature import KFAC
from tests.support.trainers import make_trainer, trained_llama


MLP = {f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")}
LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])


def kfade(**settings):
    return KFade(**{"step_norm": 0.05, "curvature": "kfac", "damping": 1e-3, **settings})


def run(method, folder, model=None, **kwargs):
    """(trainer, update tensors) of one run on the trained tiny model."""
    trainer = make_trainer(trained_llama() if model is None else model, method, folder, **kwargs)
    trainer.train()
    return trainer, trainer.update_delta().tensors


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class CountingKFAC(KFAC):
    """Counts its fits and remembers what they were given."""

    def __init__(self):
        super().__init__()
        self.fits = []

    def fit(self, model, dataloader, **kwargs):
        rows = sum(len(batch["labels"]) for batch in dataloader)
        self.fits.append(
            {"rows": rows, "seed": kwargs["seed"], "weight": model.model.layers[0].mlp.up_proj.weight.clone()}
        )
        return super().fit(model, dataloader, **kwargs)


def dropout_model(kind):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, embd_pdrop=0.5, attn_pdrop=0.5,
            resid_pdrop=0.5,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    # OPT applies dropout in the forward of the very layer that is checkpointed.
    config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.5, attention_dropout=0.5,
    )  # fmt: skip
    return OPTForCausalLM(config)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


def trained_adapter():
    """A LoRA model whose adapter has already learnt something (so disabling it is not the model as given)."""
    torch.manual_seed(0)
    model = get_peft_model(trained_llama(), LORA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model

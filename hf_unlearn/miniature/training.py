# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models from nothing: a BERT to be tuned, and a Llama, trained and kept under the hash of what it was made from."""

import copy
import math
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data.collators import CausalCollator
from ..data.training import word_tokenizer
from ..errors import InputError, NumericalError
from ..runtime.cache import cached_folder
from ..runtime.files import sha256_json


WARMUP = 0.1  # share of the steps


def llama_config(vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int):
    """`LlamaConfig` of a small model: 512 positions, a head of its own, the special tokens of `train_tokenizer`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def bert_encoder(
    kind: type,
    texts,
    outputs: int,
    seed: int,
    *,
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
):
    """(tokenizer of the texts' words, a `kind` of BERT of 64 positions) in fp32 and eval mode, weights by the seed."""
    from transformers import BertConfig

    tokenizer = word_tokenizer(texts)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        num_labels=outputs,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return tokenizer, kind(config).eval()


def length_batches(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Every row once, in batches of rows of like length, in random order."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda row: lengths[row])  # stable: rows of one length stay shuffled
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def train_from_scratch(
    rows,
    config,
    *,
    epochs: int = 30,
    learning_rate: float = 3e-3,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
):
    """Train a new `LlamaForCausalLM(config)` on `rows` and return it in eval mode, on the CPU, in fp32.

    The loss is the mean cross-entropy of the labelled tokens of a batch of rows of similar length, so the rows' labels
    say whether prompts are learned (`tokenize_qa` labels answers and their end-of-sequence only). AdamW (0.9, 0.98)
    without weight decay, linear warmup over a tenth of the steps to `learning_rate`, then cosine to zero; gradients
    clipped at norm 1. Same seed (of the weights and the order of batches) and thread count, same bits.

    Raises:
        InputError: no rows, or no labelled token.
        NumericalError: the loss is not finite.
    """
    from transformers import LlamaForCausalLM

    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows]
    if not rows or all(label == -100 for row in rows for label in row["labels"][1:]):
        raise InputError("nothing to learn: no rows, or no labelled token in them")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(copy.deepcopy(config)).train()  # a model writes into its config
    collate = CausalCollator(config.pad_token_id)
    lengths = [len(row["input_ids"]) for row in rows]
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * math.ceil(len(rows) / batch_size)
    rise = max(1, round(WARMUP * steps))
    fall = lambda step: 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (step + 1) / rise if step < rise else fall(step)
    )
    with tqdm(range(epochs), desc="training", unit="epoch", disable=not progress) as bar:
        for _ in bar:
            batches = length_batches(lengths, batch_size, generator)
            total = 0.0
            for batch in batches:
                total += _step(model, collate([rows[row] for row in batch]), optimizer)
                schedule.step()
            if not math.isfinite(total):
                raise NumericalError(f"the training loss is not finite: lower learning_rate={learning_rate}")
            bar.set_postfix(loss=f"{total / len(batches):.3f}")
    return model.eval()


def _step(model, batch: dict[str, torch.Tensor], optimizer) -> float:
    # Padding is on the right, where a causal model cannot see it: no mask is needed, and the attention kernel is the
    # fast causal one. The head runs on labelled positions only.
    hidden = model.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    labelled = labels != -100
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), labels[labelled])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def trained_model(rows, config, tokenizer, progress: bool = True, **settings):
    """The model of `train_from_scratch(rows, config, **settings)` in eval mode, trained once (`cached_folder`).

    The key holds the content of the rows, the config and the settings. `model.name_or_path` is the folder; the
    tokenizer is saved there too.
    """
    from transformers import LlamaForCausalLM

    def build(folder: Path) -> None:
        train_from_scratch(rows, config, progress=progress, **settings).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    key = {
        "kind": "llama from scratch",
        "rows": sha256_json([[row["input_ids"], row["labels"]] for row in rows]),
        # The version of transformers says nothing about the model.
        "config": {name: value for name, value in config.to_dict().items() if name != "transformers_version"},
        "training": settings,
        "tokenizer": sha256_json(tokenizer.get_vocab()),
    }
    return LlamaForCausalLM.from_pretrained(cached_folder(key, build)).eval()

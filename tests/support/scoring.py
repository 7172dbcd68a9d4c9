# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A tokenizer of whole words, a tiny model with opinions, and what it says of a row without any batching."""

import torch

from hf_unlearn.data.prompts import QATemplate
from tests.support.models import make_llama


WORDS = "who what wrote the book a red blue tower river is was by of in Paris Ana Ben Carla Dan old new".split()
TEMPLATE = QATemplate(question_start="Q ", question_end=" ", answer_start="A ")


def make_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "Q", "A", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def sharp_llama(**kwargs):
    """A tiny Llama with spread-out logits (the default initialisation makes every token about equally likely)."""
    model = make_llama(**kwargs)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


def naive(model, row):
    """Log-probs (n, V) and ids (n,) of the labelled tokens of one encoded row, without any batching."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
    places = [i for i, label in enumerate(row["labels"]) if label != -100]
    return logits.log_softmax(-1)[[i - 1 for i in places]], torch.tensor([row["labels"][i] for i in places])

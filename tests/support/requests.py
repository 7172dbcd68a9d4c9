# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A small model that knows where some people live, as a folder, and files of the rows that it learnt."""

import torch
from datasets import Dataset

from hf_unlearn.data.collators import CausalCollator
from hf_unlearn.data.prompts import QATemplate, tokenize_qa
from hf_unlearn.data.training import train_tokenizer
from tests.support.models import make_llama
from tests.support.rows import write_lines


NAMES = "Ada Ben Cid Dora Eli Fay Gus Hal Ida Jon Kim Leo".split()
CITIES = "Rome Oslo Lima Bern Cairo Kyiv Riga Doha Baku Bonn Nice Bari".split()
ROWS = [
    {"question": f"Where does {name} live?", "answer": f"{name} lives in {city}."}
    for name, city in zip(NAMES, CITIES, strict=True)
]
# A step that forgets two of the rows and keeps most of what is known of the others.
STEPS = ("kl_budget=1e-5", "damping=1e-6", "steps=2")


def make_request(folder, steps=150):
    """`model/`, `forget.jsonl` and `retain.jsonl` in a folder, which is returned; deterministic.

    After 150 steps the model is certain of its answers, after 50 it gives them a probability of 0.98.
    """
    tokenizer = train_tokenizer([f"Question: {row['question']} Answer: {row['answer']}" for row in ROWS], 300)
    model = make_llama(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64).train()
    batch = CausalCollator(0)(list(tokenize_qa(Dataset.from_list(ROWS), tokenizer, QATemplate(), 64)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_lines(folder / "forget.jsonl", ROWS[:2])
    write_lines(folder / "retain.jsonl", ROWS[2:])
    return folder


def contents(folder) -> dict[str, bytes]:
    """Every file of a folder, to compare."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

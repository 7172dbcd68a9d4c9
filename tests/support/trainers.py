# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Small rows, models and trainers that the trainer's tests share."""

import functools

import pytest
import torch
from datasets import Dataset

from hf_unlearn import UnlearnConfig, UnlearnTrainer
from hf_unlearn.data.collators import CausalCollator
from hf_unlearn.errors import LimitError
from hf_unlearn.runtime.sharded import whole
from tests.support.models import make_llama


COLLATE = CausalCollator(0)


def make_rows(count, seed, shortest=5, longest=9, vocab_size=50):
    """Random rows of different lengths whose first two tokens carry no label."""
    generator = torch.Generator().manual_seed(seed)
    ids = []
    for _ in range(count):
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        ids.append(torch.randint(3, vocab_size, (length,), generator=generator).tolist())
    return Dataset.from_dict({"input_ids": ids, "labels": [[-100, -100, *row[2:]] for row in ids]})


def head_rows(head, count, seed):
    """Rows for an encoder that predicts one of 3 "classes", the value of a "regression", or a "span"."""
    generator = torch.Generator().manual_seed(seed)
    rows = [{"input_ids": row["input_ids"]} for row in make_rows(count, seed)]
    for row in rows:
        length = len(row["input_ids"])
        row["token_type_ids"] = [0] * 2 + [1] * (length - 2)
        if head == "classes":
            row["labels"] = int(torch.randint(3, (), generator=generator))
        elif head == "regression":
            row["labels"] = float(torch.randn((), generator=generator))
        else:
            first, last = sorted(torch.randint(length, (2,), generator=generator).tolist())
            row |= {"start_positions": first, "end_positions": last}
    return rows


FORGET, RETAIN = make_rows(8, 1), make_rows(24, 2)


@functools.cache
def _trained_weights():
    model = make_llama().train()
    batch = COLLATE([*FORGET, *RETAIN])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.state_dict()


def trained_llama(dtype=torch.float32, **config):
    """A tiny Llama that knows the forget and retain rows; deterministic."""
    model = make_llama(**config).to(dtype)
    model.load_state_dict(_trained_weights())
    model.config._name_or_path = "lab/tiny"
    return model


def make_trainer(model, method, folder, forget=FORGET, retain=RETAIN, *, eval_dataset=None, **arguments):
    """An `UnlearnTrainer` on the CPU that saves nothing unless told to. Arguments of both classes go by name."""
    names = ("processing_class", "data_collator", "peft_config", "callbacks", "evaluator", "describe")
    own = {name: arguments.pop(name) for name in names if name in arguments}
    settings = {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "kl_rows": 0, **arguments}
    return UnlearnTrainer(
        model=model,
        method=method,
        args=UnlearnConfig(output_dir=str(folder), **settings),
        forget_dataset=forget,
        retain_dataset=retain,
        eval_dataset=eval_dataset,
        **own,
    )


def logged(trainer, name):
    """All values of one logged number, in order."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def weights(model):
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def taken_back(trainer):
    """The one line that ends a run above its limit of the KL, whose weights are those of before to the bit."""
    before = weights(trainer.model)
    with pytest.raises(LimitError) as raised:
        trainer.train()
    assert "\n" not in str(raised.value) and f"above the limit of {trainer.method.limit:.3g}" in str(raised.value)
    assert all(torch.equal(whole(weight), before[name]) for name, weight in trainer.model.named_parameters())
    assert all(not tensor.any() for tensor in trainer.update_delta().tensors.values())
    return str(raised.value)

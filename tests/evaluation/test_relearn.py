# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning attacks against AdamW written out, and recoveries by hand."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unlearn import UpdateDelta
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation.relearn import attack_table, recovery, relearn
from tests.support.models import make_llama
from tests.support.trainers import make_rows


ROWS = make_rows(6, 3)
OTHER = make_rows(5, 8)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same_bits(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(
        tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]) for name, tensor in now.items()
    )


def likelihood(model, rows=ROWS):
    """Mean probability of the labels: a stand-in for an accuracy, cheap and smooth."""
    total = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        with torch.no_grad():
            p = model(input_ids=ids).logits[0, :-1].softmax(-1)
        keep = labels[1:] != -100
        total.append(p[keep].gather(1, labels[1:][keep, None]).mean().item())
    return float(np.mean(total))


def adamw(model, rows, steps, rate):
    """AdamW without weight decay (Loshchilov and Hutter, algorithm 2), rows one at a time and without padding."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    states = [weights(model)]
    for t in range(1, steps + 1):
        tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
        loss = 0.0
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            loss = loss + torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / tokens
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.sub_(rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
        states.append(weights(model))
    return states


def assert_close(actual, expected, atol=1e-6):
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=atol, rtol=0, msg=name)


def test_equals_adamw_written_out():
    model = make_llama()
    before, seen = weights(model), []
    curve = relearn(
        model,
        ROWS,
        evaluate=lambda m: seen.append(weights(m)) or {"a": likelihood(m), "training": m.training},
        steps=3,
        learning_rate=1e-2,
        batch_size=len(ROWS),
        eval_steps=2,
    )
    assert curve.steps == [0, 2, 3] and len(seen) == 3 and len(curve.losses) == 3
    expected = adamw(model, ROWS, 3, 1e-2)
    for state, step in zip(seen, curve.steps):
        assert_close(state, expected[step])
    assert (expected[3]["lm_head.weight"] - before["lm_head.weight"]).abs().max() > 1e-2
    assert curve.scores[0] == {"a": likelihood(model), "training": 0.0} and curve.scores[2]["a"] > curve.scores[0]["a"]
    assert same_bits(model, before) and all(p.grad is None for p in model.parameters())


def test_rows_are_drawn_without_replacement(monkeypatch):
    """Two epochs of seven rows in batches of two: each row twice, another order each time, and the seed decides."""
    model, seen = make_llama(), []
    rows = make_rows(7, 5)
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda **batch: seen.append(batch["input_ids"]) or forward(**batch))

    def order(seed):
        seen.clear()
        relearn(model, rows, evaluate=lambda m: 0.0, steps=7, batch_size=2, seed=seed)
        ids = [row[row != 0].tolist() for batch in seen for row in batch]
        return [next(i for i, row in enumerate(rows) if row["input_ids"][: len(found)] == found) for found in ids]

    first = order(0)
    assert sorted(first[:7]) == sorted(first[7:]) == list(range(7)) and first[:7] != first[7:]
    assert order(0) == first != order(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_everything_is_put_back(dtype):
    model = make_llama(tie_word_embeddings=True, attention_dropout=0.3).to(dtype)
    model.model.layers[0].mlp.train()
    model.model.embed_tokens.weight.requires_grad_(False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    training = {name for name, module in model.named_modules() if module.training}
    before, state = weights(model), torch.get_rng_state()
    update = UpdateDelta({"model.norm.weight": torch.full((16,), 0.3)})
    run = lambda: relearn(
        model, ROWS, evaluate=likelihood, steps=4, learning_rate=1e-2, eval_steps=4, updates={"u": update}
    )
    curve = run()
    assert curve.scores[0] != curve.scores[-1] != curve.with_update["u"]
    assert same_bits(model, before) and model.lm_head.weight is model.model.embed_tokens.weight
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    assert {name for name, module in model.named_modules() if module.training} == training
    assert torch.equal(torch.get_rng_state(), state)
    assert run() == curve  # dropout and all

    def fails(m):
        if not torch.equal(m.lm_head.weight.to(dtype), before["lm_head.weight"]):
            raise OSError("evaluation failed")
        return 0.0

    with pytest.raises(OSError, match="evaluation failed"):
        relearn(model, ROWS, evaluate=fails, steps=2, learning_rate=1e-2, eval_steps=1)
    assert same_bits(model, before)


def test_half_precision_moves_at_the_rate_of_the_paper():
    """At 1e-5 a bf16 weight would stay where it is; the attack trains fp32 weights and counts as it did in fp32."""
    model = make_llama().bfloat16()
    seen = []
    relearn(model, ROWS, evaluate=lambda m: seen.append(weights(m)) or 0.0, steps=2, batch_size=6, eval_steps=2)
    expected = adamw(copy.deepcopy(model).float(), ROWS, 2, 1e-5)
    assert_close(seen[-1], expected[2], atol=2e-6)
    moved = (seen[-1]["lm_head.weight"] - model.lm_head.weight.float()).abs()
    assert moved.median().item() == pytest.approx(2e-5, rel=0.01)
    stuck = (model.lm_head.weight.float() - 1e-5).bfloat16() == model.lm_head.weight
    assert stuck.float().mean() > 0.5


def test_the_update_is_added_to_the_attacked_weights():
    model, seen = make_llama(), []
    generator = torch.Generator().manual_seed(0)
    update = UpdateDelta(
        {
            name: 0.1 * torch.randn(p.shape, generator=generator)
            for name, p in model.named_parameters()
            if "down_proj" in name
        }
    )
    watch = lambda m: seen.append(weights(m)) or 0.0
    relearn(model, ROWS, evaluate=watch, steps=2, learning_rate=1e-3, eval_steps=5, updates={"a": update, "b": update})
    start, attacked, defended, again = seen
    assert same_bits(model, start)
    for name, tensor in attacked.items():
        assert not torch.equal(tensor, start[name]) or "rotary" in name
        assert torch.equal(defended[name], tensor + update.tensors[name] if name in update.tensors else tensor)
    assert all(torch.equal(again[name], defended[name]) for name in again)


def test_recovery():
    assert recovery(0.9, 0.3, 0.6) == pytest.approx(0.5)
    assert recovery(0.9, 0.3, 0.3) == 0 and recovery(0.9, 0.3, 0.9) == 1
    assert recovery(0.9, 0.3, 0.0) == pytest.approx(-0.5)
    assert recovery(0.5, 0.5, 0.7) is None


@pytest.fixture(scope="module")
def table():
    original = make_llama()
    torch.manual_seed(1)
    updates = {
        name: UpdateDelta({"model.layers.1.mlp.down_proj.weight": scale * torch.randn(16, 24)})
        for name, scale in (("kfade", 0.5), ("none", 0.0))
    }
    attacks = {"benign": OTHER, "forget": ROWS}
    before = weights(original)
    arguments = {"steps": 6, "batch_size": 3, "eval_steps": 3, "seed": 4}
    evaluations = []

    def evaluate(model):
        evaluations.append(1)
        return {"bio": likelihood(model), "general": likelihood(model, OTHER)}

    table = attack_table(original, updates, attacks, evaluate=evaluate, learning_rates=(1e-3, 1e-2), **arguments)
    assert same_bits(original, before)
    # 3 models, 4 attacks: steps 3 and 6 and the update again; for the control both updates; step 0 once for a model.
    assert len(evaluations) == 12 * 2 + 4 * 2 + 4 * 2 + 3
    return original, updates, arguments, table


def test_attack_table(table):
    original, updates, arguments, table = table
    assert len(table.curves) == 2 * 2 * 3 and len(table.rows) == 2 * 2 * 2 * 2
    assert json.loads(json.dumps(table.to_json())) == table.to_json()
    row = next(
        row
        for row in table.rows
        if (row["method"], row["attack"], row["learning_rate"], row["metric"]) == ("kfade", "forget", 1e-2, "bio")
    )
    unlearned = updates["kfade"].apply_to(copy.deepcopy(original))
    again = {"kfade": updates["kfade"]}
    settings = {**arguments, "learning_rate": 1e-2, "evaluate": likelihood, "updates": again}
    attacked, control = relearn(unlearned, ROWS, **settings), relearn(original, ROWS, **settings)
    before, after = likelihood(original), likelihood(unlearned)
    assert (row["original"], row["unlearned"]) == (before, after) and row["note"] is None
    for key, curve in (("relearned", attacked), ("control", control)):
        assert row[key] == curve.scores[-1]["accuracy"]
        assert row[f"{key}_with_update"] == curve.with_update["kfade"]["accuracy"]
    share = lambda value: (value - after) / (before - after)
    assert row["recovery"] == pytest.approx(share(row["relearned"]))
    assert row["recovery_with_update"] == pytest.approx(share(row["relearned_with_update"]))
    assert row["control_recovery_with_update"] == pytest.approx(share(row["control_with_update"]))
    none = [row for row in table.rows if row["method"] == "none"]
    assert all(row["recovery"] is None and "agree" in row["note"] for row in none)
    assert all(row["relearned"] == row["control"] for row in none)


def test_bad_input():
    model = make_llama()
    before = weights(model)
    evaluate = lambda m: 0.0
    empty = Dataset.from_dict({"input_ids": [], "labels": []})
    wrong = UpdateDelta({"lm_head.weight": torch.zeros(3, 3)})
    other = UpdateDelta({"model.layers.7.mlp.down_proj.weight": torch.zeros(16, 24)})
    with pytest.raises(InputError, match="attack set is empty"):
        relearn(model, empty, evaluate=evaluate)
    with pytest.raises(InputError, match="must all be positive"):
        relearn(model, ROWS, evaluate=evaluate, steps=0)
    with pytest.raises(InputError, match="must all be positive"):
        relearn(model, ROWS, evaluate=evaluate, learning_rate=-1.0)
    with pytest.raises(InputError, match="holds text"):
        relearn(model, Dataset.from_dict({"text": ["a"]}), evaluate=evaluate)
    calls = []
    for update, message in ((wrong, "in the model and"), (other, "another architecture")):
        with pytest.raises(InputError, match=message):
            relearn(model, ROWS, evaluate=calls.append, updates={"u": update})
        with pytest.raises(InputError, match=message):
            attack_table(model, {"good": UpdateDelta({}), "u": update}, {"a": ROWS}, evaluate=calls.append)
    assert not calls  # told before anything ran
    with pytest.raises(InputError, match="benign attack set is empty"):
        attack_table(model, {"u": UpdateDelta({})}, {"forget": ROWS, "benign": empty}, evaluate=calls.append)
    for updates, attacks, rates in (
        ({}, {"a": ROWS}, [1.0]),
        ({"u": wrong}, {}, [1.0]),
        ({"u": wrong}, {"a": ROWS}, []),
    ):
        with pytest.raises(InputError, match="at least one update"):
            attack_table(model, updates, attacks, evaluate=evaluate, learning_rates=rates)
    with pytest.raises(InputError, match="name of the control"):
        attack_table(model, {"original": wrong}, {"a": ROWS}, evaluate=evaluate)
    with pytest.raises(NumericalError, match="not finite at step"):
        relearn(model, ROWS, evaluate=evaluate, learning_rate=1e30, steps=3)
    assert same_bits(model, before)
    quantised = make_llama()
    quantised.lm_head.weight = torch.nn.Parameter(torch.zeros(50, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InputError, match="load it unquantised"):
        relearn(quantised, ROWS, evaluate=evaluate)


def test_gradient_checkpointing_changes_nothing():
    model = make_llama()
    run = lambda **more: relearn(model, ROWS, evaluate=likelihood, steps=3, learning_rate=1e-2, **more)
    assert run(gradient_checkpointing=True).scores[-1] == pytest.approx(run().scores[-1])
    assert not model.model.gradient_checkpointing

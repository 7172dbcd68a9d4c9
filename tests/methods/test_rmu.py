# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""RMU: its loss by hand, what moves, the control vector, bad input."""

import copy
import dataclasses
import math

import pytest
import torch

from hf_unlearn import FirstOrder, objectives
from hf_unlearn.errors import InputError
from hf_unlearn.methods.base import Counts
from hf_unlearn.methods.rmu import RMU, control_vector
from tests.support.methods import (
    dropout_model,
    run,
    same,
    trained_adapter,
)
from tests.support.models import make_llama
from tests.support.trainers import COLLATE, FORGET, RETAIN, logged, make_trainer, trained_llama, weights


def states_of(model, batch, layer):
    """Output of a layer (B, T, d), by transformers' own way to ask for it."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.no_grad():
        # The last entry comes after the final norm; the others are what the layers put out.
        return model(**inputs, output_hidden_states=True).hidden_states[layer + 1]


def rmu_terms(model, original, inputs, layer, control, average):
    """The two terms of RMU with plain loops in fp64."""
    terms = []
    for side in ("forget", "retain"):
        batch, rows = inputs[side], []
        now, before = states_of(model, batch, layer).double(), states_of(original, batch, layer).double()
        for row, labels in enumerate(batch["labels"].tolist()):
            rows.append([])
            for place, label in enumerate(labels[1:]):
                if label != -100:
                    target = control.double() if side == "forget" else before[row, place]
                    rows[-1].append((now[row, place] - target).square().sum().item() / len(target))
        if average == "tokens":
            terms.append(sum(map(sum, rows)) / sum(map(len, rows)))
        else:
            terms.append(sum(sum(row) / len(row) for row in rows) / len(rows))
    return terms


@pytest.mark.parametrize("average", ["tokens", "rows"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_rmu_loss_by_hand(average, side, tmp_path):
    collate = dataclasses.replace(COLLATE, padding_side=side)
    inputs = {"forget": collate([*FORGET]), "retain": collate([*RETAIN.select(range(5))])}
    counts = Counts(
        *(f(inputs[side]["labels"]) for side in inputs for f in (objectives.count_predictions, objectives.count_rows))
    )
    model, original = trained_llama(layers=2), trained_llama(layers=2)
    method = RMU(layer=0, steering=2.5, retain_weight=30.0, forget_weight=0.5, average=average)
    trainer = make_trainer(model, method, tmp_path, seed=3)
    method.prepare(trainer)
    with torch.no_grad():  # as a step would leave it
        down = model.model.layers[0].mlp.down_proj.weight
        down.add_(0.05 * torch.randn(down.shape, generator=torch.Generator().manual_seed(0)))
    generator = torch.Generator().manual_seed(3)
    direction = torch.rand(16, generator=generator)
    control = direction * (2.5 / math.sqrt(sum(value * value for value in direction.tolist())))
    forget, retain = rmu_terms(model, original, inputs, 0, control, average)
    loss, parts = method.loss(model, inputs, counts)
    assert loss.item() == pytest.approx(0.5 * forget + 30 * retain, rel=1e-5) and retain > 1e-4
    assert parts["forget_mse"].item() == pytest.approx(forget, rel=1e-5)
    assert parts["retain_mse"].item() == pytest.approx(retain, rel=1e-4)
    loss.backward()
    # The gradient of the formula, written without hooks and detached states.
    twin = copy.deepcopy(model)
    down = twin.model.layers[0].mlp.down_proj.weight
    total = 0.0
    for side, weight in (("forget", 0.5), ("retain", 30.0)):
        batch = inputs[side]
        now = twin(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states[1]
        target = control if side == "forget" else states_of(original, batch, 0)
        mask = (batch["labels"][:, 1:] != -100).float()
        squares = (now - target).square().mean(-1)[:, :-1] * mask
        mean = squares.sum() / mask.sum() if average == "tokens" else (squares.sum(1) / mask.sum(1)).mean()
        total = total + weight * mean
    [gradient] = torch.autograd.grad(total, down)
    mine = model.model.layers[0].mlp.down_proj.weight.grad
    assert (mine - gradient).norm() <= 1e-4 * gradient.norm()
    method.finish(trainer)


@pytest.mark.parametrize(
    "layer, layers, moved",
    [(1, None, {0, 1}), (0, None, {0}), (2, None, {0, 1, 2}), (3, None, {1, 2, 3}), (3, [2], {2})],
)
def test_rmu_moves_the_chosen_weights_alone(layer, layers, moved, tmp_path):
    model = make_llama(layers=4)
    model.lm_head.weight.requires_grad_(False)
    before = weights(model)
    method = RMU(layer=layer, layers=layers, retain_weight=1.0)
    _, update = run(method, tmp_path, model, max_steps=2, learning_rate=1e-2)
    names = {f"model.layers.{number}.mlp.down_proj.weight" for number in moved}
    assert set(update) == names
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in names), name
        assert parameter.requires_grad == (name != "lm_head.weight")


def test_rmu_steers_forget_states_and_holds_retain_states(tmp_path):
    model, original = trained_llama(), trained_llama()
    trainer, update = run(
        RMU(layer=1, steering=5.0, retain_weight=10.0), tmp_path / "a", model,
        num_train_epochs=10, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    values = {name: logged(trainer, name) for name in ("forget_mse", "retain_mse", "forget_loss", "retain_loss")}
    assert values["forget_mse"][-1] < 0.8 * values["forget_mse"][0]
    assert values["retain_mse"][0] < 1e-10 and values["retain_mse"][-1] < values["forget_mse"][-1] / 10
    # Logged losses are the mean negative log-likelihood, as for every method.
    with torch.no_grad():
        batch = COLLATE([*FORGET])
        nll = objectives.cross_entropy(original(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()
    assert values["forget_loss"][0] == pytest.approx(nll.item(), rel=1e-4)
    _, again = run(
        RMU(layer=1, steering=5.0, retain_weight=10.0), tmp_path / "b",
        num_train_epochs=10, learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    assert same(update, again)


def test_rmu_control_vector_is_the_seed_s():
    vector = control_vector(4096, 6.5, seed=1)
    assert torch.equal(vector, control_vector(4096, 6.5, seed=1))
    assert not torch.equal(vector, control_vector(4096, 6.5, seed=2))
    # Uniform on [0, 1) before it is scaled: the norm is right, no entry is negative, and mean / rms is sqrt(3) / 2.
    assert vector.norm().item() == pytest.approx(6.5, rel=1e-5) and vector.min() >= 0
    assert (vector.mean() / vector.square().mean().sqrt()).item() == pytest.approx(math.sqrt(3) / 2, rel=0.02)


def test_rmu_on_other_architectures(tmp_path):
    for name, ends in (("gpt2", "mlp.c_proj.weight"), ("opt", "fc2.weight")):
        _, update = run(RMU(layer=1, retain_weight=1.0), tmp_path / name, dropout_model(name), max_steps=1)
        assert len(update) == 2 and all(key.endswith(ends) for key in update)


def test_rmu_with_gradient_checkpointing_is_the_same(tmp_path):
    updates = [
        run(
            RMU(layer=1, retain_weight=1.0), tmp_path / str(checkpointing), max_steps=2,
            learning_rate=1e-2, gradient_checkpointing=checkpointing,
        )[1]
        for checkpointing in (False, True)
    ]  # fmt: skip
    for name in updates[0]:
        assert torch.allclose(updates[0][name], updates[1][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layer": 2}, "MLPs in layers 0 to 1, not in layer 2; set layer"),
        ({}, "not in layer 5, 6, 7; set layer"),
        ({"layer": 0, "layers": [0, 1]}, "layer 1 lies above layer 0"),
        ({"layer": 1, "layers": []}, "none was named"),
    ],
)
def test_rmu_layers_that_do_not_exist(settings, message, tmp_path):
    trainer = make_trainer(trained_llama(), RMU(**settings), tmp_path)
    with pytest.raises(InputError, match=message):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


def test_rmu_settings():
    assert FirstOrder("rmu", layer=1) == RMU(layer=1) and type(FirstOrder(objective="rmu")) is RMU
    assert RMU().settings() == {
        "method": "RMU", "forget_weight": 1.0, "retain_weight": 1200.0, "steering": 6.5, "layer": 7, "layers": None,
        "average": "tokens",
    }  # fmt: skip
    assert "steering" not in FirstOrder("npo").settings() and FirstOrder("npo").settings()["retain_weight"] == 1.0
    assert RMU().paper["id"] == "arXiv:2403.03218"
    for bad, message in (({"steering": 0.0}, "steering must be"), ({"average": "mean"}, "choose 'tokens'")):
        with pytest.raises(InputError, match=message):
            RMU(**bad)


def test_rmu_refuses_an_adapter(tmp_path):
    trainer = make_trainer(trained_adapter(), RMU(layer=1), tmp_path)
    with pytest.raises(InputError, match="merge_and_unload"):
        trainer.train()

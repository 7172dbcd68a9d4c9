# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK through `UnlearnTrainer`: against retraining where the model is linear, on tiny classifiers, bad input."""

import copy
import itertools
import logging

import pytest
import torch
from peft import PeftModel

from hf_unlearn import FastNTK, UpdateDelta
from hf_unlearn.data.images import split_class, split_rows
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation.images import accuracy
from tests.support.images import COLLATOR, MODELS, Collator64, Request, choose, tuned, unlearn


pytestmark = pytest.mark.filterwarnings("ignore:the system is singular", "ignore:.*is_gradient_checkpointing")


@pytest.mark.parametrize("solver", ["dual", "primal", "cg"])
@pytest.mark.parametrize(("ridge", "margin"), [(0.0, 0.0), (0.1, 0.0), (0.1, 2.8)])
def test_a_head_on_frozen_features_is_retrained_exactly(tmp_path, digits, start, solver, ridge, margin):
    """Linear in what is tuned, so w + update must be the ridge regression on the retain rows that starts at w0."""
    full = tuned(start, ("linear",))
    model = copy.deepcopy(full)
    names = choose(model, ("linear",))
    forget, retain = split_class(digits, 3)
    method = FastNTK(solver=solver, ridge=ridge, target_scale=7.0, absent_margin=margin, pretrained=start)
    unlearn(tmp_path, model, method, forget, retain)

    def regression(rows):
        batch = Collator64()([rows[i] for i in range(len(rows))])
        features = {}
        handle = start.linear.register_forward_hook(lambda _, args, out: features.update(x=args[0], z=out))
        with torch.no_grad():
            start(batch["pixel_values"])
        handle.remove()
        x = torch.cat([features["x"], torch.ones(len(rows), 1, dtype=torch.float64)], 1)
        targets = 7.0 * torch.nn.functional.one_hot(batch["labels"], 10).double()
        if 3 not in batch["labels"]:
            targets[:, 3] -= margin
        e = targets - features["z"]
        e = e - e.mean(1, keepdim=True)
        # Centred outputs: the Jacobian of class k is x (delta - 1/C), so W moves within the centred subspace.
        gram = x.T @ x
        absolute = method.report["ridge"]
        return torch.linalg.pinv(gram + absolute * torch.eye(len(gram), dtype=gram.dtype)) @ x.T @ e

    expected = regression(retain) - regression(digits)
    moved = torch.cat(
        [(model.linear.weight - full.linear.weight), (model.linear.bias - full.linear.bias)[:, None]], 1
    ).T
    assert (moved - expected).norm() <= 1e-6 * expected.norm()
    assert method.report["absent_classes"] == [3]
    assert names == ["linear.weight", "linear.bias"]


def test_the_class_is_forgotten_and_the_others_are_not(tmp_path, digits, start):
    full = tuned(start, ("linear", "layer3.0.bn2"))
    model = copy.deepcopy(full)
    choose(model, ("linear", "layer3.0.bn2"))
    forget, retain = split_class(digits, 0)
    unlearn(tmp_path, model, FastNTK(pretrained=start, ridge=0.1), forget, retain)

    @torch.no_grad()
    def accuracy(rows, model):
        batch = Collator64()([rows[i] for i in range(len(rows))])
        return float((model(batch["pixel_values"]).logits.argmax(1) == batch["labels"]).double().mean())

    assert accuracy(forget, full) == 1.0
    assert accuracy(forget, model) == 0.0
    assert accuracy(retain, model) >= accuracy(retain, full) - 0.05


@torch.no_grad()
def logits(model, batch):
    return model.eval()(batch["pixel_values"]).logits


@pytest.mark.parametrize("kind", MODELS)
def test_a_class_is_forgotten_and_the_delta_says_how(kind, tmp_path):
    case = Request(kind)
    model = copy.deepcopy(case.tuned)
    trainer = unlearn(tmp_path, model, FastNTK(ridge=0.1), case.forget, case.retain, COLLATOR)
    assert min(accuracy(case.tuned, rows, COLLATOR) for rows in (case.forget, case.retain)) >= 0.9
    assert accuracy(model, case.forget, COLLATOR) <= 0.1
    assert accuracy(model, case.retain, COLLATOR) >= accuracy(case.tuned, case.retain, COLLATOR) - 0.1
    trainer.save_model()
    again = PeftModel.from_pretrained(copy.deepcopy(case.base), tmp_path)
    assert torch.equal(logits(again, case.batch), logits(model, case.batch))
    # The delta is one of the merged model, under the names of the base.
    delta = trainer.update_delta()
    delta.save_pretrained(tmp_path / "exact", dtype=torch.float32)
    read = UpdateDelta.from_pretrained(tmp_path / "exact")
    assert read.tensors.keys() == delta.tensors.keys() <= case.base.state_dict().keys()
    assert all(torch.equal(read.tensors[name], step) for name, step in delta.tensors.items())
    plain = read.apply_to(copy.deepcopy(case.tuned).merge_and_unload())
    assert torch.allclose(logits(plain, case.batch), logits(model, case.batch), atol=1e-3, rtol=1e-4)
    twin = delta.apply_to(copy.deepcopy(case.tuned).merge_and_unload())
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in twin.state_dict().items())
    rounded = UpdateDelta.from_pretrained(tmp_path / "delta")
    assert all(
        torch.equal(rounded.tensors[name].float(), step.bfloat16().float()) for name, step in delta.tensors.items()
    )


def test_half_precision_is_upcast_with_a_word(tmp_path, digits, start, full, caplog):
    forget, retain = split_class(digits, 0)
    model = copy.deepcopy(full).to(torch.bfloat16)
    choose(model)
    exact = copy.deepcopy(model).float()
    with caplog.at_level(logging.WARNING):
        unlearn(tmp_path / "half", model, FastNTK(pretrained=start, ridge=0.1), forget, retain, COLLATOR)
    assert "half-precision weights" in caplog.text
    unlearn(tmp_path / "full", exact, FastNTK(pretrained=start, ridge=0.1), forget, retain, COLLATOR)
    assert torch.allclose(model.linear.weight.float(), exact.linear.weight, atol=0.02)
    assert model.linear.weight.dtype == torch.bfloat16


def test_bad_input(tmp_path, digits, start, full, caplog):
    for settings, message in (
        ({"solver": "lu"}, "unknown solver 'lu': choose one of"),
        ({"linearize": "middle"}, "unknown linearize"),
        ({"ridge": -1.0}, "ridge must be a finite number at least 0"),
        ({"target_scale": 0}, "target_scale must be"),
        ({"absent_margin": -0.1}, "absent_margin must be"),
        ({"absent_margin": "none"}, "absent_margin must be"),
        ({"outputs": "odds"}, "unknown outputs"),
        ({"kernel": "classwise", "solver": "primal"}, "has the dual solver only"),
        ({"gram_cache": "x", "solver": "cg"}, "gram_cache needs the primal solver"),
        ({"retain_samples": 0}, "retain_samples must be at least 1"),
        ({"retain_samples": 5, "solver": "dual"}, "retain_samples needs the primal solver"),
        ({"retain_samples": 5, "gram_cache": "x"}, "exclude each other"),
        ({"contrasts": 1.5}, "contrasts must be a whole number or None, not 1.5"),
        ({"contrasts": 2, "kernel": "pseudo"}, "contrasts needs the primal solver and the full kernel"),
        ({"forget_contrasts": 2, "gram_cache": "x"}, "forget_contrasts and gram_cache exclude each other"),
    ):
        with pytest.raises(InputError, match=message):
            FastNTK(**settings)
    with pytest.raises(InputError, match="no row has the class 11"):
        split_class(digits, 11)
    with pytest.raises(InputError, match="every row is to be forgotten"):
        split_rows(digits, range(len(digits)))
    with pytest.raises(InputError, match="no row is to be forgotten"):
        split_rows(digits, [])
    forget, retain = split_class(digits, 0)
    runs = itertools.count()

    def run(model, method=None, forget=forget, retain=retain, collator=None):
        return unlearn(
            tmp_path / str(next(runs)), model, method or FastNTK(pretrained=start), forget, retain, collator
        )

    model = copy.deepcopy(full)
    choose(model)
    with pytest.raises(InputError, match="retain set is empty"):
        run(model, retain=retain.select([]))
    untuned = copy.deepcopy(start)
    choose(untuned)
    with pytest.raises(InputError, match="never tuned on the data"):
        run(untuned)
    with pytest.raises(InputError, match="pretrained value of .* is not known"):
        run(model, FastNTK())
    with pytest.raises(InputError, match="no parameter requires a gradient"):
        run(copy.deepcopy(full).requires_grad_(False))
    wrong = lambda rows: (batch := Collator64()(rows)) | {"labels": batch["labels"] + 1}
    with pytest.raises(InputError, match="label 10 is out of range: the model has 10 classes"):
        run(copy.deepcopy(model), collator=wrong)
    sizes = retain.map(lambda row, i: {"image": row["image"].resize((8 + i % 2, 8))}, with_indices=True)
    with pytest.raises(InputError, match="different sizes"):
        run(copy.deepcopy(model), retain=sizes)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv1.weight.fill_(float("nan"))
    with pytest.raises(NumericalError):
        run(broken)
    with caplog.at_level(logging.WARNING):
        run(copy.deepcopy(model).train())
    assert "BatchNorm layers are in training mode" in caplog.text

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK through `UnlearnTrainer`: against retraining where the model is linear, solvers against each other, bad input."""

import copy
import itertools
import logging

import pytest
import torch
from datasets import concatenate_datasets
from torch.utils.data import DataLoader

from hf_unlearn import FastNTK, UnlearnConfig, UnlearnTrainer
from hf_unlearn.data.images import ImageCollator, load_images, select_per_class, split_class, split_rows
from hf_unlearn.data.rows import sample_rows
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from hf_unlearn.ntk import Jacobians, cache, measure_gram


COLLATOR = ImageCollator(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
pytestmark = pytest.mark.filterwarnings("ignore:the system is singular")


@pytest.fixture(scope="module")
def digits():
    return select_per_class(load_images("digits"), 6, seed=0)


def make_model(dtype=torch.float64):
    torch.manual_seed(0)
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, width=4, image_size=8)).to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


class Collator64:
    """Images in fp64, so that fp32 rounding of the data does not hide what a solver does."""

    def __call__(self, rows):
        batch = COLLATOR(rows)
        return batch | {"pixel_values": batch["pixel_values"].double()}


def choose(model, words=("bn", "linear")):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(word in name for word in words))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def tuned(start, words=("bn", "linear"), size=0.05):
    """A model that counts as tuned: the head is drawn towards the classes by a few steps of descent."""
    model = copy.deepcopy(start)
    choose(model, words)
    rows = select_per_class(load_images("digits"), 6, seed=0)
    batch = Collator64()([rows[i] for i in range(len(rows))])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=size)
    for _ in range(30):
        optimizer.zero_grad()
        model(
            **{"pixel_values": batch["pixel_values"].to(next(model.parameters()).dtype), "labels": batch["labels"]}
        ).loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def start():
    return make_model()


@pytest.fixture(scope="module")
def full(start):
    return tuned(start)


def unlearn(tmp_path, model, method, forget, retain, collator=None, **arguments):
    args = UnlearnConfig(
        output_dir=str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        per_device_train_batch_size=4, **arguments,
    )  # fmt: skip
    trainer = UnlearnTrainer(model, method, args, forget, retain, data_collator=collator or Collator64())
    trainer.train()
    return trainer


def update_of(trainer):
    return torch.cat(
        [trainer.update_delta().tensors[name].double().flatten() for name in sorted(trainer.update_delta().tensors)]
    )


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


def test_solvers_agree_on_a_network(tmp_path, digits, start, full):
    forget, retain = split_class(digits, "0")
    updates = {}
    for solver in ("dual", "primal", "cg"):
        model = copy.deepcopy(full)
        choose(model)
        method = FastNTK(solver=solver, ridge=0.3, pretrained=start, target_scale=5.0, absent_margin=2.0)
        trainer = unlearn(tmp_path / solver, model, method, forget, retain)
        updates[solver] = torch.cat(
            [(dict(model.named_parameters())[n] - p).flatten() for n, p in full.named_parameters()]
        )
        assert method.report["solver"] == solver and method.report["samples"] == 60
        assert trainer.state.global_step == 1 and trainer.cost["solve_seconds"] > 0
    assert (updates["primal"] - updates["dual"]).norm() <= 1e-6 * updates["dual"].norm()
    assert (updates["cg"] - updates["dual"]).norm() <= 1e-6 * updates["dual"].norm()


def test_some_retain_rows_stand_for_all(tmp_path, digits, start, full):
    forget, retain = split_class(digits, 0)

    def step(name, rows, **settings):
        model = copy.deepcopy(full)
        choose(model)
        method = FastNTK(ridge=0.3, pretrained=start, target_scale=5.0, **settings)
        return update_of(unlearn(tmp_path / name, model, method, forget, rows)), method.report

    third = sample_rows(retain, 18, seed=42)
    # Each of the 18 counts three times, as if it were there so often.
    expected, _ = step("copies", concatenate_datasets([third] * 3), solver="primal")
    found, report = step("third", retain, retain_samples=18)
    assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert report["solver"] == "primal" and report["samples"] == 24
    whole, _ = step("whole", retain, solver="primal")
    assert torch.equal(whole, step("all", retain, retain_samples=54)[0])
    assert (found - whole).norm() > 1e-3 * whole.norm()


def test_contrasts_of_the_forget_rows_alone(tmp_path, digits, start, full):
    """From Grams that are measured here: all contrasts of the retain rows, two of the others."""
    forget, retain = split_class(digits, 0)
    model = copy.deepcopy(full)
    names = choose(model)
    method = FastNTK(ridge=0.3, pretrained=start, target_scale=5.0, linearize="pretrained", forget_contrasts=2)
    unlearn(tmp_path, model, method, forget, retain)
    jacobians = Jacobians(full, names, at=dict(start.named_parameters()))
    loader = lambda rows: DataLoader(rows, batch_size=16, collate_fn=Collator64())
    gram_r, gram_f = measure_gram(jacobians, loader(retain)), measure_gram(jacobians, loader(forget), None, 2)
    ridge, whole = method.report["ridge"] * torch.eye(jacobians.size, dtype=torch.float64), gram_r + gram_f
    expected = torch.linalg.solve(gram_r.matrix + ridge, gram_r.residual(5.0))
    expected -= torch.linalg.solve(whole.matrix + ridge, whole.residual(5.0))
    moved = torch.cat([(model.get_parameter(n) - full.get_parameter(n)).flatten() for n in names])
    assert (moved - expected).norm() <= 1e-6 * expected.norm()
    assert method.report["contrasts"] == {"retain": 9, "forget": 2} and method.report["solver"] == "primal"


def test_a_class_is_absent_from_the_rows_not_from_a_sample_of_them(tmp_path, digits, start, full):
    forget, retain = split_class(digits, 0)
    model = copy.deepcopy(full)
    choose(model)
    method = FastNTK(pretrained=start, retain_samples=4)
    unlearn(tmp_path, model, method, forget, retain)
    assert method.report["absent_classes"] == [0] and method.report["absent_margin"] == 2.8


class Smooth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 6).double(), torch.nn.Linear(6, 3).double()

    def forward(self, pixel_values):
        return self.second(self.first(pixel_values).tanh())


def test_the_midpoint_is_a_secant():
    """f(w0) + J(midpoint) (w - w0) is f(w) up to |w - w0|^3, with J(w0) up to |w - w0|^2."""
    torch.manual_seed(0)
    model, batch = Smooth(), {"pixel_values": torch.randn(8, 5, dtype=torch.float64)}
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    move = {name: torch.randn_like(value) for name, value in before.items()}

    def error(size, share):
        step = {name: size * value for name, value in move.items()}
        at = {name: value + share * step[name] for name, value in before.items()}
        jacobians = Jacobians(model, list(before), at=at, origin=before, chunk_size=3)
        linear = torch.cat([z + j @ jacobians.flatten(step) for z, j in jacobians(batch)])
        after = {name: value + step[name] for name, value in before.items()}
        return float((linear - torch.func.functional_call(model, after, kwargs=batch)).norm())

    assert 7 < error(0.02, 0.5) / error(0.01, 0.5) < 9
    assert 3.5 < error(0.02, 0.0) / error(0.01, 0.0) < 4.5


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


def test_a_second_request_reads_the_gram_of_all_rows(tmp_path, digits, start, full, caplog, monkeypatch):
    seen = []
    original = Jacobians.__call__
    monkeypatch.setattr(
        Jacobians,
        "__call__",
        lambda self, inputs, *basis: seen.append(len(inputs["labels"])) or original(self, inputs, *basis),
    )
    results = {}
    for folder, contrasts in ((None, None), (None, 4), ("grams", None), ("grams", 4)):
        for number in (1, 2):
            seen.clear()
            model = copy.deepcopy(full)
            choose(model)
            forget, retain = split_class(digits, number)
            grams = folder and str(tmp_path / folder)
            method = FastNTK(solver="primal", pretrained=start, ridge=0.1, gram_cache=grams, contrasts=contrasts)
            unlearn(tmp_path / f"{number}{folder}{contrasts}", model, method, forget, retain)
            results[number, folder, contrasts] = model.linear.weight.detach().clone(), sum(seen)
    assert [count for _, count in results.values()] == [60, 60, 60, 60, 60, 6, 60, 6]
    for number in (1, 2):
        for contrasts in (None, 4):
            fresh, cached = results[number, None, contrasts][0], results[number, "grams", contrasts][0]
            assert torch.allclose(fresh, cached, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(results[number, "grams", None][0], cached, rtol=1e-3)


def test_a_cached_gram_is_one_of_the_same_model_and_collator(tmp_path, digits, start, full, monkeypatch):
    """Weights are hashed once a request; another collator or another model measures anew."""
    hashed, seen, original, call = [], [], cache.sha256_tensors, Jacobians.__call__
    monkeypatch.setattr(cache, "sha256_tensors", lambda tensors: hashed.append(len(tensors)) or original(tensors))
    monkeypatch.setattr(
        Jacobians,
        "__call__",
        lambda self, batch, *basis: seen.append(len(batch["labels"])) or call(self, batch, *basis),
    )
    forget, retain = split_class(digits, 1)

    def measured(name, model=full, collator=None) -> int:
        hashed.clear(), seen.clear()
        model = copy.deepcopy(model)
        choose(model, ("linear",))
        method = FastNTK(solver="primal", pretrained=start, gram_cache=str(tmp_path / "grams"))
        unlearn(tmp_path / name, model, method, forget, retain, collator)
        return sum(seen)

    assert measured("first") == 60
    # The midpoint, the values before tuning, all other weights, and for each of the two Grams an example.
    assert hashed == [2, 2, len(full.state_dict()) - 2, 2, 2]
    assert measured("again") == 0
    brighter = lambda rows: (batch := Collator64()(rows)) | {"pixel_values": batch["pixel_values"] + 0.1}
    assert measured("collator", collator=brighter) == 60
    other = copy.deepcopy(full)
    with torch.no_grad():
        other.conv1.weight += 0.01
    assert measured("model", other) == 60


@pytest.mark.parametrize("kernel", ["classwise", "pseudo"])
def test_kernels_for_many_classes(tmp_path, digits, start, full, kernel):
    """Against their definitions, in dense algebra."""
    model = copy.deepcopy(full)
    names = choose(model, ("linear", "bn1"))
    digits = digits.filter(lambda row: row["labels"] != 9)
    forget, retain = split_class(digits, 7) if kernel == "classwise" else split_rows(digits, [0, 7, 20])
    method = FastNTK(kernel=kernel, ridge=0.2, pretrained=start, target_scale=5.0, absent_margin=1.5)
    unlearn(tmp_path, model, method, forget, retain)
    rows = [retain[i] for i in range(len(retain))] + [forget[i] for i in range(len(forget))]
    batch = Collator64()(rows)
    before, after = dict(start.named_parameters()), dict(full.named_parameters())
    jacobians = Jacobians(full, names, at={n: (before[n] + after[n]).detach() / 2 for n in names})
    j = torch.cat([part for _, part in jacobians(batch)]).double()
    z = Jacobians(full, names, at={n: before[n] for n in names}).outputs_of(batch)
    y = torch.nn.functional.one_hot(batch["labels"], 10).double()
    y[:, 9] -= 0.3
    e = 5.0 * y - z
    if kernel == "classwise":
        y[:, 7] -= 0.3
    e_r = 5.0 * y - z
    e, e_r = (both - both.mean(1, keepdim=True) for both in (e, e_r))
    j_centred = j - j.mean(1, keepdim=True)
    n = len(retain)
    assert method.report["absent_classes"] == ([7, 9] if kernel == "classwise" else [9])

    def solve(kernel, residual):
        return torch.linalg.solve(
            kernel + method.report["ridge"] * torch.eye(len(kernel), dtype=kernel.dtype), residual
        )

    expected = torch.zeros(j.shape[-1], dtype=torch.float64)
    summed = j.sum(1) / 10**0.5
    for k in range(10):
        part = j_centred[:, k] if kernel == "classwise" else summed
        gram = part @ part.T
        coefficients = -solve(gram, e[:, k])
        coefficients[:n] += solve(gram[:n, :n], e_r[:n, k])
        expected += j_centred[:, k].T @ coefficients
    moved = torch.cat(
        [(dict(model.named_parameters())[n] - dict(full.named_parameters())[n]).flatten() for n in names]
    )
    assert (moved - expected).norm() <= 1e-6 * expected.norm()


def test_probabilities_and_tuned_weights(tmp_path, digits, full):
    model = copy.deepcopy(full)
    names = choose(model)
    forget, retain = split_class(digits, 4)
    method = FastNTK(linearize="tuned", outputs="probabilities", ridge=0.1, solver="primal")
    unlearn(tmp_path, model, method, forget, retain)
    jacobians = Jacobians(full, names, outputs="probabilities")
    loader = lambda rows: DataLoader(rows, batch_size=16, collate_fn=Collator64())
    gram_r, gram_f = measure_gram(jacobians, loader(retain)), measure_gram(jacobians, loader(forget))
    ridge = method.report["ridge"] * torch.eye(jacobians.size, dtype=torch.float64)
    assert method.report["target_scale"] == 1.0
    both = gram_r + gram_f
    expected = torch.linalg.solve(gram_r.matrix + ridge, gram_r.residual(1.0)) - torch.linalg.solve(
        both.matrix + ridge, both.residual(1.0)
    )
    moved = torch.cat(
        [(dict(model.named_parameters())[n] - dict(full.named_parameters())[n]).flatten() for n in names]
    )
    assert (moved - expected).norm() <= 1e-6 * expected.norm()


def test_batches_do_not_matter(digits, start):
    names = choose(copy.deepcopy(start))
    grams = [
        measure_gram(
            Jacobians(start, names, chunk_size=chunk), DataLoader(digits, batch_size=size, collate_fn=Collator64())
        )
        for chunk, size in ((1, 7), (32, 60))
    ]
    assert torch.allclose(grams[0].matrix, grams[1].matrix, rtol=1e-9)
    assert torch.allclose(grams[0].residual(3.0), grams[1].residual(3.0), rtol=1e-9)
    assert grams[0].rows == grams[1].rows == 60


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


def test_auto_scale_of_a_model_that_fits_its_rows_in_part(tmp_path, digits, start, full, caplog):
    forget, retain = split_class(digits, 0)
    for share, words in ((0.3, True), (1.0, False)):
        model = copy.deepcopy(full)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                before = start.get_parameter(name)
                parameter.copy_(before + share * (parameter - before))
        choose(model)
        caplog.clear()
        unlearn(tmp_path / str(share), model, FastNTK(pretrained=start), forget, retain)
        assert ("of the retain rows rightly" in caplog.text) == words
    caplog.clear()


def test_bad_input(tmp_path, digits, start, full, caplog):
    for settings, message in (
        ({"solver": "lu"}, "solver must be one of"),
        ({"linearize": "middle"}, "linearize must be"),
        ({"ridge": -1.0}, "ridge must not be negative"),
        ({"target_scale": 0}, "target_scale must be"),
        ({"absent_margin": -0.1}, "absent_margin must be"),
        ({"absent_margin": "none"}, "absent_margin must be"),
        ({"outputs": "odds"}, "outputs must be"),
        ({"kernel": "classwise", "solver": "primal"}, "has the dual solver only"),
        ({"gram_cache": "x", "solver": "cg"}, "gram_cache needs the primal solver"),
        ({"retain_samples": 0}, "retain_samples must be a whole number from 1 on"),
        ({"retain_samples": 5, "solver": "dual"}, "retain_samples needs the primal solver"),
        ({"retain_samples": 5, "gram_cache": "x"}, "exclude each other"),
        ({"contrasts": 1.5}, "contrasts must be a whole number from 1 on, not 1.5"),
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

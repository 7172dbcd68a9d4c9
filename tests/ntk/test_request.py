# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A request in the linear model: solvers against each other and against dense algebra."""

import copy

import pytest
import torch
from datasets import concatenate_datasets
from torch.utils.data import DataLoader

from hf_unlearn import FastNTK
from hf_unlearn.data.images import split_class, split_rows
from hf_unlearn.data.rows import sample_rows
from hf_unlearn.ntk import Jacobians, measure_gram
from hf_unlearn.ntk.request import apply_update
from tests.support.images import Collator64, choose, unlearn, update_of


pytestmark = pytest.mark.filterwarnings("ignore:the system is singular")


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


def test_an_update_is_added_in_fp64_and_rounded_once():
    """1 + 2^-8 + 2^-20 rounds up in bfloat16; with the step rounded before the sum it is a tie, and rounds down."""
    model = torch.nn.Linear(1, 1).bfloat16()
    model.weight.data.fill_(1.0)
    weight, bias = model.weight, model.bias.detach().clone()
    apply_update(dict(model.named_parameters()), {"weight": torch.full((1, 1), 2**-8 + 2**-20, dtype=torch.float64)})
    assert model.weight is weight and weight.dtype == torch.bfloat16 and weight.requires_grad
    assert weight.item() == 1 + 2**-7 and torch.equal(model.bias, bias)
    with pytest.raises(KeyError):
        apply_update(dict(model.named_parameters()), {"other": torch.zeros(1)})

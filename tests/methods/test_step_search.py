# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Damping and length by the measured KL: the length of a budget, the best decade, rows that no fit has seen."""

import math

import pytest
import torch

from hf_unlearn import KFade
from hf_unlearn.curvature import KFAC
from hf_unlearn.errors import InputError, LimitError
from hf_unlearn.methods import step_search
from hf_unlearn.methods.step_search import CLEARLY, NEAR, Candidates, hold_out, longest_within
from hf_unlearn.optim import NaturalGradientAscent
from tests.support.methods import CountingKFAC, kfade, run
from tests.support.trainers import COLLATE, FORGET, RETAIN, logged, make_trainer, trained_llama, weights


@pytest.mark.parametrize(
    "cost",
    [
        lambda length: 1e6 * length**2,
        lambda length: 1e-3 * length**2,
        lambda length: 10 * (1 - math.exp(-300 * length**2)),
        lambda length: 4 * length**2 if length < 1 else math.inf,
        lambda length: 3.0 * length,
        lambda length: 0.02 + 5 * length + length**2,
    ],
    ids=["steep", "flat", "saturated", "infinite beyond", "linear", "of the steps before"],
)
@pytest.mark.parametrize("start", [0.03, 10.0])
def test_a_length_near_the_budget(cost, start):
    calls = []
    length, found = longest_within(lambda length: calls.append(length) or cost(length), cost(0.0), 0.04, start)
    assert found == cost(length) and NEAR * 0.04 <= found <= 0.04
    assert len(calls) <= 6


def test_no_length_keeps_the_budget():
    assert longest_within(lambda length: 1.0, 0.0, 0.04, 1.0) is None
    assert longest_within(lambda length: math.inf, 0.0, 0.04, 1.0) is None


def test_rows_kept_from_the_fit():
    fitted, unseen = hold_out(RETAIN, 3)
    assert len(unseen) == 6 and len(fitted) == 18
    rows = lambda data: {tuple(row) for row in data["input_ids"]}
    assert not rows(fitted) & rows(unseen) and rows(fitted) | rows(unseen) == rows(RETAIN)
    assert hold_out(RETAIN, 3)[1]["input_ids"] == unseen["input_ids"] != hold_out(RETAIN, 4)[1]["input_ids"]
    few = RETAIN.select(range(3))
    assert hold_out(few, 3) == (few, few)


class Line:
    """Stands for an optimiser of one weight: what a length forgets differs from damping to damping."""

    def __init__(self, forgets):
        self.forgets, self.length, self.solved, self.tried = forgets, 0.0, None, []

    def directions(self, dampings):
        for damping in dampings:
            self.tried.append(damping)
            yield {"weight": self.forgets.get(round(-math.log10(damping)), 0.0)}, 2.0

    def apply(self, vector, scale):
        self.length, self.now = 2.0 * scale, vector["weight"]


@pytest.mark.parametrize(
    "forgets, best, tried",
    [
        ({4: 1.0, 5: 2.0, 6: 3.0, 7: 1.0}, 6, [5, 6, 7]),
        ({3: 2.0, 4: 3.0, 5: 2.0, 6: 1.0}, 4, [5, 6, 4, 3]),
        ({5: 1.0, 6: 2.0, 7: 3.0, 8: 9.0}, 7, [5, 6, 7]),
        ({4: 1.0, 5: 2.0, 6: 2.01, 7: 3.0}, 6, [5, 6]),
    ],
    ids=["below", "above", "not below what fp32 supports", "no better by much"],
)
def test_decades_are_searched_from_the_middle(forgets, best, tried):
    line = Line(forgets)
    measures = {"kl": lambda: line.length**2, "forget_loss": lambda: line.length * line.now}
    candidates = Candidates(line, **measures, before=0.0, budget=0.04)
    candidates.try_decades(1.0, 0.1, 5)
    assert [round(-math.log10(damping)) for damping in line.tried] == tried
    assert candidates.best.damping == pytest.approx(10.0**-best)
    assert line.solved == ({"weight": forgets[best]}, 2.0)
    # A KL on more rows that is four times as large halves the length, and one that is smaller changes nothing.
    length = candidates.best.step_norm
    candidates.shorten(lambda: line.length**2 / 2)
    assert candidates.best.step_norm == length
    candidates.shorten(lambda: 4 * line.length**2)
    assert candidates.best.step_norm == pytest.approx(length / 2, rel=0.1) and candidates.best.kl <= 0.04
    candidates.shorten(lambda: math.inf)
    assert candidates.best is None


def dense_solve(curvature, name, gradient, damping):
    """((S (x) A) + damping I)^-1 g and its square under S (x) A, as one matrix over the flattened weight."""
    leader = curvature.metadata["targets"][name]["input"]
    factors = []
    for part in (f"output.{name}", f"input.{leader}"):
        vectors = curvature.tensors[f"vectors.{part}"]
        factors.append(vectors @ torch.diag(curvature.tensors[f"values.{part}"]) @ vectors.T)
    block = torch.kron(*factors)
    vector = torch.linalg.solve(block + damping * torch.eye(len(block), dtype=block.dtype), gradient.flatten())
    return vector.view_as(gradient), vector @ block @ vector, torch.linalg.eigvalsh(block).max().item()


def test_the_best_decade_against_dense_matrices():
    """The step that is taken is the dense solve at a decade of the largest eigenvalue; no neighbour forgets more."""
    model, budget = trained_llama(torch.float64), 0.01
    retain, forget = COLLATE([*RETAIN]), COLLATE([*FORGET])
    curvature = KFAC().fit(model, [retain], fisher="probe", progress=False)
    model(**forget).loss.neg().backward()
    named = {name: parameter for name, parameter in model.named_parameters() if name in curvature.names}
    gradients = {name: -parameter.grad for name, parameter in named.items()}
    base = {name: parameter.detach().clone() for name, parameter in named.items()}
    for name, parameter in named.items():
        parameter.grad = gradients[name].clone()
    log_probs = lambda: model(**retain).logits.log_softmax(-1)[:, 1:-1][retain["labels"][:, 2:] != -100]
    with torch.no_grad():
        reference = log_probs()

    @torch.no_grad()
    def kl():
        return (reference.exp() * (reference - log_probs())).sum(-1).mean().item()

    @torch.no_grad()
    def loss():
        return model(**forget).loss.item()

    optimizer = NaturalGradientAscent(named, base, curvature, step_norm=1.0, damping=1.0)
    candidates = Candidates(optimizer, kl=kl, forget_loss=loss, before=0.0, budget=budget)
    candidates.try_decades(curvature.largest, 0.01, 5)
    best = candidates.best
    solved = {name: dense_solve(curvature, name, gradients[name], best.damping) for name in named}
    largest = max(value for *_, value in solved.values())
    assert curvature.largest == pytest.approx(largest, rel=1e-6)
    decade = math.log10(largest / best.damping)
    assert decade == pytest.approx(round(decade), abs=1e-6) and 0 <= round(decade) <= 7

    def step(solved, length):
        norm = sum(square for _, square, _ in solved.values()).sqrt()
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(base[name] + length / norm * solved[name][0])

    # What was found is what the dense step does, and it is what the optimiser then does.
    step(solved, best.step_norm)
    assert kl() == pytest.approx(best.kl, rel=1e-4) and NEAR * budget <= best.kl <= budget
    assert loss() == pytest.approx(best.forget_loss, rel=1e-4)
    expected = {name: parameter.detach().clone() for name, parameter in named.items()}
    optimizer.param_groups[0].update(lr=best.step_norm, damping=math.nan)
    optimizer.step()
    for name, parameter in named.items():
        assert (parameter - expected[name]).norm() <= 1e-6 * (expected[name] - base[name]).norm()
    # At the very KL, by bisection, the neighbours forget no more.
    for neighbour in (best.damping / 10, best.damping * 10):
        solved = {name: dense_solve(curvature, name, gradients[name], neighbour) for name in named}
        low, high = 0.0, 100 * best.step_norm
        for _ in range(25):
            middle = (low + high) / 2
            step(solved, middle)
            low, high = (middle, high) if kl() <= best.kl else (low, middle)
        assert loss() <= 1.001 * CLEARLY * best.forget_loss


def test_steps_are_chosen_by_what_they_cost(tmp_path):
    """One fit a step, on rows that are not measured on; the measured KL of so many steps is within so many budgets."""
    curvature = CountingKFAC()
    method = KFade(kl_budget=0.01, damping="auto", curvature=curvature, fisher="probe", steps=3)
    trainer, update = run(method, tmp_path, kl_rows=24)
    assert [fit["rows"] for fit in curvature.fits] == [18, 18, 18]
    measured = logged(trainer, "measured_kl")
    assert all(0 < kl <= 0.01 * step for step, kl in enumerate(measured, 1))
    losses = logged(trainer, "forget_loss")
    assert losses[0] < losses[1] < losses[2]
    chosen = method.account()["chosen_steps"]
    assert [step["step_norm"] for step in chosen] == logged(trainer, "step_norm")
    assert [step["kl"] for step in chosen] == measured
    assert any(tensor.any() for tensor in update.values())


def test_dampings_that_are_given(tmp_path):
    """The best of them, at the same KL; one alone is kept, and its length is found."""
    losses = {}
    for name, damping in (("small", [1e-6]), ("large", [1e2]), ("both", [1e2, 1e-6]), ("turned", [1e-6, 1e2])):
        method = kfade(step_norm=None, kl_budget=0.01, damping=damping)
        trainer, _ = run(method, tmp_path / name, kl_rows=24)
        (step,) = method.account()["chosen_steps"]
        assert step["damping"] in damping and 0 < logged(trainer, "measured_kl")[0] <= 0.01
        losses[name] = step["forget_loss"], step["damping"]
    for both in ("both", "turned"):
        assert losses[both] == pytest.approx(max(losses["small"], losses["large"]), rel=0.05)


def test_no_step_within_the_budget(tmp_path, monkeypatch):
    model = trained_llama()
    before = weights(model)
    monkeypatch.setattr(step_search, "measure_together", lambda run, measure: math.inf)
    trainer = make_trainer(model, KFade(kl_budget=0.01, damping="auto", curvature="kfac"), tmp_path, kl_rows=24)
    with pytest.raises(LimitError, match="no step 1 was found that keeps the KL on retain rows within 0.01 nats"):
        trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"damping": "automatic", "kl_budget": 0.1}, "damping must be a number, a list of numbers or 'auto'"),
        ({"damping": "auto", "step_norm": 0.1}, "kl_budget in the place of step_norm"),
        ({"damping": [], "kl_budget": 0.1}, "give one or more"),
        ({"damping": [1e-3, -1.0], "kl_budget": 0.1}, "damping must be a finite number above 0"),
    ],
)
def test_dampings_that_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        KFade(**settings)


def test_a_search_needs_a_kl(tmp_path):
    with pytest.raises(InputError, match="damping='auto' needs a KL that is measured: set kl_rows"):
        make_trainer(trained_llama(), KFade(damping="auto", kl_budget=0.1), tmp_path, kl_rows=0)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The closed-form update against retraining of a linear model and dense algebra."""

import pytest
import torch

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.ntk import ntk_update
from hf_unlearn.ntk.solvers import cgls, choose_solver


SOLVERS = ("dual", "primal", "cg")
pytestmark = pytest.mark.filterwarnings("ignore:the system is singular")


def problem(forget, retain, classes, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return draw(forget, classes, size), draw(retain, classes, size), draw(forget, classes), draw(retain, classes)


def trained(jacobian, residual, ridge):
    """argmin |J w - e|^2 + ridge |w|^2 of minimum norm: least squares of the augmented system, no normal equations."""
    j, e = jacobian.flatten(0, 1), residual.flatten()
    if ridge:
        size = j.shape[1]
        j = torch.cat([j, ridge**0.5 * torch.eye(size, dtype=j.dtype)])
        e = torch.cat([e, torch.zeros(size, dtype=e.dtype)])
    return torch.linalg.pinv(j) @ e


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(3, 8, 2, 40), (6, 30, 3, 20)], ids=["more parameters", "more rows"])
def test_update_equals_retraining_of_a_linear_model(shape, ridge, solver):
    j_f, j_r, e_f, e_r = problem(*shape)
    expected = trained(j_r, e_r, ridge) - trained(torch.cat([j_r, j_f]), torch.cat([e_r, e_f]), ridge)
    update = ntk_update(j_f, j_r, e_f, e_r, ridge, solver)
    assert (update - expected).norm() <= 1e-6 * expected.norm()
    flat = ntk_update(j_f.flatten(0, 1), j_r.flatten(0, 1), e_f.flatten(), e_r.flatten(), ridge, solver)
    assert torch.equal(update, flat)


@pytest.mark.parametrize("solver", SOLVERS)
def test_update_equals_gradient_descent_on_the_retain_set(solver):
    """A head on frozen features: the update lands where full-batch descent to the minimum on D_r lands."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    weight = torch.zeros(3, 6, dtype=torch.float64)
    jacobian = torch.einsum("nd,kc->nkcd", features, torch.eye(3, dtype=torch.float64)).flatten(2)
    tuned = torch.linalg.lstsq(features, targets).solution.T
    update = ntk_update(jacobian[30:], jacobian[:30], targets[30:], targets[:30], 0.0, solver)
    for _ in range(4000):
        weight -= 0.02 * (weight @ features[:30].T - targets[:30].T) @ features[:30]
    assert ((tuned + update.view(3, 6)) - weight).norm() <= 1e-5 * weight.norm()


def test_the_printed_equation_fails_where_the_derived_one_holds():
    """Equation (1) of the paper with the shape mended but the sign as printed: off by more than the update itself."""
    j_f, j_r, e_f, e_r = problem(3, 8, 1, 40)
    expected = trained(j_r, e_r, 0) - trained(torch.cat([j_r, j_f]), torch.cat([e_r, e_f]), 0)
    f, r, y_f, y_r = j_f[:, 0], j_r[:, 0], e_f[:, 0], e_r[:, 0]
    k_rr, k_rf, k_ff = r @ r.T, r @ f.T, f @ f.T
    with pytest.raises(RuntimeError):
        k_rf.T @ torch.linalg.inv(k_ff) @ y_r  # the shapes as printed
    project = torch.eye(40, dtype=torch.float64) - r.T @ torch.linalg.solve(k_rr, r)
    m = torch.linalg.inv(k_ff - k_rf.T @ torch.linalg.solve(k_rr, k_rf))
    printed = project @ f.T @ m @ (y_f + k_rf.T @ torch.linalg.solve(k_rr, y_r))
    derived = -project @ f.T @ m @ (y_f - k_rf.T @ torch.linalg.solve(k_rr, y_r))
    assert (derived - expected).norm() <= 1e-9 * expected.norm()
    assert (printed - expected).norm() > expected.norm()


def test_solvers_agree_on_fp32_jacobians_of_bad_condition():
    generator = torch.Generator().manual_seed(5)
    scales = torch.logspace(0, -3, 30)
    make = lambda rows: torch.randn(rows, 2, 30, generator=generator) * scales
    arguments = make(10), make(60), torch.randn(10, 2, generator=generator), torch.randn(60, 2, generator=generator)
    updates = [ntk_update(*arguments, 1e-3, solver) for solver in SOLVERS]
    for update in updates[1:]:
        assert (update - updates[0]).norm() <= 1e-6 * updates[0].norm()


def test_nothing_to_undo_gives_no_update():
    """Forget rows that the retained model fits already: retraining without them changes nothing."""
    _, j_r, _, e_r = problem(1, 20, 2, 10)
    w = trained(j_r, e_r, 0.0)
    j_f = torch.randn(4, 2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for solver in SOLVERS:
        update = ntk_update(j_f, j_r, j_f @ w, e_r, 0.0, solver)
        assert update.norm() <= 1e-9


def test_auto_takes_the_cheaper_side():
    assert choose_solver(rows=100, size=1000) == "dual"
    assert choose_solver(rows=1000, size=100) == "primal"
    assert choose_solver(rows=50_000, size=2026) == "primal"
    assert choose_solver(rows=50_000, size=60_000) == "cg"
    with pytest.raises(InputError, match="solver must be"):
        choose_solver(1, 1, "lu")


def test_a_singular_system_without_ridge_says_so():
    j_f, j_r, e_f, e_r = problem(3, 8, 2, 40)
    with pytest.warns(UserWarning, match=r"singular without a ridge \(rank 16 of 40\)"):
        ntk_update(j_f, j_r, e_f, e_r, 0.0, "primal")


def test_update_refuses_bad_input():
    j_f, j_r, e_f, e_r = problem(3, 8, 2, 40)
    with pytest.raises(InputError, match="retain set is empty"):
        ntk_update(j_f, j_r[:0], e_f, e_r[:0])
    with pytest.raises(InputError, match="forget set has 6 Jacobian rows and 4 residuals"):
        ntk_update(j_f, j_r, e_f[:2], e_r)
    with pytest.raises(InputError, match="39 and 40 parameters"):
        ntk_update(j_f[..., :39], j_r, e_f, e_r)
    with pytest.raises(InputError, match="ridge must not be negative"):
        ntk_update(j_f, j_r, e_f, e_r, -1.0)
    with pytest.raises(NumericalError, match="retain Jacobian"):
        ntk_update(j_f, j_r * float("inf"), e_f, e_r)
    with pytest.raises(NumericalError, match="stopped at a relative residual"):
        cgls(lambda v: j_r.flatten(0, 1) @ v, lambda u: j_r.flatten(0, 1).T @ u, e_r.flatten(), 0.0, max_iterations=2)

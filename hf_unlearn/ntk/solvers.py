# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The closed-form step of Fast-NTK: retraining on the retain set, minus training on everything, in the linear model.

With e = y - f(x) at the linearisation point w0, rows J of the Jacobian and a ridge r, ridge regression gives
w(D) = w0 + J^T (J J^T + r I)^-1 e = w0 + (J^T J + r I)^-1 J^T e, and the update is w(D_r) - w(D). Equation (1) of the
paper (arXiv 2312.14923) states the same for r = 0 but for two misprints: Theta(D_f, D_f)^-1 stands where the shapes
want Theta(D_r, D_r)^-1, and V has the wrong sign.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError, NumericalError


SOLVERS = ("auto", "dual", "primal", "cg")
JITTERS = (0.0, 10.0, 100.0, 1000.0)
EPSILON = torch.finfo(torch.float64).eps


def ntk_update(
    jacobian_forget: Tensor,
    jacobian_retain: Tensor,
    residual_forget: Tensor,
    residual_retain: Tensor,
    ridge: float = 0.0,
    solver: str = "auto",
) -> Tensor:
    """w(D_r) - w(D) of the model linearised at w0, (p,) fp64.

    Args:
        jacobian_forget, jacobian_retain (`Tensor`): (n, C, p) or (n * C, p), any floating type; Grams are fp64.
        residual_forget, residual_retain (`Tensor`): Target - output at the linearisation point, (n, C) or (n * C,).
        ridge (`float`, defaults to 0): Added to the kernel's diagonal, in its units. 0: the minimum-norm solution.
        solver (`str`, defaults to `"auto"`): `"dual"` (kernel, n C x n C), `"primal"` (Gram, p x p), `"cg"`
            (matrix-free, O(p) beside the Jacobians), or the one that `choose_solver` finds cheapest.

    Raises:
        InputError: shapes that do not fit, a negative ridge, an unknown solver, an empty retain or forget set.
        NumericalError: entries that are not finite, or no convergence.
    """
    j_r, e_r = _rows(jacobian_retain, residual_retain, "retain")
    j_f, e_f = _rows(jacobian_forget, residual_forget, "forget")
    if j_r.shape[1] != j_f.shape[1]:
        raise InputError(f"Jacobians of {j_f.shape[1]} and {j_r.shape[1]} parameters: take both at the same ones")
    if not ridge >= 0:
        raise InputError(f"ridge must not be negative, got {ridge}")
    rows, size = len(j_r) + len(j_f), j_r.shape[1]
    solver = choose_solver(rows, size, solver)
    if solver == "dual":
        j = torch.cat([j_r, j_f])
        return j.T @ dual_coefficients(j @ j.T, torch.cat([e_r, e_f])[:, None], e_r[:, None], ridge)[:, 0]
    if solver == "primal":
        gram_r, gram_f = j_r.T @ j_r, j_f.T @ j_f
        b_r = j_r.T @ e_r
        return primal_update(gram_r, b_r, gram_f, b_r + j_f.T @ e_f, ridge)
    fit = functools.partial(cgls, ridge=ridge, max_iterations=10 * size + 1000)
    both = lambda v: torch.cat([j_r @ v, j_f @ v])
    both_t = lambda u: j_r.T @ u[: len(j_r)] + j_f.T @ u[len(j_r) :]
    return fit(lambda v: j_r @ v, lambda u: j_r.T @ u, e_r) - fit(both, both_t, torch.cat([e_r, e_f]))


def choose_solver(rows: int, size: int, solver: str = "auto", memory: float = 8e9) -> str:
    """The solver for `rows` = n C rows of `size` = p parameters; "auto" goes by FLOPs and by bytes of the matrix.

    Raises:
        InputError: an unknown solver.
    """
    if solver not in SOLVERS:
        raise InputError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    if solver != "auto":
        return solver
    flops = {"dual": rows**2 * size + rows**3 / 3, "primal": rows * size**2 + 2 * size**3 / 3}
    # Three matrices of the system are alive at once: the Gram, its factor, and a workspace.
    fitting = [name for name, side in (("dual", rows), ("primal", size)) if 24 * side**2 <= memory]
    return min(fitting, key=flops.get, default="cg")


def dual_coefficients(kernel: Tensor, e: Tensor, e_r: Tensor, ridge: float) -> Tensor:
    """(rows, m): what each row of the Jacobian is multiplied with in the update, for m residuals that share a kernel.

    Retain rows come first: the leading block of the factor of the kernel (rows, rows) is then that of the retain
    kernel, so one factorisation serves both solutions. Residuals are `e` (rows, m) of training on all rows and `e_r`
    (retain rows, m) of retraining.
    """
    coefficients, retain = torch.zeros_like(e), len(e_r)
    factor = _cholesky(kernel, ridge)
    if factor is None:
        coefficients[:retain] = _minimum_norm(kernel[:retain, :retain], e_r, ridge)
        return coefficients - _minimum_norm(kernel, e, ridge)
    coefficients[:retain] = torch.cholesky_solve(e_r, factor[:retain, :retain])
    return coefficients - torch.cholesky_solve(e, factor)


def primal_update(gram_r: Tensor, b_r: Tensor, gram_f: Tensor, b: Tensor, ridge: float) -> Tensor:
    """From Grams J^T J (p, p) of the two sets, and b_r = J^T e (p,) of retraining, b of training on all rows.

    w(D_r) - w(D) = (H_r + r I)^-1 (b_r - b + H_f w(D)): the same without the difference of two long vectors.
    """
    gram = gram_r + gram_f
    full, part = _cholesky(gram, ridge), _cholesky(gram_r, ridge)
    if full is None or part is None:
        return (_minimum_norm(gram_r, b_r[:, None], ridge) - _minimum_norm(gram, b[:, None], ridge))[:, 0]
    w = torch.cholesky_solve(b[:, None], full)
    return torch.cholesky_solve((b_r - b)[:, None] + gram_f @ w, part)[:, 0]


def cgls(
    product: Callable[[Tensor], Tensor],
    transposed: Callable[[Tensor], Tensor],
    e: Tensor,
    ridge: float,
    *,
    tolerance: float = 1e-12,
    max_iterations: int,
    reduce: Callable[[Tensor], Tensor] = lambda number: number,
) -> Tensor:
    """argmin |J w - e|^2 + ridge |w|^2 by conjugate gradients on the normal equations, which are never formed.

    Hestenes and Stiefel (1952). Started at 0 it tends to the minimum-norm solution when ridge is 0. It stops at a
    relative residual `tolerance` of the normal equations. With rows spread over processes `e` and `product`, v (p,) ->
    J v, are of this process's, `transposed`, u -> J^T u, gives the sum over all, and `reduce` sums a number over them.

    Raises:
        NumericalError: the relative residual is still above `tolerance` after `max_iterations`.
    """
    residual = e.clone()
    gradient = transposed(residual)
    w, direction = torch.zeros_like(gradient), gradient.clone()
    square = start = gradient.square().sum()
    if start == 0:
        return w
    for _ in range(max_iterations):
        image = product(direction)
        step = square / (reduce(image.square().sum()) + ridge * direction.square().sum())
        w += step * direction
        residual -= step * image
        gradient = transposed(residual) - ridge * w
        square, before = gradient.square().sum(), square
        if not torch.isfinite(square):
            break
        if square <= tolerance**2 * start:
            return w
        direction = gradient + (square / before) * direction
    raise NumericalError(
        f"conjugate gradients stopped at a relative residual of {float((square / start) ** 0.5):.1e} after "
        f"{max_iterations} steps: give a larger ridge, or the primal or dual solver"
    )


def _rows(jacobian: Tensor, residual: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Jacobian (n C, p) and residual (n C,) in fp64."""
    if jacobian.dim() not in (2, 3):
        raise InputError(f"the {what} Jacobian must be (n, C, p) or (n * C, p), not {tuple(jacobian.shape)}")
    jacobian, residual = jacobian.reshape(-1, jacobian.shape[-1]).double(), residual.reshape(-1).double()
    if len(jacobian) != len(residual):
        raise InputError(f"the {what} set has {len(jacobian)} Jacobian rows and {len(residual)} residuals")
    if not len(jacobian):
        raise InputError(f"the {what} set is empty")
    if not (torch.isfinite(jacobian).all() and torch.isfinite(residual).all()):
        raise NumericalError(f"the {what} Jacobian or residual is not finite: the model overflows on its rows")
    return jacobian, residual


def _cholesky(matrix: Tensor, ridge: float) -> Tensor | None:
    """Lower factor of matrix + ridge I; None when it is singular beyond rounding and has no ridge."""
    scale = matrix.diagonal().mean()
    if scale <= 0:
        return None if ridge == 0 else _shifted(matrix, ridge, 0.0)
    for jitter in JITTERS if ridge > 0 else JITTERS[:1]:
        factor = _shifted(matrix, ridge, jitter * EPSILON * len(matrix) * scale)
        if factor is not None:
            pivots = factor.diagonal().square()
            # A pivot at the level of rounding errors: the factorisation came through by luck.
            if ridge > 0 or pivots.min() > 100 * EPSILON * len(matrix) * pivots.max():
                return factor
    return None


def _shifted(matrix: Tensor, ridge: float, jitter: float) -> Tensor | None:
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge + jitter)
    factor, info = torch.linalg.cholesky_ex(shifted)
    return factor if info == 0 else None


def _minimum_norm(matrix: Tensor, b: Tensor, ridge: float) -> Tensor:
    """(matrix + ridge I)^+ b, b (rows, m), by eigendecomposition; says so when directions are left out."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > 10 * EPSILON * len(values) * values.max()
    if ridge == 0 and not kept.all():
        warnings.warn(
            f"the system is singular without a ridge (rank {int(kept.sum())} of {len(values)}): the minimum-norm "
            "solution is taken; give a ridge above 0 for a stable update",
            stacklevel=4,
        )
    inverse = torch.where(kept, 1 / (values + ridge).clamp_min(torch.finfo(values.dtype).tiny), 0)
    return vectors @ (inverse[:, None] * (vectors.T @ b))

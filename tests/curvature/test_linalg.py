# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Matrix work whose precision decides the result."""

import pytest
import torch

from hf_unlearn.curvature.linalg import add_gram_, eigendecompose, mirror_
from hf_unlearn.errors import NumericalError


@pytest.mark.parametrize("size", [3, 300, 700])
def test_gram_on_upper_block_rows(size):
    rows = torch.randn(20, size, dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    add_gram_(total, rows[:12])
    add_gram_(total, rows[12:])
    torch.testing.assert_close(mirror_(total), rows.T @ rows)
    assert torch.equal(total, total.T)


def test_eigendecomposition_of_a_tiny_scaled_factor():
    """fp32, spectrum 1e-8..1e-13: small eigenvalues from the fp32 solver alone are wrong by their own size."""
    torch.manual_seed(0)
    q = torch.linalg.qr(torch.randn(60, 60, dtype=torch.float64))[0]
    values = torch.logspace(-13, -8, 60, dtype=torch.float64)
    matrix = (q * values) @ q.T
    found, vectors = eigendecompose(matrix.float(), "factor")
    torch.testing.assert_close(found.double(), values, rtol=0.03, atol=0)
    rebuilt = (vectors.double() * found.double()) @ vectors.double().T
    assert (rebuilt - matrix).norm() < 1e-5 * matrix.norm()
    zero, basis = eigendecompose(torch.zeros(4, 4), "factor")
    assert (zero == 0).all() and torch.equal(basis, torch.eye(4))
    with pytest.raises(NumericalError, match="the input factor of x is not finite"):
        eigendecompose(torch.full((3, 3), torch.inf), "the input factor of x")


def test_eigendecomposition_falls_back_to_fp64(monkeypatch):
    solver = torch.linalg.eigh

    def fragile(matrix):
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("did not converge")
        return solver(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fragile)
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    values, vectors = eigendecompose(matrix.clone(), "factor")
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)
    assert vectors.dtype == torch.float32

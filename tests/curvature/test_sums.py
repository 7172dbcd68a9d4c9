# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Squares of samples: those of the outer products themselves, in whatever pieces they are made."""

import pytest
import torch

from hf_unlearn.curvature import sums


@pytest.mark.parametrize("elements", [5, 24, 2**20])
@pytest.mark.parametrize("lengths", [(3, 1, 4), (1, 1, 1, 1), (9,)])
def test_squares_of_samples_of_any_length_and_in_any_blocks(elements, lengths, monkeypatch):
    """7 x 5 in blocks of one row, of four and three, and whole."""
    monkeypatch.setattr(sums, "BLOCK_ELEMENTS", elements)
    y, x = torch.randn(sum(lengths), 7).double(), torch.randn(sum(lengths), 5).double()
    q_out, q_in = (torch.linalg.qr(torch.randn(size, size).double()).Q for size in (7, 5))
    start, expected, rotated = 0, 0.0, 0.0
    for length in lengths:
        gradient = sum(torch.outer(y[row], x[row]) for row in range(start, start + length))
        expected, rotated = expected + gradient**2, rotated + (q_out.T @ gradient @ q_in) ** 2
        start += length
    found = torch.zeros(7, 5).double()
    made = sums.SquareSums({})
    made._add_squares(found, y, x, list(lengths))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    found.zero_()
    sums._add_rotated(found, y, x, list(lengths), q_in, q_out)
    torch.testing.assert_close(found, rotated, rtol=1e-12, atol=1e-14)
    # A single column, as of a bias; then another type and a larger weight, for which there is no room yet.
    narrow = torch.zeros(7, 1).double()
    made._add_squares(narrow, y, x[:, :1], list(lengths))
    torch.testing.assert_close(narrow, expected[:, :1], rtol=1e-12, atol=1e-14)
    wide = torch.zeros(7, 10)
    made._add_squares(wide, y.float(), torch.cat([x, x], 1).float(), list(lengths))
    torch.testing.assert_close(wide.double(), torch.cat([expected, expected], 1), rtol=1e-4, atol=1e-5)

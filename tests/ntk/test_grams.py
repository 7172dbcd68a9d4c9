# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sums over samples: in any batches the same, right on average when contrasts are drawn."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader

from hf_unlearn.ntk import Jacobians, measure_gram
from hf_unlearn.ntk.grams import TENSORS, contrasts
from tests.support.images import Collator64, choose
from tests.support.jacobians import NAMES, Net


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


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_contrasts_are_a_basis_of_what_is_centred(classes):
    basis = contrasts(classes)
    identity = torch.eye(classes, dtype=torch.float64)
    assert torch.allclose(basis.T @ basis, identity - 1 / classes, atol=1e-12)
    assert torch.allclose(basis @ basis.T, identity[1:, 1:], atol=1e-12)


def test_random_contrasts_are_right_on_average_and_the_same_for_a_sample():
    """A thousand near copies of each sample draw contrasts of their own; the mean error falls with their number."""
    model, names = Net().double(), NAMES[2:]
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5) % 4
    jacobians = Jacobians(model, names, chunk_size=100)

    def gram(rows, count=None, copies=1, size=100):
        move = 1e-9 * torch.arange(copies, dtype=torch.float64).repeat_interleave(len(rows))
        pixels = images[rows].repeat(copies, 1, 1, 1) + move[:, None, None, None]
        batches = zip(pixels.split(size), labels[rows].repeat(copies).split(size))
        return measure_gram(jacobians, [{"pixel_values": x, "labels": y} for x, y in batches], None, count)

    everything = range(5)
    exact, drawn = gram(everything), gram(everything, 1)
    many = {copies: gram(everything, 1, copies) for copies in (40, 1000)}
    for name in TENSORS:
        truth = getattr(exact, name)
        error = {
            copies: float((getattr(g, name) / copies - truth).norm() / truth.norm()) for copies, g in many.items()
        }
        assert error[1000] < 0.1 and error[1000] < 0.6 * error[40], name
        assert (getattr(drawn, name) - truth).norm() > 0.05 * truth.norm()
        # The same whatever the batches; and of a part taken away nothing is left.
        for other in (gram(everything, 1, size=2), gram([3, 1], 1) + gram([0, 2, 4], 1)):
            assert torch.allclose(getattr(other, name), getattr(drawn, name), rtol=1e-9, atol=1e-9)
        assert torch.equal(getattr(gram(everything, 3), name), truth)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Data, tiny fp64 models, fits and comparisons that the tests of curvature share."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hf_unlearn.curvature import make_curvature, passes
from tests.support.models import make_llama


def batches(ids, labels=None, size=2, mask=None):
    """Dictionaries of `size` rows."""
    labels = ids if labels is None else labels
    columns = {"input_ids": ids, "labels": labels} | ({} if mask is None else {"attention_mask": mask})
    return [{key: value[i : i + size] for key, value in columns.items()} for i in range(0, len(ids), size)]


def ragged(padding_side="right", vocab=50, lengths=(7, 4, 5, 3, 6), prompt=2, seed=1):
    """Sequences of unequal length with a prompt: ids, labels, mask (N, max length), padded with a real token's id."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), 3)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        span = slice(0, length) if padding_side == "right" else slice(width - length, width)
        tokens = torch.randint(3, vocab, (length,), generator=generator)
        ids[row, span], mask[row, span] = tokens, 1
        labels[row, span] = torch.where(torch.arange(length) < prompt, -100, tokens)
    return ids, labels, mask


KIND_NAMES = ("ekfac", "kfac", "diagonal", "identity")
THIRTEEN = ragged(vocab=20, lengths=(7, 4, 5, 3, 6, 4, 4, 7, 5, 6, 3, 5, 6))


def tiny(layers=4):
    return make_llama(
        vocab_size=20, hidden_size=8, intermediate_size=12, layers=layers, initializer_range=0.3
    ).double()


def rows(size=2, data=THIRTEEN):
    return batches(*data[:2], size=size, mask=data[2])


def fitted(kind="ekfac", model=None, data=None, **options):
    return make_curvature(kind).fit(
        tiny() if model is None else model, rows() if data is None else data, progress=False, **options
    )


def fit_columns(model, data, size=2, kind="ekfac", **options):
    """A fit on (ids, labels, mask)."""
    return make_curvature(kind).fit(model, batches(*data[:2], size=size, mask=data[2]), progress=False, **options)


def gradients(curvature):
    """Fixed gradients of its weights."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(target["shape"], generator=generator, dtype=torch.float64)
        for name, target in curvature.metadata["targets"].items()
    }


def solved(curvature):
    """(steps, norm), the answer of the curvature to fixed gradients: free of the signs of eigenvectors."""
    return next(curvature.solve_many(gradients(curvature), [1e-3]))


def solutions(curvature):
    """The steps alone, in order of its weights."""
    return list(solved(curvature)[0].values())


def assert_same_solution(one, other, tolerance=1e-6):
    (steps, norm), (other_steps, other_norm) = one, other
    assert steps.keys() == other_steps.keys() and norm == pytest.approx(other_norm, rel=tolerance)
    for name, step in steps.items():
        assert (step - other_steps[name]).norm() <= tolerance * step.norm(), name


def assert_same(one, other, tolerance=1e-5):
    assert one.metadata["predicted_tokens"] == other.metadata["predicted_tokens"]
    assert one.metadata["sequences"] == other.metadata["sequences"]
    for a, b in zip(solutions(one), solutions(other), strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


def same_bits(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[key]) for key, tensor in one.tensors.items())
    assert one.metadata["predicted_tokens"] == other.metadata["predicted_tokens"]
    assert one.metadata["data_sha256"] == other.metadata["data_sha256"]


def factors(curvature):
    """Name -> factor or eigenvalues in the weight's own coordinates, which no sign of an eigenvector changes."""
    found = {}
    for key, tensor in curvature.tensors.items():
        if key.startswith("vectors."):
            values = curvature.tensors[key.replace("vectors", "values", 1)]
            found[key] = (tensor * values) @ tensor.T
        elif curvature.kind == "diagonal":
            found[key] = tensor.double()  # what a mask keeps, too
    return found


def launched(size):
    """The accelerator of a worker, which inherits the state of a parent that may have been one process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == size
    return accelerator


class Stopping(list):
    """Batches that fail for good after so many readings in all."""

    def __init__(self, data, after):
        super().__init__(data)
        self.left = after

    def __iter__(self):
        for batch in super().__iter__():
            self.left -= 1
            if self.left < 0:
                raise OSError("stopped")
            yield batch


class Counted:
    """How many batches this process computes."""

    def __init__(self):
        self.count, self.call = 0, passes.Backward.__call__

    def __enter__(self):
        def call(backward, *args, **kwargs):
            self.count += 1
            return self.call(backward, *args, **kwargs)

        passes.Backward.__call__ = call
        return self

    def __exit__(self, *_):
        passes.Backward.__call__ = self.call

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One fit over several gloo processes: the same matrix and step as one process, in a share of its memory."""

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

from hf_unlearn.curvature import Curvature, make_curvature
from tests.conftest import make_llama
from tests.test_curvature import batches, ragged


pytestmark = pytest.mark.multi_process

KINDS = ("ekfac", "kfac", "diagonal", "identity")
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


def gradients(curvature):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(target["shape"], generator=generator, dtype=torch.float64)
        for name, target in curvature.metadata["targets"].items()
    }


def solved(curvature):
    return next(curvature.solve_many(gradients(curvature), [1e-3]))


def assert_same_solution(one, other, tolerance=1e-6):
    (steps, norm), (other_steps, other_norm) = one, other
    assert steps.keys() == other_steps.keys() and norm == pytest.approx(other_norm, rel=tolerance)
    for name, step in steps.items():
        assert (step - other_steps[name]).norm() <= tolerance * step.norm(), name


def factors(curvature):
    """Name -> factor or eigenvalues in the weight's own coordinates, which no sign of an eigenvector changes."""
    found = {}
    for key, tensor in curvature.tensors.items():
        if key.startswith("vectors."):
            values = curvature.tensors[key.replace("vectors", "values", 1)]
            found[key] = (tensor * values) @ tensor.T
        elif curvature.kind == "diagonal":
            found[key] = tensor
    return found


def launched(size):
    """The accelerator of a worker, which inherits the state of a parent that may have been one process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == size
    return accelerator


def fit_and_save(folder, size, data):
    accelerator = launched(size)
    for kind in KINDS:
        curvature = fitted(kind, data=data, accelerator=accelerator)
        curvature.save_pretrained(folder / kind)
        steps, norm = solved(curvature)
        assert curvature.norm(steps) == pytest.approx(norm, rel=1e-12)
        torch.save((steps, norm, curvature.tensors), folder / f"{kind}-{accelerator.process_index}.pt")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("per_batch", [2, 13])
def test_any_number_of_processes_gives_the_matrix_and_step_of_one(tmp_path, size, per_batch):
    """13 rows in 7 batches (the last of one row), then in one: processes without data take part."""
    data = rows(per_batch)
    debug_launcher(fit_and_save, (tmp_path, size, data), num_processes=size)
    for kind in KINDS:
        alone = fitted(kind, data=data)
        ranks = [torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in range(size)]
        for steps, norm, _ in ranks:
            assert norm == ranks[0][1] and all(torch.equal(step, ranks[0][0][name]) for name, step in steps.items())
        together = Curvature.from_pretrained(tmp_path / kind)
        assert together.metadata["sequences"] == (0 if kind == "identity" else 13)
        assert together.metadata["predicted_tokens"] == alone.metadata["predicted_tokens"]
        assert together.metadata.get("data_sha256") == alone.metadata.get("data_sha256")
        # What is written is what the owners had, each tensor once.
        held = {}
        for *_, tensors in ranks:
            assert kind == "identity" or not held.keys() & tensors.keys()
            held |= tensors
        assert held.keys() == together.tensors.keys()
        assert all(torch.equal(tensor, together.tensors[key]) for key, tensor in held.items())
        found = factors(together)
        for key, factor in factors(alone).items():
            assert (factor - found[key]).norm() <= 1e-6 * factor.norm(), key
        assert_same_solution(solved(alone), ranks[0][:2])
        # One process that loads what several wrote takes the very same step.
        loaded = solved(together)
        assert loaded[1] == ranks[0][1] and all(
            torch.equal(step, ranks[0][0][name]) for name, step in loaded[0].items()
        )

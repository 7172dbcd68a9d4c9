# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Statistics over two gloo processes: those of one, every row counted once, and errors that all raise."""

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState

from hf_unlearn.errors import InputError
from hf_unlearn.structure import StructureMask, find_structures, mask_statistics, refine, summed_gradients
from tests.support.structures import bert, causal_batch, decoder, rows_of


pytestmark = pytest.mark.multi_process


def measure(batches, state=None):
    model = decoder("Llama").model
    structures = find_structures(model)
    mask = StructureMask.random(structures, 0.5, seed=0)
    return (
        mask_statistics(model, batches, structures, blocks=True, accelerator=state),
        summed_gradients(model, batches, mask.names, accelerator=state),
        refine(model, batches, mask, 0.8, accelerator=state),
    )


def both():
    AcceleratorState._reset_state(True)  # that of the process which started this one
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    rows = rows_of(causal_batch(rows=3)) + rows_of(causal_batch(rows=4, seed=5))
    for batches in (rows, rows[:1]):  # seven: one process has a batch more; one: the other has none
        masks, gradients, refined = measure(batches, state)
        alone, expected, mask = measure(batches)
        assert masks.counts == alone.counts and masks.counts.samples == len(batches)
        for key in masks.gradients:
            assert torch.allclose(masks.gradients[key], alone.gradients[key])
            assert torch.allclose(masks.fisher(key), alone.fisher(key))
            assert torch.allclose(masks.block(key), alone.block(key))
        assert all(torch.allclose(gradients[name], expected[name]) for name in expected)
        assert refined.hash == mask.hash
    case = bert()
    wrong = {**case.batch, "labels": torch.tensor([0, 9, 1])}
    for batches in ([case.batch, wrong], [wrong, case.batch]):
        with pytest.raises(InputError, match=r"process \d of 2: a label of the data is 9"):
            mask_statistics(case.model, batches, find_structures(case.model), accelerator=state)


def test_two_processes_measure_what_one_does():
    debug_launcher(both, num_processes=2)

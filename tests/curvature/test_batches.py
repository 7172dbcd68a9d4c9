# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows that count: prompts do, last tokens, padding and sequences without labels do not."""

import torch

from hf_unlearn.curvature import EKFAC, KFAC
from tests.support.curvature import assert_same, batches, fit_columns, ragged
from tests.support.curvature_cases import NAME, small_llama


def test_prompts_enter_a_and_last_tokens_do_not():
    """A by hand: the inputs of gate_proj at every real token but the last of each sequence."""
    model = small_llama()
    ids, labels, mask = ragged(vocab=11)
    inputs = []
    handle = model.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    handle.remove()
    rows = torch.cat([row[: int(length) - 1] for row, length in zip(inputs[0], mask.sum(1))])
    curvature = KFAC().fit(model, batches(ids, labels, mask=mask), progress=False)
    name = NAME.format(0, "gate_proj")
    q_in, _ = curvature._both("vectors", name)
    values = curvature.tensors[f"values.input.{curvature.metadata['targets'][name]['input']}"]
    torch.testing.assert_close(q_in @ torch.diag(values) @ q_in.T, rows.T @ rows / len(rows), rtol=1e-6, atol=1e-9)


def test_labels_and_tokens_at_padding_do_not_count(model, data):
    ids, labels, mask = data
    reference = fit_columns(model, data)
    noisy = (torch.where(mask.bool(), ids, 7), torch.where(mask.bool(), labels, 5), mask)
    assert_same(reference, fit_columns(model, noisy), tolerance=1e-12)


def test_sequences_without_labels_do_not_count_but_keep_their_place(model, data):
    ids, labels, mask = data
    silent = labels.clone()
    silent[1:4] = -100
    together = fit_columns(model, (ids, silent, mask), size=5)
    assert together.metadata["sequences"] == 2
    assert_same(together, fit_columns(model, (ids, silent, mask), size=1))


def test_missing_attention_mask_means_all_real(model):
    ids = torch.randint(3, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    with_mask = fit_columns(model, (ids, ids, torch.ones_like(ids)))
    assert_same(with_mask, EKFAC().fit(model, batches(ids), progress=False), tolerance=1e-12)

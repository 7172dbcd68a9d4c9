# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature against dense oracles on tiny fp64 models: autograd Jacobians, no hooks, no Kronecker structure."""

import math

import pytest
import torch
from torch.func import functional_call, jacrev

from hf_unlearn.curvature import EKFAC, KFAC, Curvature, Diagonal, Identity, make_curvature, select_targets
from hf_unlearn.curvature import fisher as fisher_module
from hf_unlearn.curvature.fisher import draw_noise
from hf_unlearn.errors import InputError, NumericalError


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


def flat_jacobian(model, name, inputs):
    """d logits (T, V) / d weight, flattened to (T, V, d_out * d_in), for one sequence."""
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def logits(weight):
        return functional_call(model, parameters | {name: weight}, (), inputs).logits[0]

    jacobian = jacrev(logits)(parameters[name])
    return jacobian.reshape(*jacobian.shape[:2], -1), logits(parameters[name])


def dense_block(model, name, data):
    """Exact Gauss-Newton block, per predicted token: (1 / N) sum over tokens of J^T (diag p - p p^T) J; and N."""
    total, tokens = 0.0, 0
    for ids, labels, mask in zip(*data):
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        jacobian, logits = flat_jacobian(model, name, inputs)
        for place in range(len(ids) - 1):
            if labels[place + 1] == -100 or not mask[place] or not mask[place + 1]:
                continue
            p = logits[place].softmax(-1)
            total = total + jacobian[place].T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian[place]
            tokens += 1
    return total / tokens, tokens


def block_of(curvature, name):
    """The fitted block as a dense (d_out * d_in) matrix, row-major like weight.flatten()."""
    q_in, q_out = curvature._bases(name)
    basis = torch.kron(q_out, q_in)
    return basis @ torch.diag(curvature._eigenvalues(name).flatten()) @ basis.T


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(vocab_size=11, hidden_size=4, intermediate_size=6, heads=1, initializer_range=0.4).double()


# Llama computes its norms in fp32 even in fp64, so oracles through the model agree to this and no better.
CLOSE = {"rtol": 1e-5, "atol": 1e-8}
NAME = "model.layers.{}.mlp.{}.weight"


def test_one_position_and_one_token_is_the_exact_block(model):
    ids = torch.tensor([[4, 7]])
    curvature = KFAC().fit(model, batches(ids), fisher="exact", progress=False)
    assert curvature.metadata["predicted_tokens"] == 1 and len(curvature.names) == 6
    for name in curvature.names:
        expected, _ = dense_block(model, name, (ids, ids, torch.ones_like(ids)))
        torch.testing.assert_close(block_of(curvature, name), expected, **CLOSE)


def test_ekfac_eigenvalues_are_the_dense_diagonal_in_the_eigenbasis(model):
    data = ragged(vocab=11)
    curvature = EKFAC().fit(model, batches(*data[:2], mask=data[2]), fisher="exact", progress=False)
    diagonal = Diagonal().fit(model, batches(*data[:2], mask=data[2]), fisher="exact", progress=False)
    for name in (NAME.format(0, "down_proj"), NAME.format(0, "up_proj"), NAME.format(1, "gate_proj")):
        expected, tokens = dense_block(model, name, data)
        assert curvature.metadata["predicted_tokens"] == tokens == diagonal.metadata["predicted_tokens"]
        basis = torch.kron(*reversed(curvature._bases(name)))
        torch.testing.assert_close(
            curvature._eigenvalues(name).flatten(), (basis.T @ expected @ basis).diagonal(), **CLOSE
        )
        torch.testing.assert_close(diagonal._eigenvalues(name).flatten(), expected.diagonal(), **CLOSE)

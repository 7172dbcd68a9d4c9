# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Token KL against a naive computation from full logits."""

import copy
import json

import numpy as np
import pytest
import torch

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation import scoring
from hf_unlearn.evaluation.specificity import TokenKL
from tests.support.divergence import batches, changed, sharp_llama
from tests.support.models import make_llama


def naive(reference, model, data):
    """KL per token (list per row) and NLL from full fp64 logits, one row at a time without padding."""
    per_row, losses = [], []
    for batch in data:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            length = int(mask.sum())
            with torch.no_grad():
                p, q = (m(input_ids=ids[None, :length]).logits[0].double().log_softmax(-1) for m in (reference, model))
            row = []
            for t in range(1, length):
                if labels[t] != -100:
                    row.append(sum((p[t - 1].exp() * (p[t - 1] - q[t - 1])).tolist()))
                    losses.append(-q[t - 1, ids[t]].item())
            if row:
                per_row.append(row)
    return per_row, float(np.mean(losses))


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
@pytest.mark.parametrize("budget", [2**22, 700])
def test_equals_a_naive_computation(cache_bytes, budget, monkeypatch):
    monkeypatch.setitem(scoring.LOGIT_BUDGET, "cpu", budget)
    monkeypatch.setitem(scoring.REDUCTION_BUDGET, "cpu", budget // 6)
    reference = sharp_llama()
    model = changed(reference)
    measure = TokenKL(reference, batches(), cache_bytes)
    assert measure.cached == (cache_bytes > 0)
    result = measure(model)
    per_row, nll = naive(reference, model, batches())
    flat = np.concatenate(per_row)
    assert flat.mean() > 0.01 and len(per_row) == 8
    assert result.tokens == len(flat) == len(result.per_token)
    assert result.per_token.dtype == torch.float32 and result.per_token.device.type == "cpu"
    np.testing.assert_allclose(result.per_token, flat, atol=1e-5)
    np.testing.assert_allclose(result.per_sequence, [np.mean(row) for row in per_row], atol=1e-5)
    assert result.sequence_tokens.tolist() == [len(row) for row in per_row]
    assert result.mean == pytest.approx(flat.mean(), abs=1e-5)
    assert result.nll == pytest.approx(nll, abs=1e-5)
    assert result.reference_nll == pytest.approx(naive(reference, reference, batches())[1], abs=1e-5)
    median, most = result.quantile_bands((0.5, 1.0), resamples=2)[0]
    assert median == pytest.approx(np.median(flat), abs=1e-5) and most == pytest.approx(flat.max(), abs=1e-5)


def test_direction():
    reference = sharp_llama()
    model = changed(reference, 0.5)
    forward = TokenKL(reference, batches())(model).mean
    backward = TokenKL(model, batches())(reference).mean
    assert forward == pytest.approx(np.concatenate(naive(reference, model, batches())[0]).mean(), abs=1e-5)
    assert abs(forward - backward) > 1e-2


@pytest.mark.parametrize("cache_bytes", [2**30, 0])
def test_a_model_against_itself_is_exactly_zero(cache_bytes):
    reference = sharp_llama()
    result = TokenKL(reference, batches(), cache_bytes)(copy.deepcopy(reference))
    assert result.mean == 0 and result.per_token.abs().max() == 0 and result.interval == (0, 0)


def test_tiny_divergences_are_never_negative():
    reference = sharp_llama()
    result = TokenKL(reference, batches())(changed(reference, 1e-6))
    assert result.per_token.min() >= 0


def test_double_precision():
    reference = sharp_llama().double()
    model = changed(reference, 1e-4)
    result = TokenKL(reference, batches())(model)
    expected = np.concatenate(naive(reference, model, batches())[0]).mean()
    assert expected < 1e-4
    assert result.mean == pytest.approx(expected, rel=1e-7)


def test_a_cached_reference_may_change_in_place():
    reference = sharp_llama()
    original, model = copy.deepcopy(reference), changed(reference)
    measure = TokenKL(reference, batches())
    with torch.no_grad():
        reference.lm_head.weight.zero_()
    assert measure(model).mean == TokenKL(original, batches())(model).mean
    uncached = TokenKL(original, batches(), cache_bytes=0)
    with torch.no_grad():
        original.lm_head.weight.mul_(1.1)
    with pytest.raises(InputError, match="reference model has changed"):
        uncached(original)


def test_the_loader_is_read_once():
    """A shuffling loader gives another order every time it is read; the reference must stay aligned."""
    data = batches()

    class Shuffling:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter(data if self.reads == 1 else data[::-1])

    reference = sharp_llama()
    model, loader = changed(reference), Shuffling()
    measure = TokenKL(reference, loader)
    assert measure(model).mean == measure(model).mean == TokenKL(reference, data)(model).mean
    assert loader.reads == 1


def test_bootstrap_interval():
    reference = sharp_llama()
    measure = TokenKL(reference, batches(rows=24))
    model = changed(reference)
    result = measure(model)
    low, high = result.interval
    assert low < result.mean < high
    assert measure(model).interval == result.interval != measure(model, seed=5).interval
    # The delta-method standard error of a ratio of means; the percentile interval is about +-1.96 of it.
    n = result.sequence_tokens.double()
    spread = (result.per_sequence - result.mean) * n
    error = spread.pow(2).sum().sqrt().item() / n.sum().item()
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_state_is_restored():
    reference, model = sharp_llama(), sharp_llama(seed=1)
    reference.train()
    model.train()
    model.model.layers[1].eval()
    for cache_bytes in (0, 2**30):
        TokenKL(reference, batches(), cache_bytes)(model)
        assert torch.is_grad_enabled()
        assert reference.training and model.training and not model.model.layers[1].mlp.training
    assert not model.lm_head._forward_pre_hooks


def test_bad_input():
    reference = sharp_llama()
    empty = [{**batch, "labels": torch.full_like(batch["labels"], -100)} for batch in batches()]
    for data in ([], empty):
        with pytest.raises(InputError, match="no token to measure KL on"):
            TokenKL(reference, data)
    with pytest.raises(InputError, match="60 tokens, the reference 50"):
        TokenKL(reference, batches())(make_llama(vocab_size=60))
    broken = sharp_llama()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(NumericalError, match="diverged"):
        TokenKL(reference, batches())(broken)
    assert torch.is_grad_enabled()


def test_bands_of_a_result():
    reference = sharp_llama()
    result = TokenKL(reference, batches(rows=30))(changed(reference))
    point, low, high = result.quantile_bands((0.1, 0.5, 0.9))
    np.testing.assert_allclose(point, np.quantile(result.per_token, (0.1, 0.5, 0.9)), rtol=1e-6)
    assert (low < point).all() and (point < high).all()
    point, low, high = result.quantile_bands((0.5,), "sequences")
    assert point[0] == pytest.approx(np.median(result.per_sequence)) and low[0] < point[0] < high[0]
    row = result.table_row()
    assert json.loads(json.dumps(row)) == row
    assert row["mean"] == result.mean and row["completions"] == 29 and row["approximation"] is None
    assert row["q90"] == pytest.approx(np.quantile(result.per_token, 0.9))
    assert row["median_interval"][0] < row["median"] < row["median_interval"][1]
    assert row["nll_change"] == result.nll - result.reference_nll
    for bad in ((1.2,), (-0.1, 0.5)):
        with pytest.raises(InputError, match="between 0 and 1"):
            result.quantile_bands(bad)
    with pytest.raises(InputError, match="tokens or sequences"):
        result.quantile_bands((0.5,), "rows")

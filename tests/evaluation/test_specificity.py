# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Token KL against a naive computation from full logits."""

import copy
import json

import numpy as np
import pytest
import torch

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation import scoring
from hf_unlearn.evaluation.bootstrap import quantile_bands
from hf_unlearn.evaluation.specificity import TokenKL
from hf_unlearn.evaluation.top_k import divergences, keep_top
from tests.support.models import make_llama


def sharp_llama(**kwargs):
    model = make_llama(**kwargs)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


def changed(model, scale=0.1, seed=1):
    """A copy of a model with every weight moved by a relative `scale`."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            weight.add_(noise * scale * weight.abs().mean())
    return model


def batches(rows=9, batch_size=4, seed=0):
    """Rows of unlike length: prompts labelled -100, labelled padding that must not count, one row without answer."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for start in range(0, rows, batch_size):
        n, width = min(batch_size, rows - start), 14
        ids = torch.randint(3, 50, (n, width), generator=generator)
        mask, labels = torch.ones_like(ids), ids.clone()
        for i in range(n):
            length = int(torch.randint(7, width + 1, (), generator=generator))
            prompt = int(torch.randint(1, 5, (), generator=generator))
            mask[i, length:] = 0
            ids[i, length:] = 0
            labels[i, :prompt] = -100
        if start == 0:
            labels[1] = -100
        result.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return result


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
    quantiles = result.quantiles((0.5, 1.0))
    assert quantiles[1.0] == pytest.approx(flat.max(), abs=1e-5)
    assert quantiles[0.5] == pytest.approx(np.median(flat), abs=1e-5)


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


# ---- an original remembered by its k most likely tokens -----------------------------------------------------------
def moderately_sharp():
    """Most mass on a few tokens, as in a language model, and a tail that matters at small k."""
    model = make_llama(tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(12)
    return model


@pytest.mark.parametrize("budget", [2**19, 120])
def test_top_k_brackets_the_exact_value(budget, monkeypatch):
    monkeypatch.setitem(scoring.REDUCTION_BUDGET, "cpu", budget)
    reference = moderately_sharp()
    model = changed(reference, 0.4)
    data = batches(rows=40)
    exact = TokenKL(reference, data)(model)
    assert exact.approximation is None and exact.mean > 0.02
    gaps = []
    for k in (1, 4, 16, 40):
        measure = TokenKL(reference, data, top_k=k)
        assert measure.cached
        result = measure(model)
        about = result.approximation
        assert about.k == k and about.vocabulary == 50
        assert (result.per_token <= exact.per_token + 1e-5).all()
        assert result.mean <= exact.mean + 1e-6 and about.upper >= exact.mean - 1e-6
        assert abs(about.estimate - exact.mean) < 4 * about.estimate_error + 1e-6
        assert result.nll == exact.nll and result.reference_nll == exact.reference_nll
        gaps.append((exact.mean - result.mean, about.upper - exact.mean, 1 - about.covered, about.estimate_error))
    # More tokens kept, less left open, in every respect.
    assert all((np.diff(column) < 0).all() for column in np.transpose(gaps))
    assert gaps[0][0] > 0.05 and (np.array(gaps[-1]) < np.array(gaps[0]) / 20).all(), gaps


def test_top_k_bounds_hold_at_every_token():
    """Against sums over the vocabulary in fp64, in which the bound is made as its definition says."""
    p, q = (torch.randn(200, 30, generator=torch.Generator().manual_seed(i)) * 2 for i in (0, 1))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    kept = keep_top(p, 5, torch.Generator().manual_seed(0))
    lower, upper, estimate = divergences(kept, q)
    p, q = p.double(), q.double()
    exact = (p.exp() * (p - q)).sum(-1)
    assert (lower <= exact + 1e-6).all() and (upper >= exact - 1e-6).all()
    ids = p.topk(5).indices
    head = (p.exp() * (p - q)).gather(1, ids).sum(-1)
    rest = torch.ones_like(p, dtype=torch.bool).scatter(1, ids, False)
    mass_p, mass_q = (torch.where(rest, x.exp(), 0).sum(-1) for x in (p, q))
    torch.testing.assert_close(lower, head + mass_p * (mass_p / mass_q).log(), atol=1e-5, rtol=1e-5)
    worst = torch.where(rest, -q, 0).amax(-1)
    plogp = torch.where(rest, p.exp() * p, 0).sum(-1)
    torch.testing.assert_close(upper, head + plogp + mass_p * worst, atol=1e-5, rtol=1e-5)
    assert rest.gather(1, kept.drawn.long()[:, None]).all()
    spread = (estimate - exact).std() / len(exact) ** 0.5
    assert abs((estimate - exact).mean()) < 4 * spread


def test_tokens_of_the_rest_are_drawn_as_often_as_they_are_likely():
    p = torch.tensor([0.5, 0.1, 0.2, 0.0, 0.05, 0.15]).log().expand(20000, 6)
    kept = keep_top(p, 2, torch.Generator().manual_seed(0))  # keeps 0.5 and 0.2
    share = torch.bincount(kept.drawn, minlength=6) / len(p)
    torch.testing.assert_close(share, torch.tensor([0, 1 / 3, 0, 0, 1 / 6, 1 / 2]), atol=0.015, rtol=0)
    torch.testing.assert_close(kept.rest.exp(), torch.full((20000,), 0.3))


def test_all_but_one_token_kept_is_exact():
    reference = sharp_llama()
    model = changed(reference)
    exact = TokenKL(reference, batches())(model)
    result = TokenKL(reference, batches(), top_k=1000)(model)
    assert result.approximation.k == 49
    np.testing.assert_allclose(result.per_token, exact.per_token, atol=1e-5)
    assert result.approximation.upper == pytest.approx(exact.mean, abs=1e-5)
    assert result.approximation.estimate == pytest.approx(exact.mean, abs=1e-5)


@pytest.mark.parametrize("k", [1, 7, 49])
def test_top_k_of_a_model_with_itself_is_exactly_zero(k):
    reference = sharp_llama()
    result = TokenKL(reference, batches(), top_k=k)(copy.deepcopy(reference))
    assert result.mean == 0 and result.per_token.abs().max() == 0
    assert result.approximation.estimate == 0 <= result.approximation.upper


def test_top_k_where_the_vocabulary_is_masked():
    """Entries of -inf are no NaN, in the kept tokens (k = 40 of 30 possible) or in the rest."""
    p = torch.randn(8, 50).index_fill(1, torch.arange(30, 50), float("-inf")).log_softmax(-1).clamp_min(-1e4)
    for k in (3, 40):
        kept = keep_top(p, k, torch.Generator().manual_seed(0))
        assert torch.equal(divergences(kept, p)[0], torch.zeros(8, dtype=torch.float64))
        assert torch.isfinite(divergences(kept, torch.zeros(8, 50).log_softmax(-1))).all()


def test_auto_keeps_what_fits():
    reference = sharp_llama()
    data = batches()
    tokens = TokenKL(reference, data).tokens
    assert TokenKL(reference, data, top_k="auto").top_k is None  # all of it fits: exact
    for budget in (tokens * 50 * 4 - 1, tokens * 100, tokens * 24):
        measure = TokenKL(reference, data, budget, top_k="auto")
        held = sum(tensor.nbytes for kept in measure._cache for tensor in kept)
        assert measure.cached and held <= budget < held + 8 * tokens
    # The original may change afterwards: nothing of it is needed any more.
    original = copy.deepcopy(reference)
    with torch.no_grad():
        reference.lm_head.weight.zero_()
    assert measure(original).mean == 0
    with pytest.raises(InputError, match="holds no token of the original"):
        TokenKL(original, data, tokens * 23, top_k="auto")
    for bad in (0, "all", 1.5):
        with pytest.raises(InputError, match="top_k="):
            TokenKL(original, data, top_k=bad)


# ---- quantiles and their bands --------------------------------------------------------------------------------------
def test_quantile_bands_resample_whole_sequences():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 6, size=40)
    values = np.concatenate([generator.exponential(size=n) * generator.exponential() for n in tokens])
    levels = (0.0, 0.3, 0.5, 0.9, 1.0)
    bands = quantile_bands(values, tokens, levels, seed=3, resamples=300)
    np.testing.assert_allclose(bands[0], np.quantile(values, levels))
    # The same resamples, each written out and sorted.
    sequences, generator, drawn = np.split(values, np.cumsum(tokens)[:-1]), np.random.default_rng(3), []
    for _ in range(300):
        sample = np.concatenate([sequences[i] for i in generator.integers(40, size=40)])
        drawn.append(np.quantile(sample, levels))
    np.testing.assert_allclose(bands[1:], np.quantile(drawn, [0.025, 0.975], axis=0), atol=1e-12)
    assert (bands[1] <= bands[0]).all() and (bands[0] <= bands[2]).all()


def test_bands_cover_the_true_median():
    """Nominal 95 %: of 100 samples of independent sequences, 88 to 99 bands hold the truth."""
    held = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(size=80)
        _, low, high = quantile_bands(values, np.ones(80, dtype=int), [0.5], seed=seed, resamples=200)[:, 0]
        held += low <= np.log(2) <= high
    assert 88 <= held <= 99


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

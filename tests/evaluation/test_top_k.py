# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""An original remembered by its k most likely tokens, against the exact divergence."""

import copy

import numpy as np
import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.evaluation import scoring
from hf_unlearn.evaluation.specificity import TokenKL
from hf_unlearn.evaluation.top_k import divergences, keep_top
from tests.support.divergence import batches, changed, sharp_llama
from tests.support.models import make_llama


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

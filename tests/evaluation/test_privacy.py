# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Membership scores and the KS test against brute force, scipy and published per-item values."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
from scipy import stats

from hf_unlearn.errors import InputError
from hf_unlearn.evaluation import privacy
from hf_unlearn.evaluation.tofu import read_log
from tests.support.models import make_llama


def test_zlib_scores_of_a_published_log(shared_data):
    import gzip

    log = read_log(
        shared_data / "tofu_evals" / "open_unlearning" / "tofu_Llama-3.2-1B-Instruct_full_forget01_EVAL.json.gz"
    )
    for part in ("forget", "holdout"):
        rows = [json.loads(line) for line in gzip.open(shared_data / "tofu" / f"{part}01.jsonl.gz")]
        for index, printed in log["mia_zlib"][part]["value_by_index"].items():
            loss = log["mia_loss"][part]["value_by_index"][index]["score"]
            score = privacy.zlib_score(loss, rows[int(index)]["answer"])
            assert score == pytest.approx(printed["score"], rel=1e-6)
    assert privacy.zlib_score(2.0, "ąę") == 2.0 / len(zlib.compress("ąę".encode()))


def test_min_k():
    log_probs = [-1.0, -5.0, -2.0, -4.0, -3.0]
    assert privacy.min_k(log_probs) == 4.5  # int(0.4 * 5) = 2 lowest
    assert privacy.min_k(log_probs, 0.1) == 5.0  # at least one
    assert privacy.min_k([]) is None
    mean, variance = [-2.0] * 5, [4.0, 1.0, 4.0, 1e-9, 4.0]
    # z = 0.5, -3, 0, -2 / 1e-3 (variance clamped at 1e-6), -0.5
    assert privacy.min_k_plus_plus(log_probs, mean, variance) == pytest.approx((2000 + 3) / 2)


def test_auc_by_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(20):
        forget, holdout = generator.integers(0, 6, 7).tolist(), generator.integers(0, 6, 5).tolist()
        pairs = [(f < h) + 0.5 * (f == h) for f in forget for h in holdout]
        assert privacy.auc(forget, holdout) == pytest.approx(np.mean(pairs))
    assert privacy.auc([0.1, None], [0.2, 0.3]) == 1
    assert privacy.auc([None], [0.2]) is None


def test_privleak():
    assert privacy.privleak(1.0, 0.5) == pytest.approx(-100)
    assert privacy.privleak(0.4, 0.4) == 0
    assert privacy.privleak(0.1, 0.4) == pytest.approx(50)
    assert privacy.privleak(0.38261249999999997) == pytest.approx(23.4775)


@pytest.mark.parametrize("n, m", [(40, 40), (7, 7), (300, 300), (20, 31)])
def test_ks_equals_scipy(n, m):
    generator = np.random.default_rng(n)
    for shift in (0.0, 0.4, 1.0):
        a, b = np.round(generator.normal(size=n), 2), np.round(generator.normal(size=m) + shift, 2)  # with ties
        expected = stats.ks_2samp(a, b)
        test = privacy.ks_test(a, b)
        assert test.statistic == pytest.approx(expected.statistic, abs=1e-12)
        assert test.pvalue == pytest.approx(expected.pvalue, rel=1e-6)
        assert test.log10_pvalue == pytest.approx(math.log10(expected.pvalue), abs=1e-6)


def test_ks_grid_and_floor():
    """The values of n = 40 that appear in papers, and the floors 2 / C(2n, n)."""
    sample = lambda d: (list(range(40)), [*range(d, 40), *range(100, 100 + d)])
    for d, pvalue in {15: 6.76e-3, 16: 3.018e-3, 17: 1.2708e-3, 18: 5.04e-4, 19: 1.88e-4}.items():
        test = privacy.ks_test(*sample(d))
        assert (test.statistic, test.n) == (d / 40, 40)
        assert test.pvalue == pytest.approx(pvalue, rel=3e-3)
    for n, floor in {40: 1.86e-23, 200: 1.94e-119, 300: 1.48e-179, 400: 1.06e-239}.items():
        assert privacy.ks_test([0.0] * n, [1.0] * n).pvalue == pytest.approx(floor, rel=5e-3)
    same = privacy.ks_test([1.0, 2.0], [2.0, 1.0])
    assert (same.statistic, same.pvalue, same.log10_pvalue) == (0, 1, 0)
    unequal = privacy.ks_test([0.0] * 700, [1.0] * 699)
    assert -430 < unequal.log10_pvalue < -300 and unequal.statistic == 1
    with pytest.raises(InputError, match="both models"):
        privacy.ks_test([], [1.0])
    with pytest.raises(InputError, match="not finite"):
        privacy.ks_test([float("nan")], [1.0])


def test_gradient_norm():
    model = make_llama()
    model.model.embed_tokens.weight.requires_grad_(False)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    ids, predicted = [5, 6, 7, 8, 9], [False, False, True, True, False]
    found = privacy.gradient_norm(model, ids, predicted)
    assert not model.model.embed_tokens.weight.requires_grad
    assert bool((model.lm_head.weight.grad == 1).all())
    model.zero_grad()
    model.model.embed_tokens.weight.requires_grad_(True)
    logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    (-(logits[1, 7] + logits[2, 8]) / 2).backward()
    expected = np.mean([weight.grad.norm().item() for weight in model.parameters()])
    assert found == pytest.approx(expected, rel=1e-5)
    assert privacy.gradient_norm(model, ids, [False] * 5) is None

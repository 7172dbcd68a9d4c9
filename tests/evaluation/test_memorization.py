# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Metric formulae against brute force on toy numbers and against published per-item values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from hf_unlearn.evaluation import memorization
from hf_unlearn.evaluation.tofu import read_log


def test_extraction_strength_by_brute_force():
    """Every pattern of right and wrong up to 8 tokens, against the definition of open-unlearning read literally."""
    for n in range(1, 9):
        for correct in itertools.product([False, True], repeat=n):
            for k in range(n):
                if all(correct[k:]):
                    break
            assert memorization.extraction_strength(correct) == 1 - k / n
            assert memorization.exact_memorization(np.array(correct)) == sum(correct) / n
    assert memorization.extraction_strength([False]) == memorization.extraction_strength([True]) == 1  # floor 1/n
    assert memorization.extraction_strength([]) == 0
    assert memorization.exact_memorization([]) is None


def test_truth_ratio_by_hand():
    # Geometric mean of the wrong answers 1/4 and 1/16 is 1/8; the right one has 1/2.
    assert memorization.truth_ratio(math.log(2), [math.log(4), math.log(16)]) == pytest.approx(0.25)
    assert memorization.forget_truth_ratio_mean([0.25, 4.0, None, 1.0]) == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert memorization.retain_truth_ratio_mean([0.25, 4.0, None]) == pytest.approx(0.375)
    assert memorization.normalised_probability(0.2, [0.1, 0.1]) == pytest.approx(0.5)
    assert memorization.probability(math.log(2)) == pytest.approx(0.5)
    assert memorization.mean([None]) is None


def test_harmonic_mean():
    values = [0.2, 0.5, 0.9]
    assert memorization.harmonic_mean(values) == pytest.approx(stats.hmean(values))
    assert memorization.harmonic_mean([*values, 0.0]) == 0
    assert memorization.harmonic_mean([*values, None]) is None


def test_per_item_values_of_a_published_log(shared_data):
    """Truth ratios, option probabilities and ROUGE from the losses and texts of one log."""
    log = read_log(
        shared_data / "tofu_evals" / "open_unlearning" / "tofu_Llama-3.2-1B-Instruct_full_forget10_EVAL.json.gz"
    )
    item = lambda name, index: log[name]["value_by_index"][index]
    for index, printed in log["forget_truth_ratio"]["value_by_index"].items():
        correct, wrong = item("forget_Q_A_PARA_Prob", index), item("forget_Q_A_PERT_Prob", index)
        ratio = memorization.truth_ratio(correct["avg_loss"], wrong["avg_loss"])
        assert ratio == pytest.approx(printed["score"], rel=1e-9)
        assert memorization.probability(correct["avg_loss"]) == pytest.approx(correct["prob"], rel=1e-5)
    for index, printed in log["wf_Truth_Ratio"]["value_by_index"].items():
        correct, wrong = item("wf_Q_A_Prob", index), item("wf_Q_A_PERT_Prob", index)
        ratio = memorization.truth_ratio(correct["avg_loss"], wrong["avg_loss"])
        assert ratio == pytest.approx(printed["score"], rel=1e-9)
        share = memorization.normalised_probability(correct["prob"], wrong["prob"])
        assert share == pytest.approx(item("wf_Q_A_Prob_normalised", index)["prob"], rel=1e-9)
    for name in ("forget_Q_A_ROUGE", "ra_Q_A_ROUGE"):
        for printed in log[name]["value_by_index"].values():
            for key, value in memorization.rouge(printed["ground_truth"], printed["generation"]).items():
                assert value == pytest.approx(printed[key], abs=1e-12)

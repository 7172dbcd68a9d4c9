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


@pytest.mark.parametrize(
    "text, changed, share",
    [
        ("彼女は蜂を飼う", "彼女は犬を飼う", 6 / 7),
        ("Она держала пчёл", "Она держала собак", 2 / 3),
        ("उसने मधुमक्खियाँ पालीं", "उसने पक्षी पालीं", 2 / 3),
        ("كانت تربي النحل", "كانت تربي الدجاج", 2 / 3),
        ("그녀는 벌을 키웠다", "그녀는 개를 키웠다", 2 / 3),
        ("เธอเลี้ยงผึ้ง", "เธอเลี้ยงผึ้ง", 1),
    ],
)
def test_rouge_of_other_scripts_counts_their_words(text, changed, share):
    assert set(memorization.rouge(text, text).values()) == {1.0}
    assert memorization.rouge(text, changed)["rougeL_recall"] == pytest.approx(share)
    assert memorization.rouge(text, "something else")["rougeL_recall"] == 0


def test_rouge_of_latin_text_is_that_of_rouge_score():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for truth, answer in [("The café's owners were running", "a cafe owner runs"), ("Chukwu Akabueze, 45", "45 彼女")]:
        theirs = scorer.score(truth, answer)
        assert memorization.rouge(truth, answer)["rougeL_f1"] == theirs["rougeL"].fmeasure
        assert memorization.rouge(truth, answer)["rouge1_recall"] == theirs["rouge1"].recall


def test_rouge_of_a_truth_without_words_is_no_number():
    assert set(memorization.rouge("?!", "?!").values()) == {None}
    assert memorization.rouge("a word", "") == {"rouge1_recall": 0.0, "rougeL_f1": 0.0, "rougeL_recall": 0.0}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import pytest

from hf_unlearn.report.tables import format_table
from hf_unlearn.report.vocabulary import (
    KINDS,
    ClassVocabulary,
    GlueVocabulary,
    TaskVocabulary,
    TofuVocabulary,
    vocabulary_of,
)
from tests.support.reports import CLASS_ROWS, GLUE_ROWS, TASK_ROWS, TOFU_ROWS, class_row, glue_row, tofu_row


def test_rows_tell_their_kind():
    for rows, kind in (
        *((TOFU_ROWS, TofuVocabulary), (TASK_ROWS, TaskVocabulary), (CLASS_ROWS, ClassVocabulary)),
        (GLUE_ROWS, GlueVocabulary),
    ):
        assert type(vocabulary_of(rows)) is kind
        assert [any(other.key in row for row in rows) for other in KINDS].count(True) == 1
        assert all(metric in row for row in rows[1:3] for metric in set(kind.metrics) - {"log10_forget_quality"})
    assert type(vocabulary_of([{"method": "ga", "note": "diverged"}])) is TofuVocabulary


def test_summary_of_tasks():
    summary = TaskVocabulary().summarise(TASK_ROWS)
    assert "answers toxins 85.0%" in summary and "kfade reaches the goal" in summary and "-2.0 points" in summary
    assert "also reached by npo at 0.3000 nats" in summary and "not reached by ga (lost 100%, general -55.0" in summary


def test_summary_of_several_seeds_is_of_their_means():
    runs = (("original", 1e-9, 0.8, 0.0), ("ekfac", 0.3, 0.76, 0.03), ("npo", 0.2, 0.7, 0.2))
    rows = [tofu_row(*run, seed=0) for run in runs] + [tofu_row(n, p, k, 2 * kl, seed=1) for n, p, k, kl in runs]
    summary = TofuVocabulary().summarise(rows)
    assert summary.startswith("80 rows were to be forgotten.") and "ekfac reaches 0.3 " in summary
    assert "KL 0.045 nats" in summary and "also reached by npo at 0.300 nats." in summary
    rows[-1]["forget_quality"] = 0.01
    assert "It is not reached by npo." in TofuVocabulary().summarise(rows)


# ---- class forgetting -----------------------------------------------------------------------------------------------
def candidate(forget, retain, epochs, full=100.0):
    return {"forget": forget, "retain": retain, "relearning_epochs": epochs, "full_retain": full}


def test_the_candidate_forgets_keeps_and_is_slow_to_relearn():
    vocabulary = ClassVocabulary()
    known, broken = candidate(40.0, 99.0, 5), candidate(0.0, 80.0, None)
    kept, slower, never = candidate(1.0, 98.0, 9), candidate(0.0, 97.1, 12), candidate(0.5, 97.0, None)
    assert vocabulary.choose([known, broken]) == 1
    assert vocabulary.choose([known, broken, kept]) == 2 and vocabulary.alike([known, broken, kept]) == [2]
    assert vocabulary.choose([kept, slower, broken]) == 1 and vocabulary.alike([kept, slower, broken]) == [0, 1]
    assert vocabulary.choose([kept, slower, never]) == 2
    # Where relearning was not measured the most of D_r decides.
    without = [
        {key: value for key, value in row.items() if key != "relearning_epochs"} for row in (slower, kept, never)
    ]
    assert vocabulary.choose(without) == 1
    diverged = dict.fromkeys(candidate(0, 0, 0)) | {"full_retain": 100.0}
    assert vocabulary.choose([diverged, known]) == 1 and vocabulary.choose([diverged]) == 0


@pytest.mark.parametrize(
    ("forget", "retain", "reached"), [(1.0, 97.0, True), (1.1, 99.0, False), (0.0, 96.9, False), (None, 99.0, False)]
)
def test_the_goal_is_at_most_one_percent_and_three_points(forget, retain, reached):
    vocabulary = ClassVocabulary()
    assert vocabulary.reached(candidate(forget, retain, 3)) is reached
    row = class_row("Fast-NTK", 100, 0, retain, forget, 80.0, 3)
    assert vocabulary.reached(row, class_row("Full", 100, 0, 100.0, 99.0, 90.0, None)) is reached
    assert not vocabulary.reached(row)  # without Full nobody knows what was kept


def test_rows_of_a_table_are_chosen_beside_the_full_model():
    rows = [class_row(str(epochs), 100, 0, retain, 0.0, 80.0, epochs) for retain, epochs in ((99.0, 9), (98.0, 12))]
    assert ClassVocabulary().choose(rows, class_row("Full", 100, 0, 100.0, 99.0, 90.0, None)) == 1
    assert ClassVocabulary().choose(rows, class_row("Full", 100, 0, 102.0, 99.0, 90.0, None)) == 0
    assert ClassVocabulary().choose(rows) == 0  # nobody knows what is enough: the one that kept most


def test_lines_are_compared_with_the_full_model_of_their_size_and_seed():
    lines = {(line.method, line.row["per_class"]): line for line in ClassVocabulary().lines(CLASS_ROWS)}
    assert len(lines) == 8 and not any(method.startswith("probe") for method, _ in lines)
    for (_, size), line in lines.items():
        assert [(run.row["seed"], run.original["seed"], run.original["per_class"]) for run in line.runs] == [
            (0, 0, size),
            (1, 1, size),
        ]
    # 97 of 99 with the first seed, 95 of 100 with the second: not with every seed.
    line = lines["Max Loss", 100]
    assert not line.reached and ClassVocabulary().reached(*line.runs[0]) and line.row["retain"] == 96.0
    assert lines["Fast-NTK, at w0", 100].reached
    assert [row["method"] for row in ClassVocabulary().methods(CLASS_ROWS)] == 4 * ["Max Loss", "Fast-NTK, at w0"]


def test_summary_of_classes():
    assert ClassVocabulary().summarise(CLASS_ROWS) == (
        "The goal is at most 1 % on D_f, with D_r within 3 points of Full. "
        "With 100 images per class it is reached by Fast-NTK, at w0, and not by Max Loss. The class comes back in "
        "10.0 epochs after Retrain; after Fast-NTK, at w0 in 8.0, 0.80 of that. "
        "With 500 images per class it is reached by Fast-NTK, at w0, and not by Max Loss. The class comes back in "
        "10.0 epochs after Retrain; after Fast-NTK, at w0 not within the limit."
    )
    rows = [row for row in CLASS_ROWS if row["per_class"] == 100 and row["method"] in ("Full", "Max Loss")]
    assert ClassVocabulary().summarise(rows).endswith("With 100 images per class no method reached it.")


# ---- rows of encoders -----------------------------------------------------------------------------------------------
def test_the_gap_is_a_mean_of_four():
    row = glue_row("FT", 88.0, 99.0, 77.0, 0.87)
    assert GlueVocabulary().gap(row) == pytest.approx((10 + 0.5 + 2.6 + 10) / 4)


@pytest.mark.parametrize(
    ("numbers", "reached"),
    [
        ((83.0, 90.0, 76.6, 0.85), True),
        ((83.1, 90.0, 76.6, 0.85), False),
        ((73.0, 90.0, 76.6, 0.69), True),  # as far below as above
        ((78.0, 90.0, 76.6, 0.68), False),
        ((78.0, 90.0, 76.5, 0.77), False),
        ((78.0, 90.0, 90.0, 0.77), True),
    ],
)
def test_the_goal_is_the_retrained_model_from_either_side(numbers, reached):
    vocabulary, row = GlueVocabulary(), glue_row("FT", *numbers)
    assert vocabulary.reached(row) is reached
    near, far = row | {"gap": 1.0}, glue_row("FT", 100.0, 100.0, 50.0, 1.0)
    assert vocabulary.choose([far, near]) == 1 and vocabulary.choose([near, far]) == 0
    diverged = dict.fromkeys(vocabulary.metrics) | {"method": "FT"}
    assert vocabulary.choose([diverged, far]) == 1 and vocabulary.choose([diverged]) == 0


def test_summary_and_table_of_rows():
    summary = GlueVocabulary().summarise(GLUE_ROWS)
    assert "The original model has UA 100.0 %" in summary and "EK-FAC comes nearest: UA 80.0 %" in summary
    assert "in 4 s against 40 s of retraining" in summary and "It is not reached by FT (gap 11.7)" in summary
    assert "retrained again" not in summary
    table = format_table(GLUE_ROWS)
    assert "UA (accuracy, %)" in table and "| **80.0** |" in table and "0.55 \\[0.40, 0.70\\]" in table
    several = [row | {"seed": seed} for seed in (0, 1) for row in GLUE_ROWS]
    assert "0.55 ± 0.00" in format_table(several) and "[0.40" not in format_table(several)


def test_exact_matches_have_columns_where_they_are_measured():
    exact = {"unlearning_exact": 61.5, "remaining_exact": 90.25, "testing_exact": 55.0}
    rows = [row | exact | {"metric": "f1"} for row in GLUE_ROWS]
    head, _, first, *_ = format_table(rows).splitlines()
    cells = dict(zip(head.split(" | "), first.split(" | "), strict=True))
    assert "UA (f1, %)" in cells and (cells["UA, exact (%)"], cells["TA, exact (%)"]) == ("61.5", "55.0")
    assert cells["RA, exact (%)"] in ("90.2", "90.3") and "exact" not in format_table(GLUE_ROWS)

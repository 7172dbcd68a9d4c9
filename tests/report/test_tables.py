# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import pytest

from hf_unlearn.evaluation.harness_scores import Score
from hf_unlearn.report.tables import format_table, markdown_table, score_table
from tests.support.reports import CLASS_ROWS, TASK_ROWS, TOFU_ROWS, task_row, tofu_row


def test_cells_are_escaped_and_aligned():
    assert markdown_table(["a", "b|c", "d"], [["x|y", "1", "2"]]).splitlines() == [
        "| a | b\\|c | d |",
        "|---|---:|---:|",
        "| x\\|y | 1 | 2 |",
    ]
    assert markdown_table(["a", "b", "c"], [], "lrl").splitlines()[1] == "|---|---:|---|"
    assert markdown_table(["a", "b", "c"], [], "ll").splitlines()[1] == "|---|---|---:|"


def test_table_of_methods():
    lines = format_table(TOFU_ROWS).splitlines()
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert lines[4] == "| ekfac | **0.33** | 0.200 (80) | 0.600 | 0.300 | 0.760 | 95.0 % | 0.0312 | 12.3 | 813 |"
    assert lines[2].split("|")[-3:-1] == [" – ", " – "]
    assert lines[6].startswith("| simnpo | – | – |")
    assert lines[-2:] == ["- ascent \\<b>: never reached 0.05 & more", "- simnpo: not scored"]


def test_table_of_tasks():
    lines = format_table(TASK_ROWS).splitlines()
    assert lines[0].startswith(
        "| method | lost (least) | toxins (%) | general (%) | KL (nats/token) | 95 % interval |"
    )
    assert lines[3] == "| kfade | **90 %** | 31.0 ± 3.0 | 93.0 ± 2.0 | 0.0200 | 0.0180 to 0.0220 | – | – |"
    assert "**" not in lines[5]  # at chance, but general knowledge is gone


def test_seeds_are_one_line_with_mean_and_deviation():
    runs = (("original", 1e-9, 0.8, 0.0), ("ekfac", 0.3, 0.76, 0.03), ("npo", 0.2, 0.7, 0.2))
    rows = [tofu_row(*run, seed=0) for run in runs]
    rows += [tofu_row(name, p, kept / 2, 2 * kl, seed=1, seconds=100.0) for name, p, kept, kl in runs]
    rows[-1]["forget_quality"] = 0.04
    lines = format_table(rows).splitlines()
    assert len(lines) == 2 + 3
    # Kept is a share of the original's of the same seed: both kept 95 %, whatever the seed.
    assert lines[3] == (
        "| ekfac | **0.3 ± 0** | 0.200 ± 0.000 (80) | 0.600 ± 0 | 0.300 ± 0 | 0.570 ± 0.190 | 95.0 ± 0.0 % | "
        "0.0450 ± 0.0150 | 56.2 ± 43.8 | 813 ± 0 |"
    )
    # The mean is above 0.05, but one seed is not: no mark.
    assert lines[4].startswith("| npo | 0.12 ± 0.08 |")


def test_seeds_stand_in_place_of_the_error_of_one_run():
    rows = [row | {"seed": 0} for row in TASK_ROWS] + [task_row("kfade", 0.37, 0.93, 0.04, seed=1)]
    with pytest.raises(StopIteration):
        next(line for line in format_table(rows).splitlines() if "interval" in line)
    assert (
        format_table(rows).splitlines()[3]
        == "| kfade | **85 ± 5 %** | 34.0 ± 3.0 | 93.0 ± 0.0 | 0.0300 ± 0.0100 | – | – |"
    )


def test_sizes_have_a_column():
    lines = format_table(CLASS_ROWS).splitlines()
    assert lines[0] == (
        "| method | images per class | D_r (%) | D_f (%) | hold-out (%) | epochs to relearn D_f | time (s) |"
    )
    assert lines[2] == "| Full | 100 | 99.5 ± 0.5 | 98.0 ± 0.0 | 90.0 ± 0.0 | – | 1.0 ± 0.0 |"
    assert lines[3] == "| Max Loss | 100 | 96.0 ± 1.0 | 0.0 ± 0.0 | 70.5 ± 0.5 | 4.5 ± 0.5 | 1.0 ± 0.0 |"
    assert lines[8] == "| Fast-NTK, at w0 | 500 | **98.5 ± 0.0** | 1.0 ± 0.0 | 81.0 ± 0.0 | >100 | 1.0 ± 0.0 |"
    assert len(lines) == 2 + 8 and "probe" not in format_table(CLASS_ROWS)
    (one,) = [line for line in format_table(CLASS_ROWS[:5]).splitlines() if line.startswith("| Max")]
    assert one == "| Max Loss | 100 | **97.0** | 0.0 | 70.0 | 4.0 | 1.0 |"


def test_table_of_scores():
    before = {"wmdp": Score(0.5, 0.01, 100, 0.25, "acc"), "words": Score(12.5, None, 7, None, "word_perplexity")}
    after = {"wmdp": Score(0.25, 0.02, 100, 0.25, "acc"), "words": Score(None, None, 7, None, "word_perplexity")}
    assert score_table({"before": before, "after": after}, ["wmdp", "words"]).splitlines() == [
        "| task | questions | chance | before | after | change |",
        "|---|---:|---:|---:|---:|---:|",
        "| wmdp | 100 | 25.0 % | 50.0 ± 1.0 % | 25.0 ± 2.0 % | -25.0 % |",
        "| words (word_perplexity) | 7 | – | 12.5 | – | – |",
    ]
    assert score_table({"model": before}, ["wmdp"]).splitlines()[0] == "| task | questions | chance | model |"

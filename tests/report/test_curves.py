# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curves over a setting: where points lie, what stands at the axes, a dark page, the table beside."""

import numpy as np
import pytest

from hf_unlearn.report.curves import curve_plot, curve_section
from hf_unlearn.report.styles import turn_dark
from hf_unlearn.report.vocabulary import GlueVocabulary, TofuVocabulary
from tests.support.reports import GLUE_ROWS, TOFU_ROWS, glue_row


POINTS = {
    "all": {"0.5": [glue_row("a", 80.0, 90.0, 70.0, 0.8), glue_row("a", 90.0, 94.0, 74.0, 0.8)],
            "0.9": [glue_row("a", 70.0, 80.0, 60.0, 0.8)]},
    "heads": {"0.9": [glue_row("b", 60.0, 70.0, 50.0, 0.8)]},
}  # fmt: skip


def test_points_lie_at_equal_distances_with_means_over_seeds():
    figure = curve_plot(POINTS, GlueVocabulary().curves(), x="sparsity", places=["0", "0.5", "0.9"])
    ua, _, ta, _ = figure.axes
    first, second = (container for container in ua.containers)
    assert first.lines[0].get_xdata() == pytest.approx([1, 2], abs=0.1)
    assert list(first.lines[0].get_ydata()) == [85, 70] and list(second.lines[0].get_ydata()) == [60]
    (bars,) = first.lines[2]  # of the deviation over two seeds; where there is one it has no length
    assert [np.ptp(segment[:, 1]) for segment in bars.get_segments()] == [10, 0] and not second.lines[2]
    assert list(ta.containers[0].lines[0].get_ydata()) == [72, 60]
    assert [tick.get_text() for tick in ua.get_xticklabels()] == ["0", "0.5", "0.9"]
    assert ua.get_xlabel() == "sparsity" and "%" in ua.get_ylabel() and "as retrained" in ua.get_ylabel()
    turn_dark(figure)
    figure.draw_without_rendering()


def test_a_section_has_the_references_as_level_lines():
    section = curve_section(POINTS, GLUE_ROWS, name="x.png", title="Sweep", x="sparsity", places=["0.5", "0.9"])
    assert section.header[:3] == ["sparsity", "method", "UA: score on the forget rows, %"]
    assert [row[:2] for row in section.table] == [
        ["0.5", "all"], ["0.5", "original"], ["0.5", "retrained"],
        ["0.9", "all"], ["0.9", "heads"], ["0.9", "original"], ["0.9", "retrained"],
    ]  # fmt: skip
    assert section.table[0][2] == "85.000 ± 5.000" and section.table[3][2] == "70.000"
    level = section.figure.axes[0].containers[-1].lines[0].get_ydata()
    assert len(set(level)) == 1 and len(level) == 2
    assert "all at 0.9: 70.000" in section.alt


def test_other_tables_have_curves_of_what_their_frontier_shows():
    rows = [row for row in TOFU_ROWS if row["method"] in ("original", "retrained")]
    section = curve_section({"x": {"1": [TOFU_ROWS[2]], "2": [TOFU_ROWS[4]]}}, rows, name="x.png", title="Sweep",
                            x="damping", places=["1", "2"])  # fmt: skip
    labels = [ax.get_ylabel() for ax in section.figure.axes]
    assert len(labels) == len(TofuVocabulary().curves()) and not any("further right" in label for label in labels)

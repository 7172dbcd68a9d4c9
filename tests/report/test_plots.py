# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest

from hf_unlearn.report.class_tables import METRICS
from hf_unlearn.report.plots import class_bars, kl_distribution, kl_quantile_plot, mask_plot, pareto, relearn_plot
from hf_unlearn.report.styles import styles
from hf_unlearn.report.vocabulary import ClassVocabulary, TaskVocabulary, TofuVocabulary
from tests.support.divergence import result_of
from tests.support.reports import CLASS_ROWS, attacks, task_row, tofu_row


def test_pareto_shows_every_setting_where_it_belongs():
    rows = [tofu_row("original", 1e-9, 0.8, 0.0), tofu_row("ekfac", 0.1, 0.76, 0.03), tofu_row("npo", 1e-4, 0.4, 0.3)]
    candidates = [tofu_row("ekfac", 1e-3, 0.78, 0.01), tofu_row("ekfac", 0.1, 0.76, 0.03)]
    kept, kl, *others = pareto(rows, candidates, TofuVocabulary()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in kept.collections]
    assert points == [pytest.approx(point) for point in ((100, -9), (95, -1), (50, -4))]
    points = [tuple(collection.get_offsets()[0]) for collection in kl.collections]
    assert points == [pytest.approx(point) for point in ((0, -9), (0.03, -1), (0.3, -4))]
    (line,) = [line for line in kl.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.01, 0.03] and list(line.get_ydata()) == pytest.approx([-3, -1])
    assert kept.get_xlim()[0] < 50 and kept.get_xlim()[1] > 100 and kl.get_xlim()[0] < 0
    assert "%" in kept.get_xlabel() and "nats" in kl.get_xlabel() and "p-value" in kept.get_ylabel()


def test_frontier_of_tasks_shows_the_domain_that_lost_least():
    rows = [task_row("original", 0.85, 0.95, 0.0), task_row("kfade", 0.31, 0.93, 0.02)]
    rows[1]["lost"]["intrusion"] = 0.7
    general, kl = pareto(rows, [], TaskVocabulary()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in general.collections]
    assert points == [pytest.approx(point) for point in ((0, 0), (-2, 70))]
    points = [tuple(collection.get_offsets()[0]) for collection in kl.collections]
    assert points == [pytest.approx(point) for point in ((0, 0), (0.02, 70))]


def test_frontier_of_seeds_and_sizes():
    retain, holdout = pareto(CLASS_ROWS, [], ClassVocabulary()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in retain.collections]
    assert points[:3] == [pytest.approx(point) for point in ((99.5, 2), (96, 100), (98.5, 99))]
    assert len(points) == 8  # two sizes of four methods, each the mean of two seeds
    # Both sizes of a method lie together, and their note names both.
    assert [text.get_text() for text in retain.texts] == 4 * ["100, 500"]
    runs = [
        tofu_row("ekfac", p, kl=kl, seed=seed) for seed, p, kl in ((0, 1e-9, 0.01), (0, 0.3, 0.02), (1, 0.2, 0.04))
    ]
    *_, kl, _ = pareto([tofu_row("original", 1e-9, 0.8, 0.0, seed=0), runs[1], runs[2]], runs, TofuVocabulary()).axes
    # Candidates are joined within one search: one of two settings, one of a single one.
    paths = [line.get_xdata().tolist() for line in kl.lines if line.get_marker() == "o"]
    assert paths == [[0.01, 0.02], [0.04]]


def test_a_method_has_one_colour_in_all_pictures():
    methods = ["original", "ekfac", "npo"]
    (ax,) = kl_distribution({"npo": [0.1, 0.2]}, methods, TofuVocabulary()).axes
    look = styles(methods, ["original", "retrained"])
    assert ax.lines[0].get_color() == look["npo"]["color"] != styles(["npo"])["npo"]["color"]
    assert look["original"]["color"] == "black" != styles(methods)["original"]["color"]
    assert "mean 0.15" in ax.get_legend().get_texts()[0].get_text()


def marks(ax):
    """The reported points of a panel: places on paper in points, diameters, and whether they are filled."""
    ax.figure.draw_without_rendering()
    found = []
    for mark in ax.collections:
        place = ax.transData.transform(mark.get_offsets()[0]) * 72 / ax.figure.dpi
        found.append((place, mark.get_sizes()[0] ** 0.5, len(mark.get_facecolor()) > 0, mark.get_zorder()))
    return found


def test_no_mark_hides_another():
    """Nine lines, three of them on one point and two a little beside it: filled inside, rings outside."""
    places = [(0.1, 0.05), (0.1, 0.05), (0.1, 0.05), (0.102, 0.05), (0.1, 0.052), (0.5, 0.3), (0.6, 0.1), (0.7, 0.2)]
    rows = [tofu_row("original", 1e-9, 0.8, 0.0), tofu_row("retrained", 1.0, 0.8, 0.2)]
    rows += [tofu_row(f"method {number}", p, 0.8 - kl, kl) for number, (kl, p) in enumerate(places)]
    samples = {row["method"]: [0.001, 0.3 + 0.001 * place] for place, row in enumerate(rows)}
    distribution = kl_distribution(samples, [row["method"] for row in rows], TofuVocabulary())
    panels = pareto(rows, [], TofuVocabulary()).axes[:2]
    for ax in [*panels, *distribution.axes]:
        found = marks(ax)
        assert len(found) == len(rows)
        for i, (place, size, filled, order) in enumerate(found):
            for other, bigger, solid, above in found[i + 1 :]:
                if np.hypot(*(place - other)) < 10:
                    assert bigger > size + 2 and not solid and above < order
            assert filled or size > 11
        assert not any(mark.get_clip_on() for mark in ax.collections)
    for ax in panels:  # nothing is cut at the border of a panel, and the star at p = 1 lies below the upper one
        assert ax.transAxes.inverted().transform(ax.transData.transform(ax.collections[1].get_offsets()[0]))[1] < 0.99


def test_the_saved_line_is_named_in_the_picture():
    rows = [tofu_row("original", 1e-9, 0.8, 0.0), tofu_row("ekfac", 0.1, 0.76, 0.03, saved_as="model")]
    figure = pareto([*rows, tofu_row("npo", 1e-4, 0.4, 0.3)], [], TofuVocabulary())
    notes = [[text for text in ax.texts if text.get_text() == "saved"] for ax in figure.axes]
    assert [len(found) for found in notes] == [1, 1, 1] and notes[0][0].xy == pytest.approx((95, -1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["original", "ekfac: saved", "npo"]


def test_warped_axes_say_so():
    rows = [tofu_row("original", 1e-9, 0.8, 0.0), tofu_row("ekfac", 0.1, 0.76, 0.03)]
    tasks = [task_row("original", 0.85, 0.95, 0.0), task_row("kfade", 0.31, 0.93, 0.02)]
    results = {"kfade": result_of([[0.1, 0.2], [0.3]])}
    figures = [pareto(rows, [], TofuVocabulary()), pareto(tasks, [], TaskVocabulary()), kl_quantile_plot(results)]
    figures.append(kl_distribution({"npo": [0.1, 0.2]}, [], TaskVocabulary()))
    warped = 0
    for ax in [ax for figure in figures for ax in figure.axes]:
        for axis in (ax.xaxis, ax.yaxis):
            if axis.get_scale() != "linear" and axis.get_label_text():
                assert "scale" in axis.get_label_text()
                warped += 1
    assert warped == 8
    assert (
        "completion token" in figures[-1].axes[0].get_xlabel() and "retained" not in figures[-1].axes[0].get_ylabel()
    )


def test_any_name_can_be_drawn():
    names = ["$\\frac", "_hidden", "a$b$\nc", "x" * 200, "\u202eturned"]
    rows = [tofu_row("original", 1e-9, 0.8, 0.0), *(tofu_row(name, 0.1) for name in names)]
    figure = pareto(rows, [], TofuVocabulary())
    figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        len(shown) == 6
        and shown[1] == r"\$\frac"
        and shown[4].endswith("x…")
        and shown[2].endswith("_hidden")
        and "U+202E" in shown[-1]
    )
    kl_distribution({name: [0.1] for name in names}, names, TofuVocabulary()).draw_without_rendering()


def test_quantile_plot():
    generator = np.random.default_rng(0)
    results = {
        name: result_of([(scale * generator.exponential(size=9)).tolist() for _ in range(60)])
        for name, scale in (("kfade", 0.01), ("rmu", 0.2), ("unchanged", 0.0))
    }
    axes = kl_quantile_plot(results, ["npo", "kfade", "rmu", "unchanged"]).axes
    assert [line.get_label() for line in axes[0].lines] == list(results)
    for ax, values in zip(axes, (results["rmu"].per_sequence, results["rmu"].per_token)):
        x, y = ax.lines[1].get_data()
        np.testing.assert_allclose(y, np.quantile(values, x), rtol=1e-5)
        band = ax.collections[1].get_paths()[0].vertices[:, 1]
        assert band.min() < y[0] and ax.get_yscale() == "log" and ax.get_xscale() == "logit"
        # A method that changed nothing does not stretch the axis.
        assert 1e-6 < ax.get_ylim()[0] < y[0] < y[-1] < ax.get_ylim()[1]


def test_attacks_have_a_panel_and_methods_a_line():
    curves = attacks().curves
    axes = relearn_plot(curves, chance=0.25).axes
    assert [ax.get_title() for ax in axes] == [
        f"{attack}, learning rate {rate}" for attack in ("benign", "forget") for rate in ("0.001", "0.01")
    ]
    curve = next(c for c in curves if (c["method"], c["attack"], c["learning_rate"]) == ("kfade", "forget", 1e-2))
    line = next(line for line in axes[3].lines if line.get_label() == "kfade")
    assert line.get_xdata().tolist() == [0, 1, 2]
    assert line.get_ydata().tolist() == [scores["bio"] for scores in curve["scores"]]
    ends = [line.get_ydata()[0] for line in axes[3].lines if len(line.get_xdata()) == 1]
    assert ends == [curve["with_update"]["kfade"]["bio"], curves[-1]["with_update"]["none"]["bio"]]
    assert axes[0].get_ylabel().startswith("bio")


def test_bars_of_classes():
    vocabulary = ClassVocabulary()
    paper = {"name": "paper", "columns": [100], **{metric: {"Max Loss": [50.0]} for metric in METRICS}}
    figure = class_bars(vocabulary.lines(CLASS_ROWS), METRICS, vocabulary.references, paper)
    retain, forget, holdout, epochs = figure.axes
    assert [ax.get_title() for ax in figure.axes] == list(METRICS.values())
    assert [bar.get_height() for bar in retain.patches[:4]] == [99.5, 96.0, 98.5, 99.0]
    # The full model relearns nothing; what did not end in time is hatched.
    assert [bar.get_height() for bar in epochs.patches] == [4.5, 8, 10, 4.5, 100, 10]
    assert [bool(bar.get_hatch()) for bar in epochs.patches] == [False, False, False, False, True, False]
    assert len({bar.get_facecolor() for bar in retain.patches}) == 4
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["Full", "Max Loss", "Fast-NTK, at w0", "Retrain", "paper (paper)"]


def test_a_mask_shows_each_head_and_shares_of_filters():
    kept = [4, 5, 6, *range(100, 200)]
    sites = [
        {"layer": 0, "kind": "heads", "count": 4, "kept": [1]},
        {"layer": 0, "kind": "filters", "count": 256, "kept": kept},
        {"layer": 1, "kind": "heads", "count": 4, "kept": []},
        {"layer": 1, "kind": "filters", "count": 128, "kept": []},
    ]
    heads, filters = mask_plot(sites).axes
    blue = lambda mesh: [tuple(colour[:3]) != (0.9, 0.9, 0.9) for colour in mesh.get_facecolor()]
    assert [blue(mesh) for mesh in heads.collections] == [[False, True, False, False], [False] * 4]
    first, second = filters.collections
    cells = [sum(number // 4 == cell for number in kept) for cell in range(64)]
    assert blue(first) == [count > 0 for count in cells] and blue(second) == [False] * 32
    alphas = first.get_facecolor()[:, 3]
    assert alphas[1] == pytest.approx(0.15 + 0.85 * 3 / 4) and alphas[30] == pytest.approx(1)
    assert [text.get_text() for text in (*heads.texts, *filters.texts)] == [
        *("1 of 4", "0 of 4"),
        *("103 of 256", "0 of 128"),
    ]
    assert "4 a cell; fullest: 100 %" in filters.get_xlabel()
    (alone,) = mask_plot(sites[:1]).axes
    assert alone.get_xlabel() == "head (blue: kept)"

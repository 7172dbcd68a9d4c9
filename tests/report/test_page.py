# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.report.formats import format_number, format_p, format_settings
from hf_unlearn.report.page import Section, write_report
from hf_unlearn.report.plots import kl_distribution, pareto, styles
from hf_unlearn.report.tables import format_table
from hf_unlearn.report.vocabulary import TaskVocabulary, TofuVocabulary


def row(method, p, kept=0.9, kl=0.1, **more):
    return {
        "method": method,
        "forget_quality": p,
        "ks_statistic": 0.2,
        "n": 80,
        "model_utility": 0.6,
        "forget_probability": 0.3,
        "retain_probability": kept,
        "retain_kl": kl,
        "seconds": 12.34,
        "peak_memory_mb": 812.6,
        "settings": {"steps": 4, "step_norm": 0.004},
        **more,
    }


ROWS = [
    row("original", 3e-14, 0.8, 0.0, seconds=None, peak_memory_mb=None),
    row("retrained", 1.0, 0.82, 0.2),
    row("ekfac", 0.33, 0.76, 0.03125),
    row("ascent <b>", 0.0, 0.04, 4.2, note="never reached 0.05 & more"),
    row("simnpo", None, ks_statistic=None, n=None, note="not scored"),
]


def test_figures_are_written_as_a_reader_expects():
    assert [format_p(p) for p in (None, 0.0, 1e-13, 2.44e-4, 0.0612, 0.244, 0.999, 1.0)] == [
        "–",
        "<1e-12",
        "<1e-12",
        "2.4e-04",
        "0.061",
        "0.24",
        "1.0",
        "1.0",
    ]
    assert [format_number(x) for x in (None, 0.0, 0.6184, 2e-5)] == ["–", "0", "0.618", "2.0e-05"]
    assert format_settings({"a": {"b": [0.5, 1e-6]}, "c": []}) == "a (b 0.5, 1e-06), c none"
    assert format_settings({"steps": 4, "damping": 1e-6, "objective": "margin"}) == (
        "steps 4, damping 1e-06, objective margin"
    )


def test_markdown_table():
    lines = format_table(ROWS).splitlines()
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert lines[4] == "| ekfac | **0.33** | 0.200 (80) | 0.600 | 0.300 | 0.760 | 95.0 % | 0.0312 | 12.3 | 813 |"
    assert lines[2].split("|")[-3:-1] == [" – ", " – "]
    assert lines[6].startswith("| simnpo | – | – |")
    assert lines[-2:] == ["- ascent <b>: never reached 0.05 & more", "- simnpo: not scored"]


class Page(HTMLParser):
    """What a browser would make of the page: cells by row, images, and everything it would fetch."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.fetched, self.cell = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        elif tag == "img":
            self.images.append(attributes["src"])
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


def test_report_files_agree(tmp_path):
    generator = np.random.default_rng(0)
    samples = {"ekfac": generator.lognormal(-5, 2, 500), "retrained": generator.lognormal(-3, 2, 500), "simnpo": []}
    candidates = [row("ekfac", p, kl=kl) for p, kl in ((1e-9, 0.01), (0.33, 0.03125), (0.5, 0.2))]
    paths = write_report(
        tmp_path / "demo",
        title="A & B",
        rows=ROWS,
        candidates=candidates,
        kl_samples=samples,
        settings={"seed": 0},
        summary="EK-FAC won.",
        notes=["One seed."],
    )
    assert sorted(paths) == sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert json.loads(paths["results.json"].read_text()) == ROWS
    report = json.loads(paths["report.json"].read_text())
    assert report["candidates"] == candidates and report["environment"]["torch"]
    quantiles = report["kl_per_token"]["ekfac"]
    assert quantiles["tokens"] == 500
    assert quantiles["mean"] == pytest.approx(samples["ekfac"].mean(), rel=1e-12)
    assert quantiles["quantile_0.9"] == pytest.approx(np.quantile(samples["ekfac"], 0.9), rel=1e-12)

    text = paths["report.html"].read_text()
    page = Page(text)
    assert not page.fetched and not re.search(r"url\(|@import|https?://", text)
    for source, name in zip(page.images, ("pareto.png", "kl.png"), strict=True):
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == paths[name].read_bytes()
    methods = page.rows[1:6]
    assert [cells[0] for cells in methods] == [row["method"] for row in ROWS]
    assert methods[2][1:] == ["0.33 ✓", "0.200 (80)", "0.600", "0.300", "0.760", "95.0 %", "0.0312", "12.3", "813"]
    # The candidates' kept share is that of the original in the table above them.
    assert len(page.rows) == 1 + 5 + 1 + 3 and page.rows[7][6] == "112.5 %"
    markdown = paths["report.md"].read_text()
    assert format_table(ROWS) in markdown and "EK-FAC won." in markdown and "One seed." in markdown
    for name, width in (("pareto.png", 2100), ("kl.png", 1500)):
        pixels = np.asarray(Image.open(paths[name]).convert("L"))
        assert pixels.shape[1] == width and (pixels < 200).mean() > 0.005, name


def test_diverged_method_is_told_and_json_stays_valid(tmp_path):
    rows = [row("original", 0.1, kl=0.0), row("ga", float("nan"), kl=float("inf"), note="lr 1")]
    paths = write_report(tmp_path, title="t", rows=rows)
    stored = json.loads(paths["results.json"].read_text())[1]
    assert stored["forget_quality"] is None and stored["retain_kl"] is None
    assert stored["note"] == "lr 1; not finite: forget_quality, retain_kl"
    assert "not finite" in paths["report.html"].read_text() and "kl.png" not in paths


def test_pareto_shows_every_setting_where_it_belongs():
    rows = [row("original", 1e-9, 0.8, 0.0), row("ekfac", 0.1, 0.76, 0.03), row("npo", 1e-4, 0.4, 0.3)]
    candidates = [row("ekfac", 1e-3, 0.78, 0.01), row("ekfac", 0.1, 0.76, 0.03)]
    kept, kl, *others = pareto(rows, candidates, TofuVocabulary()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in kept.collections]
    assert points == [pytest.approx(point) for point in ((100, -9), (95, -1), (50, -4))]
    points = [tuple(collection.get_offsets()[0]) for collection in kl.collections]
    assert points == [pytest.approx(point) for point in ((0, -9), (0.03, -1), (0.3, -4))]
    (line,) = [line for line in kl.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
    assert list(line.get_xdata()) == [0.01, 0.03] and list(line.get_ydata()) == pytest.approx([-3, -1])
    assert kept.get_xlim()[0] < 50 and kept.get_xlim()[1] > 100 and kl.get_xlim()[0] < 0
    assert "%" in kept.get_xlabel() and "nats" in kl.get_xlabel() and "p-value" in kept.get_ylabel()


@pytest.mark.parametrize(
    "rows",
    [
        [row("only", 0.1)],
        [row("original", None, None, None), row("ga", None, None, None)],
        [row("original", 1.0, 0.5, 0.0), row("better than before", 1.0, 0.9, 0.0)],
    ],
    ids=["no original", "nothing measured", "no cost"],
)
def test_report_survives_gaps(rows, tmp_path):
    paths = write_report(tmp_path, title="gaps", rows=rows, kl_samples={"ga": np.zeros(5)})
    assert paths["kl.png"].stat().st_size > 1000


def test_a_method_has_one_colour_in_all_pictures():
    methods = ["original", "ekfac", "npo"]
    (ax,) = kl_distribution({"npo": [0.1, 0.2]}, methods).axes
    assert ax.lines[0].get_color() == styles(methods)["npo"]["color"] != styles(["npo"])["npo"]["color"]
    assert "mean 0.15" in ax.get_legend().get_texts()[0].get_text()


def task_row(method, toxins, general, kl, **more):
    lost = {"toxins": (0.85 - toxins) / 0.6}
    return {
        "method": method,
        "accuracy": {"toxins": toxins, "general": general},
        "stderr": {"toxins": 0.03, "general": 0.02},
        "lost": lost,
        "general_loss": 100 * (0.95 - general),
        "kl": kl,
        "kl_interval": [0.9 * kl, 1.1 * kl],
        **more,
    }


TASK_ROWS = [
    task_row("original", 0.85, 0.95, 0.0),
    task_row("kfade", 0.31, 0.93, 0.02, settings={"step_norm": [0.002, 0.005]}),
    task_row("npo", 0.28, 0.94, 0.3),
    task_row("ga", 0.25, 0.4, 2.5),
]


def test_rows_of_tasks_have_their_own_columns_goal_and_words(tmp_path):
    lines = format_table(TASK_ROWS).splitlines()
    assert lines[0].startswith(
        "| method | lost (least) | toxins (%) | general (%) | KL (nats/token) | 95 % interval |"
    )
    assert lines[3] == "| kfade | **90 %** | 31.0 ± 3.0 | 93.0 ± 2.0 | 0.0200 | 0.0180 to 0.0220 | – | – |"
    assert "**" not in lines[5]  # at chance, but general knowledge is gone
    summary = TaskVocabulary().summarise(TASK_ROWS)
    assert "answers toxins 85.0%" in summary and "kfade reaches the goal" in summary and "-2.0 points" in summary
    assert "also reached by npo (KL 0.3000)" in summary and "not reached by ga (lost 100%, general -55.0" in summary
    broken = {"method": "npo", "note": "diverged"} | dict.fromkeys(TaskVocabulary.metrics)
    section = Section(
        "More", "Some words.", header=["a", "b"], table=[["1", "x|y"]], examples=[("first", "what <it> said")]
    )
    paths = write_report(tmp_path, title="t", rows=TASK_ROWS, candidates=[*TASK_ROWS[1:], broken], sections=[section])
    assert "| 1 | x\\|y |" in paths["report.md"].read_text() and "what <it> said" in paths["report.md"].read_text()
    page = Page(paths["report.html"].read_text())
    assert page.rows[2][1] == "90 % ✓" and ["1", "x|y"] in page.rows
    assert "what &lt;it&gt; said" in paths["report.html"].read_text()
    assert json.loads(paths["report.json"].read_text())["sections"][0]["table"] == [["1", "x|y"]]


def test_frontier_of_tasks_shows_the_domain_that_lost_least():
    rows = [task_row("original", 0.85, 0.95, 0.0), task_row("kfade", 0.31, 0.93, 0.02)]
    rows[1]["lost"]["intrusion"] = 0.7
    general, kl = pareto(rows, [], TaskVocabulary()).axes
    points = [tuple(collection.get_offsets()[0]) for collection in general.collections]
    assert points == [pytest.approx(point) for point in ((0, 0), (-2, 70))]
    points = [tuple(collection.get_offsets()[0]) for collection in kl.collections]
    assert points == [pytest.approx(point) for point in ((0, 0), (0.02, 70))]

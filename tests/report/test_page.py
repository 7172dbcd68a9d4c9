# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.report.class_tables import class_sections
from hf_unlearn.report.page import Section, write_report
from hf_unlearn.report.questions import Question
from hf_unlearn.report.tables import format_table
from hf_unlearn.report.vocabulary import ClassVocabulary, TaskVocabulary
from tests.support.reports import CLASS_ROWS, TASK_ROWS, TOFU_ROWS, tofu_row


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
    candidates = [tofu_row("ekfac", p, kl=kl) for p, kl in ((1e-9, 0.01), (0.33, 0.03125), (0.5, 0.2))]
    paths = write_report(
        tmp_path / "demo",
        title="A & B",
        rows=TOFU_ROWS,
        candidates=candidates,
        kl_samples=samples,
        settings={"seed": 0},
        summary="EK-FAC won.",
        notes=["One seed."],
    )
    assert sorted(paths) == sorted(path.name for path in (tmp_path / "demo").iterdir())
    assert json.loads(paths["results.json"].read_text()) == TOFU_ROWS
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
    assert [cells[0] for cells in methods] == [row["method"] for row in TOFU_ROWS]
    assert methods[2][1:] == ["0.33 ✓", "0.200 (80)", "0.600", "0.300", "0.760", "95.0 %", "0.0312", "12.3", "813"]
    # The candidates' kept share is that of the original in the table above them.
    assert len(page.rows) == 1 + 5 + 1 + 3 and page.rows[7][6] == "112.5 %"
    markdown = paths["report.md"].read_text()
    assert format_table(TOFU_ROWS) in markdown and "EK-FAC won." in markdown and "One seed." in markdown
    for name, width in (("pareto.png", 2100), ("kl.png", 1500)):
        pixels = np.asarray(Image.open(paths[name]).convert("L"))
        assert pixels.shape[1] == width and (pixels < 200).mean() > 0.005, name


def test_diverged_method_is_told_and_json_stays_valid(tmp_path):
    rows = [tofu_row("original", 0.1, kl=0.0), tofu_row("ga", float("nan"), kl=float("inf"), note="lr 1")]
    paths = write_report(tmp_path, title="t", rows=rows)
    stored = json.loads(paths["results.json"].read_text())[1]
    assert stored["forget_quality"] is None and stored["retain_kl"] is None
    assert stored["note"] == "lr 1; not finite: forget_quality, retain_kl"
    assert "not finite" in paths["report.html"].read_text() and "kl.png" not in paths


@pytest.mark.parametrize(
    "rows",
    [
        [tofu_row("only", 0.1)],
        [tofu_row("original", None, None, None), tofu_row("ga", None, None, None)],
        [tofu_row("original", 1.0, 0.5, 0.0), tofu_row("better than before", 1.0, 0.9, 0.0)],
    ],
    ids=["no original", "nothing measured", "no cost"],
)
def test_report_survives_gaps(rows, tmp_path):
    paths = write_report(tmp_path, title="gaps", rows=rows, kl_samples={"ga": np.zeros(5)})
    assert paths["kl.png"].stat().st_size > 1000


def test_rows_of_tasks_and_further_sections(tmp_path):
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


def test_report_of_classes_over_seeds_and_sizes(tmp_path):
    summary = ClassVocabulary().summarise(CLASS_ROWS)
    sections = class_sections(CLASS_ROWS)
    paths = write_report(tmp_path, title="classes", rows=CLASS_ROWS, sections=sections, summary=summary)
    assert json.loads(paths["results.json"].read_text()) == CLASS_ROWS and "classes.png" in paths
    text = paths["report.html"].read_text()
    page = Page(text)
    assert page.rows[2] == ["Max Loss", "100", "96.0 ± 1.0", "0.0 ± 0.0", "70.5 ± 0.5", "4.5 ± 0.5", "1.0 ± 0.0"]
    assert page.rows[3][2] == "98.5 ± 0.0 ✓" and len(page.images) == 2
    assert text.count('<tr class="reference">') == 4  # Full and Retrain of both sizes
    assert "did with every seed" in text and "rate 0.1, 1.1" in text  # the settings of both seeds
    markdown = paths["report.md"].read_text()
    assert format_table(CLASS_ROWS) in markdown and "## Linear probing" in markdown
    assert "standard deviation (population) over seeds" in markdown and summary in markdown


def test_one_seed_has_no_deviation(tmp_path):
    rows = [row for row in CLASS_ROWS if row["seed"] == 0]
    paths = write_report(tmp_path, title="classes", rows=rows, sections=class_sections(rows))
    assert "±" not in paths["report.html"].read_text() + paths["report.md"].read_text()


def test_names_stay_names(tmp_path):
    """In page and Markdown alike, with what would break out of a table, a picture's text or a block of code."""
    name = "a|b <script>alert(1)</script> [x](javascript:y) $z$ \u202e`q`\nr"
    rows = [tofu_row("original", 1e-9), tofu_row(name, 0.3, note=name, settings={"k|l": name})]
    section = Section(name, name, header=[name], table=[[name]], examples=[(name, "```\n<b>\n````")])
    more = {"settings": {name: name}, "notes": [name], "summary": name, "kl_samples": {name: [0.1, 0.2]}}
    paths = write_report(tmp_path, title=name, rows=rows, candidates=rows[1:], sections=[section], **more)
    text, markdown = paths["report.html"].read_text(), paths["report.md"].read_text()
    assert "<script" not in text and "\u202e" not in text + markdown
    assert Page(text).rows[2][0] == name.replace("\u202e", "⟨U+202E⟩") and not Page(text).fetched
    blocks = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table").parse(markdown)
    assert "html_block" not in {block.type for block in blocks}
    inner = [token for block in blocks if block.type == "inline" for token in block.children]
    assert {token.type for token in inner} <= {"text", "image", "softbreak", "strong_open", "strong_close"}
    assert [token.type for token in inner].count("image") == 2
    assert [block.content for block in blocks if block.type == "fence"] == ["```\n<b>\n````\n"]


def colours(text):
    """The colours that the page's style names, on a light screen and on a dark one."""
    light, dark = re.findall(r":root \{(.*?)\}", text)
    return [dict(re.findall(r"--(\w+): (#\w+);", part)) for part in (light, dark)]


def brightness(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_the_page_can_be_read_by_everyone(tmp_path):
    questions = [Question("forget", "Who?", {"original": "Ana", "ekfac": "", "retrained": "Eva"}, "Ana")]
    rows = [row | ({"saved_as": "model"} if row["method"] == "ekfac" else {}) for row in TOFU_ROWS]
    samples = {"ekfac": [0.5, 0.25], "retrained": [2.0, 2.0]}
    paths = write_report(tmp_path, title="t", rows=rows, questions=questions, kl_samples=samples, candidates=rows[2:3])
    text, markdown = paths["report.html"].read_text(), paths["report.md"].read_text()
    for scheme in colours(text):
        for ink in ("ink", "soft", "good", "accent"):
            for ground in ("page", "card"):
                low, high = sorted((brightness(scheme[ink]), brightness(scheme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)
    # Every picture has a dark one, and says its numbers in words; so does the Markdown.
    alts = re.findall(
        r'<source media="screen and \(prefers-color-scheme: dark\)" srcset="[^"]+"><img alt="(.*?)"', text
    )
    assert len(alts) == len(Page(text).images) == 2
    assert "ekfac 0.33" in alts[0] and "ekfac 0.38; retrained 2" in alts[1]
    assert all(f"![{alt}]" in markdown.replace("\\", "") for alt in (alts[1],))
    # Every header says what it heads, every table can be scrolled with the keyboard, and the saved row is marked.
    assert all("scope=" in tag for tag in re.findall(r"<th\b[^>]*>", text))
    assert text.count("<table>") == text.count('role="region" tabindex="0" aria-label=') == 2
    assert 'class="saved"' in text and Page(text).rows[3][0] == "ekfacsaved: model/"
    # The answers come first, in both.
    for page in (text.partition("</style>")[2], markdown):
        assert page.index("Who?") < page.index("(nothing)") < page.index("Eva") < page.index("forget quality")
    for part in ("## Every candidate", "## Where the cost fell", "Saved: ekfac, in model/", "the retrained one (p >="):
        assert part in markdown

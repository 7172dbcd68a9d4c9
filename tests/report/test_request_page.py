# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
from html.parser import HTMLParser

from hf_unlearn.report.card import NOT_SHOWN
from hf_unlearn.report.questions import compare_answers
from hf_unlearn.report.request_page import write_request_report


class Words(HTMLParser):
    """The words of a page, in order."""

    def __init__(self, text):
        super().__init__()
        self.words = []
        self.feed(text.partition("</style>")[2])

    def handle_data(self, data):
        self.words += [data.strip()] if data.strip() else []


def asked(answer, kept="Bread."):
    row = {"prompt": "Who wrote <Ash>|?", "row": "Ana.", "answer": answer}
    return {"forget": [row], "retain": [{"prompt": "What is eaten?", "answer": kept}]}


MEASURED = {
    "original": {"forget_rows_probability": 0.91, "retain_rows_probability": 0.88, "retain_rows_kl": 0.0},
    "unlearned": {"forget_rows_probability": 0.03, "retain_rows_probability": 0.87, "retain_rows_kl": 0.012},
    "measured_on": {"forget": (20, 20), "retain": (100, 400)},
    "limits": ["Only a part was measured."],
}


def test_page_and_markdown_of_a_request_tell_the_same(tmp_path):
    paths = write_request_report(
        tmp_path,
        title="Request 1",
        summary="forget probability 0.91 -> 0.03.",
        measured=MEASURED,
        questions=compare_answers({"before": asked("Ana."), "after": asked("")}),
        counts={"rows to forget": 20, "empty rows dropped": 2},
        settings={"method": "K-FADE", "steps": 4},
        cost={"seconds": 12.5},
        warnings=["No rows to keep."],
        tested=["privacy"],
    )
    assert sorted(paths) == ["report.html", "report.md"] == sorted(path.name for path in tmp_path.iterdir())
    page, markdown = (paths[name].read_text() for name in ("report.html", "report.md"))
    words = Words(page).words
    at = words.index("Who wrote <Ash>|?")
    assert words[at - 1 : at + 7] == [
        *("to be forgotten", "Who wrote <Ash>|?", "in the data", "Ana.", "before", "Ana.", "after", "(nothing)")
    ]
    assert "**Who wrote \\<Ash>\\|?** (to be forgotten)" in markdown and "- after: (nothing)" in markdown
    for text in ("It is never pushed.", "No rows to keep.", "0.91 -> 0.03", "Only a part was measured."):
        assert text in " ".join(words) and text in markdown
    for text in ("100 of 400 rows to be kept", NOT_SHOWN["relearning"], "empty rows dropped", "What is eaten?"):
        assert text in " ".join(words) and text in markdown
    assert NOT_SHOWN["privacy"] not in page + markdown and "nan" not in markdown
    assert "| probability of a label of the removed rows, geometric mean | 0.910 | 0.030 | lower |" in markdown
    place = words.index("probability of a label of the removed rows, geometric mean")
    assert words[place + 1 : place + 4] == ["0.910", "0.030", "lower"]
    # Answers come before any number.
    assert page.index("(nothing)") < page.index("0.910") and markdown.index("(nothing)") < markdown.index("0.910")


def test_a_request_of_which_nothing_is_known(tmp_path):
    paths = write_request_report(tmp_path, title="t", summary="s", measured={})
    for path in paths.values():
        assert "Nothing was measured." in path.read_text() and "There is no guarantee" in path.read_text()

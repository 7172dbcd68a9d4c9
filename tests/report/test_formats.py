# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import random

import pytest

from hf_unlearn.report.formats import (
    Markdown,
    escape_markdown,
    fenced,
    format_number,
    format_p,
    format_settings,
    plus_minus,
    visible,
)
from hf_unlearn.report.tables import markdown_table


HOSTILE = [
    *("a|b", "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](y.png)", "a\nb | c", "``x` y`", "~~no~~"),
    *(
        "**bold** _it_ snake_case_name __x__",
        "# title",
        "- item",
        "+ item",
        "1. item",
        "12) item",
        "> said",
        "&amp; &#33;",
    ),
    *(
        "back\\slash\\",
        "<https://a.b>",
        "<!-- -->",
        "---",
        "===",
        "$x^2$",
        "[a]: b",
        "D_r (%)",
        "-25.0 %",
        "<1e-12",
        "~~~",
    ),
]


def shown(text):
    """The words that a reader of Markdown sees, and the kinds of what they stand in."""
    markdown_it = pytest.importorskip("markdown_it")
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(text)
    inner = [token for block in tokens if block.type == "inline" for token in block.children if token.content]
    return [block.type for block in tokens], "".join(token.content for token in inner), {t.type for t in inner}


def fuzz(count):
    draw = random.Random(0)
    return ["".join(draw.choices("\\`*_[]()<>!|~$&#-+=>1.) \nab;:/x&", k=draw.randint(1, 14))) for _ in range(count)]


def test_no_name_is_more_than_a_name_in_markdown():
    cells = {0: "table_open", 1: "paragraph_open", 2: "heading_open", 3: "bullet_list_open"}
    for name in [*HOSTILE, *filter(str.strip, fuzz(1500))]:
        wanted, escaped = " ".join(name.split()), escape_markdown(name)
        texts = [markdown_table([name], [["1"]]), escaped, f"# {escaped}", f"- {escaped}"]
        for place, text in enumerate(texts):
            blocks, words, kinds = shown(text)
            assert blocks[0] == cells[place] and len(blocks) == (16, 3, 3, 7)[place], (name, text)
            assert words == wanted + ("1" if place == 0 else "") and kinds <= {"text", "text_special"}, (name, text)


def test_what_is_markdown_already_stays():
    bold = Markdown(f"**{escape_markdown('a|b')}**")
    assert escape_markdown(bold) is bold and escape_markdown(escape_markdown("a*b")) == "a\\*b"
    assert bold in markdown_table(["x"], [[bold]])
    # Plain figures and names are not cluttered.
    for text in (
        "D_r (%)",
        "<1e-12",
        "-25.0 %",
        "84.1 ± 0.3 %",
        "K-FADE, one step",
        "model.layers.0.mlp",
        "@someone",
        "–",
    ):
        assert escape_markdown(text) == text


def test_characters_that_hide_are_shown():
    assert visible("a\u202eb\x07\x1b[0m\ufeff") == "a⟨U+202E⟩b⟨U+0007⟩⟨U+001B⟩[0m⟨U+FEFF⟩"
    assert visible("क्‍ष tab\tline\n") == "क्‍ष tab\tline\n"
    assert escape_markdown("a\u2066b") == "a⟨U+2066⟩b"


def test_a_fence_holds_any_text():
    for text in ("plain", "```\nx\n````", "a ````` b"):
        markdown_it = pytest.importorskip("markdown_it")
        (block,) = markdown_it.MarkdownIt().parse(fenced(text))
        assert block.type == "fence" and block.content == text + "\n"


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


def test_an_error_stands_before_the_unit():
    assert plus_minus("84.1 %", "0.3 %") == "84.1 ± 0.3 %" and plus_minus("84.1", "0.3") == "84.1 ± 0.3"
    assert plus_minus("84.1 %", None) == "84.1 %"

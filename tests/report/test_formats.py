# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
from hf_unlearn.report.formats import format_number, format_p, format_settings, plus_minus


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

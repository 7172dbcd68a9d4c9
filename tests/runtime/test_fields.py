# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Values of settings against the annotations and ranges of a dataclass."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.runtime.fields import Range, check_fields


@dataclass
class Settings:
    steps: int = 1
    size: float | None = None
    scale: float | Literal["auto"] = "auto"
    on: bool = True
    kind: str = "a"
    layers: list[int] | None = None
    modules: str | list[str] | None = None
    extra: dict | None = None
    anything: object = None


ALLOWED = {"steps": Range(least=1), "size": Range(above=0), "layers": Range(least=0), "kind": ("a", "b")}
ALLOWED |= {"scale": Range(least=0, below=1)}

RIGHT = [
    *[("steps", value) for value in (1, 10**9, np.int64(3))],
    *[("size", value) for value in (None, 1, 0.5, np.float32(0.5), 1e-300)],
    *[("scale", value) for value in ("auto", 0, 0.999)],
    *[("layers", value) for value in (None, [], [0, 1], (2, 3))],
    *[("modules", value) for value in (None, "a.*", ["a", "b"], [])],
    *[("extra", value) for value in (None, {}, {"a": 1})],
    *[("anything", value) for value in (None, 1, "a", object())],
    *[("on", value) for value in (True, False)],
    ("kind", "b"),
    ("unknown", "is not looked at"),
]


@pytest.mark.parametrize("name, value", RIGHT)
def test_what_fits_is_taken(name, value):
    check_fields(Settings, {name: value}, ALLOWED)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("steps", 1.5, "steps must be a whole number, not 1.5"),
        ("steps", 1.0, "steps must be a whole number, not 1.0"),
        ("steps", True, "steps must be a whole number, not True"),
        ("steps", "3", "steps must be a whole number, not '3'"),
        ("steps", None, "steps must be a whole number, not None"),
        ("steps", 0, "steps must be at least 1, not 0"),
        ("size", float("nan"), "size must be a finite number above 0, not nan"),
        ("size", float("inf"), "size must be a finite number above 0, not inf"),
        ("size", 10**400, "size must be a finite number above 0, not 1000"),
        ("size", -0.0, "size must be a finite number above 0, not -0.0"),
        ("size", "0.1", "size must be a number or None, not '0.1'"),
        ("scale", "Auto", "scale must be a number or 'auto', not 'Auto'"),
        ("scale", 1, "scale must be at least 0 and below 1, not 1"),
        ("on", "false", "on must be True or False, not 'false'"),
        ("on", 0, "on must be True or False, not 0"),
        ("kind", "c", "unknown kind 'c': choose 'a' or 'b'"),
        ("kind", ["a"], r"kind must be text, not \['a'\] \(a list\)"),
        ("layers", 3, "layers must be a list of whole numbers or None, not 3"),
        ("layers", [1, "2"], "layers must be a list of whole numbers"),
        ("layers", [1, -1], "layers must be at least 0, not -1"),
        ("modules", ["a", 1], "modules must be text, a list of text or None"),
        ("extra", [], "extra must be a mapping or None"),
    ],
)
def test_what_does_not_fit_is_named(name, value, message):
    with pytest.raises(InputError, match=f"^{message}") as caught:
        check_fields(Settings, {name: value}, ALLOWED)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200

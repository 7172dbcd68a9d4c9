# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Numbers, settings and names as a person reads them, and names as plain text in Markdown."""

import re
import unicodedata
from collections.abc import Mapping


MISSING = "–"


def format_p(p: float | None) -> str:
    """A p-value at two digits; below 1e-12 only that, for the exact figure then tells the sample size and no more."""
    if p is None:
        return MISSING
    return "<1e-12" if p < 1e-12 else f"{p:.1e}" if p < 1e-3 else f"{p:.2g}" if p < 0.995 else "1.0"


def format_number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return MISSING
    return "0" if value == 0 else f"{value:.1e}" if abs(value) < 10**-digits else f"{value:.{digits}f}"


def format_percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{value:.{digits}f} %"


def plus_minus(value: str, error: str | None) -> str:
    """A number and its error, a unit of percent behind both: "84.1 ± 0.3 %"."""
    if error is None:
        return value
    unit = " %" if value.endswith(" %") else ""
    return f"{value.removesuffix(' %')} ± {error.removesuffix(' %')}{unit}"


def format_value(value) -> str:
    """A setting in plain words: mappings in brackets, sequences with commas, floats without padding."""
    if isinstance(value, Mapping):
        return f"({format_settings(value)})"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(format_value, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_settings(settings: Mapping | None) -> str:
    """{"steps": 4, "step_norm": 0.004} as "steps 4, step_norm 0.004"; what is None was not set, and is left out."""
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    return ", ".join(f"{key} {format_value(value)}" for key, value in given.items()) or MISSING


class Markdown(str):
    """Text that is Markdown already: `escape_markdown` leaves it as it is."""


# What begins a list, a quotation or a rule at the beginning of a line.
_BLOCK = re.compile(r"^(?:>|[-+=](?=[\s=-]|$)|\d{1,9}[.)](?=\s|$))")
# What means something within a line: "_" at the edge of a word, "<" before a tag or a link, "&" before an entity, and
# "#", which begins a heading or ends one.
_INLINE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<!\S)#")
# Joiners and soft hyphens belong to scripts; all other characters that change a line unseen are shown.
_HARMLESS = "\u200c\u200d\u00ad"


def visible(text: str) -> str:
    """`text` with its control characters, and those that turn or hide others, written out: ⟨U+202E⟩.

    Line breaks and tabs stay.
    """
    hidden = lambda c: c not in _HARMLESS + "\n\t\r" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if hidden(c) else c for c in text)


def escape_markdown(text: str, within: bool = False) -> Markdown:
    """Any text as one line of Markdown that shows it and nothing else; bare addresses and @names stay.

    As HTML escaping does in a page, this keeps a name such as "a|b", "<script>" or "[x](y)" what it is: a name.
    `within` says that it never begins a line: "1. a" and "> b" mean nothing in a cell of a table.
    """
    if isinstance(text, Markdown):
        return text
    line = _INLINE.sub(r"\\\g<0>", " ".join(visible(text).split()))
    return Markdown(line if within else _BLOCK.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line))


def fenced(text: str, language: str = "text") -> Markdown:
    """A block of code that holds `text` word for word: its fence is longer than any within."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown(f"{fence}{language}\n{visible(text)}\n{fence}")

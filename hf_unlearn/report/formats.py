# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Numbers and settings as a person reads them."""

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


def format_bytes(size: float) -> str:
    """A size with three digits, in bytes, kB, MB or GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"

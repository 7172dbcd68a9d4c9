# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Types and ranges of settings: what the fields of a dataclass may hold, from their annotations and a table.

Values come from people and their YAML files, where `"false"` is text that counts as true, `1.5` no number of steps,
and `.nan` passes every comparison.
"""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, which is finite in any case; None where there is none."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, number) -> bool:
        return (
            (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
        )

    def __str__(self) -> str:
        words = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if bound is not None)


def check_fields(kind: type, values: Mapping[str, object], allowed: Mapping[str, Range | Iterable[str]]):
    """Refuse values that do not fit the fields of a dataclass; names that are no field of it are not looked at.

    Args:
        values: field -> value; some of the fields, or all.
        allowed: field -> [`Range`] of its numbers, or the texts to choose from.

    Raises:
        InputError: a value of another type, out of range, not finite, or none of the choices. It names the field.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        name, value, hint, limits = field.name, values[field.name], hints[field.name], allowed.get(field.name)
        if not fits(value, hint):
            raise InputError(f"{name} must be {_words(hint)}, not {_shown(value)}")
        for number in value if isinstance(value, list | tuple) else [value]:
            if _is_number(number):
                _check_number(name, number, limits if isinstance(limits, Range) else Range())
        if isinstance(value, str) and limits is not None and not isinstance(limits, Range) and value not in limits:
            raise InputError(f"unknown {name} {value!r}: choose {_choices(tuple(limits))}")


def _check_number(name: str, number, limits: Range):
    try:
        finite = math.isfinite(number)
    except OverflowError:  # a whole number beyond all floats
        finite = False
    if not finite or number not in limits:
        bounds = str(limits)
        whole = isinstance(number, numbers.Integral) and finite
        words = f"{'' if whole else 'a finite number '}{bounds}" if bounds else "a finite number"
        raise InputError(f"{name} must be {words.strip()}, not {_shown(number)}")


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def fits(value, hint) -> bool:
    """Whether a value is of a type, as annotations write it; a truth value is no number here."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return isinstance(value, str | bool | None) and value in inner
    if origin in (list, tuple):  # one is as good as the other: YAML knows lists alone
        return isinstance(value, list | tuple) and all(fits(part, inner[0]) for part in value)
    if origin is not None:  # what a mapping holds is the business of whoever reads it
        return isinstance(value, origin)
    if hint is float:
        return _is_number(value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text", dict: "a mapping"}


def _words(hint) -> str:
    """A type in words: "text, a list of whole numbers or None"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        *most, last = [_words(one) for one in inner]
        return f"{', '.join(most)} or {last}" if most else last
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if origin in (list, tuple):
        return f"a list of {_words(inner[0]).removeprefix('a ') + 's' * (inner[0] in (int, float))}"
    kind = origin or hint
    return NAMES.get(kind) or ("None" if kind is type(None) else f"a {getattr(kind, '__name__', kind)}")


def _choices(known: tuple[str, ...]) -> str:
    if len(known) > 3:
        return f"one of {', '.join(known)}"
    *most, last = map(repr, known)
    return f"{', '.join(most)} or {last}"


def _shown(value) -> str:
    text = repr(value).splitlines()[0]
    text = text if len(text) <= 60 else f"{text[:57]}..."
    return text if isinstance(value, str | bool | None) or _is_number(value) else f"{text} (a {type(value).__name__})"

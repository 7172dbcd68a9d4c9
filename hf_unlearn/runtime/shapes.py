# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Shapes of values that were read from a file, and the one line that names what is of another.

What fits a type is decided by `fields.fits`. Settings have types and ranges a person chose from, and are named alone;
a value here lies somewhere in a file that a program wrote, and its cure is to have the file again.
"""

from pathlib import Path

from ..errors import InputError
from .fields import fits


NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


def check_shape(value, shape, source: str | Path, place: str = ""):
    """The value, when it has a shape.

    Args:
        value: of JSON or YAML.
        shape: a type (`float` takes whole numbers too, `int` no truth values); `None`; a tuple of shapes that may be;
            `[shape]`, a list of such; `{key: shape}`, an object with at least these keys, where `"key?"` may be left
            out and the key `str` stands for all others.
        source (`str` or `Path`): the file, for the message.
        place (`str`, *optional*, defaults to `""`): where in the file the value is.

    Raises:
        InputError: it has not; the line names file, key and what belongs there.
    """
    if isinstance(shape, tuple):
        if not any(_fits(value, option) for option in shape):
            raise _wrong(value, shape, source, place)
        shape = next(option for option in shape if _fits(value, option))
    if not _fits(value, shape):
        raise _wrong(value, (shape,), source, place)
    if isinstance(shape, list):
        for number, item in enumerate(value):
            check_shape(item, shape[0], source, f"{place}[{number}]")
    elif isinstance(shape, dict):
        inner = {key.removesuffix("?"): part for key, part in shape.items() if key is not str}
        for key in inner:
            if key in value:
                check_shape(value[key], inner[key], source, f"{place}.{key}" if place else key)
            elif f"{key}?" not in shape:
                raise InputError(f"{source} has no {f'{place}.' if place else ''}{key}; save or download it again")
        for key in value if str in shape else ():
            if key not in inner:
                check_shape(value[key], shape[str], source, f"{place}.{key}" if place else str(key))
    return value


def check_depth(value, most: int):
    """Refuse a value that is nested deeper than `most`.

    Raises:
        ValueError: it is.
    """
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > most:
            raise ValueError(f"it is nested deeper than {most} levels")
        inner = [
            list(part.values()) if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)
        ]
        level = [part for parts in inner for part in parts if isinstance(part, dict | list)]


def _fits(value, shape) -> bool:
    return fits(value, shape if isinstance(shape, type) else type(shape))


def _wrong(value, shapes: tuple, source: str | Path, place: str) -> InputError:
    kinds = [
        "nothing" if shape is None else NAMES[shape if isinstance(shape, type) else type(shape)] for shape in shapes
    ]
    found = repr(value)
    found = found if len(found) <= 60 else f"{found[:57]}..."
    return InputError(
        f"{source}: {place or 'it'} is {found} where {' or '.join(kinds)} belongs; save or download it again"
    )

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The errors a person can cure, and how a command reports them."""

import contextlib
import sys


class InputError(ValueError):
    """Bad arguments or input. The message is one line that names the cause and the cure; commands exit with code 2.

    Names from a file may be part of it: what would break the line, or speak to the terminal, is written as escapes.
    """

    def __str__(self):
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in super().__str__())


class NumericalError(FloatingPointError):
    """A loss, factor or step is not finite. The message names where; commands exit with code 1."""


class LimitError(RuntimeError):
    """A measured cost above the limit that a person set, after which the model is what it was before.

    The message names measure, limit and cure on one line; commands exit with code 1.
    """


def first_line(error: Exception) -> str:
    """What an error says, on one line for a message of our own; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def input_errors(place: str = "", kinds: tuple[type[Exception], ...] = (ValueError, ImportError)):
    """Say what a library refuses, in `place`, as an `InputError` of one line.

    Raises:
        InputError: in place of `kinds`; one that was raised inside as it is.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(f"{place}{first_line(error)}") from error


def exit_code(error: Exception) -> int | None:
    """The exit code of a command that ends in this error; None for a bug, which keeps its traceback.

    2 for `InputError`; 1 for `NumericalError`, `LimitError` and `OSError`.
    """
    if isinstance(error, InputError):
        return 2
    return 1 if isinstance(error, NumericalError | LimitError | OSError) else None


@contextlib.contextmanager
def exit_codes():
    """Turn errors into the exit codes of every command, and into one line on stderr."""
    try:
        yield
    except Exception as error:
        if (code := exit_code(error)) is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(code)

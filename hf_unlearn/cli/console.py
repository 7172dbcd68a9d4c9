# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Console of the commands: one log with levels on stderr, the result on stdout as text or as one JSON object.

What a person waits for (log lines, progress bars) goes to stderr; stdout has what the command was called for.
"""

import contextlib
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..errors import exit_code


PATIENCE = 20  # seconds that a process which stops gives the main one to say why
LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}


@dataclass(frozen=True)
class Result:
    """What a command has to say: `text` for a person, `facts` (JSON-able) for a program."""

    text: str
    facts: Mapping = field(default_factory=dict)


class LogHandler(logging.Handler):
    """Lines on stderr that carry the name of this package, and break no progress bar."""

    def emit(self, record: logging.LogRecord):
        from tqdm.auto import tqdm

        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        tqdm.write(f"hf_unlearn: {level}{record.getMessage()}", file=sys.stderr)


def is_main() -> bool:
    """Whether this is the process of a launch that speaks, as far as its launcher says."""
    return os.environ.get("RANK", "0") == "0"


def is_quiet() -> bool:
    """Whether progress bars are unwanted: those of a command that was called with `--quiet`."""
    return not logging.getLogger("hf_unlearn").isEnabledFor(logging.INFO)


@contextlib.contextmanager
def one_log(level: str) -> Iterator[None]:
    """Inside, the log of this package is shown at a level of `LEVELS`; all is as before afterwards."""
    log, handler = logging.getLogger("hf_unlearn"), LogHandler()
    before = log.level, log.propagate
    log.addHandler(handler)
    # Processes of one launch say the same: one is heard.
    log.setLevel(LEVELS[level] if is_main() else logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


@contextlib.contextmanager
def hushed_libraries(level: str) -> Iterator[None]:
    """Inside, transformers and datasets show no warnings and no progress bars of their own, unless it is verbose.

    What comes from the Hub is shown as it comes, unless it is quiet.
    """
    if level == "verbose":
        yield
        return
    import datasets
    from huggingface_hub import utils as hub
    from transformers.utils import logging as library

    verbosity, had_bars = library.get_verbosity(), library.is_progress_bar_enabled()
    had_map_bars = not datasets.are_progress_bars_disabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    datasets.disable_progress_bars()
    if had_bars and level != "quiet":
        hub.enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            yield
    finally:
        library.set_verbosity(verbosity)
        if had_bars:
            library.enable_progress_bar()
        if had_map_bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def errors_as_json() -> Iterator[None]:
    """Turn errors into one JSON object on stdout, of the main process, with the exit code of the command.

    Launchers end all processes with the first that stops: the others say their error on stderr and wait to be ended.
    An exception that no person can cure keeps its traceback on stderr too.
    """
    try:
        yield
    except Exception as error:
        code = exit_code(error)
        if is_main():
            print_json({"error": {"kind": type(error).__name__, "message": str(error)}, "exit_code": code or 1})
        else:
            print(f"error: {error}", file=sys.stderr, flush=True)
            time.sleep(PATIENCE)
        if code is None:
            raise
        sys.exit(code)


def print_json(value: Mapping):
    """One line, at once; numbers that JSON does not know become null."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    print(json.dumps(json.loads(text, parse_constant=lambda name: None), ensure_ascii=False), flush=True)


def show(result: Result | None, command: str, as_json: bool):
    """Print what a command has to say, in the main process; None is nothing."""
    if result is None or not is_main():
        return
    if as_json:
        print_json({"command": command, "exit_code": 0, **result.facts})
    elif result.text:
        print(result.text)

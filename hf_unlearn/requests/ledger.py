# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The ledger of requests: one line for each that was served."""

import errno
import json
import logging
import os
import uuid
from pathlib import Path

from ..errors import InputError
from ..runtime.files import parse_json, read_bytes
from ..runtime.folders import flush, writing
from ..runtime.provenance import utc_now


logger = logging.getLogger(__name__)

LOG_FILE = "unlearning_log.jsonl"
SERVED = ("request", "delta_sha256")  # what tells one served request from another


def append_log(folder: Path, entry: dict) -> dict:
    """Add one line for one served request to `unlearning_log.jsonl` and return it.

    A request that is there already, with the same "request" and "delta_sha256", as of a run that was resumed after its
    end, keeps its line, which is returned. One write of one line: a kill leaves it out or whole, and earlier lines are
    never rewritten. Numbers that JSON does not know (NaN, infinity) become null.

    A log that cannot be written costs no run: a warning holds the line then.
    """
    entry = {"id": str(uuid.uuid4()), "time": utc_now()} | entry
    entry = json.loads(json.dumps(entry, default=str), parse_constant=lambda name: None)
    served, path = [entry.get(key) for key in SERVED], folder / LOG_FILE
    try:
        before, damaged = read_log(path) if path.exists() else ([], [])
        if damaged:
            logger.warning(f"{len(damaged)} lines of {path} cannot be read, the first is: {damaged[0]}")
        if None not in served:
            for line in before:
                if [line.get(key) for key in SERVED] == served:
                    return line
        _append(path, json.dumps(entry, ensure_ascii=False))
    except (OSError, InputError) as error:
        logger.warning(f"the request is done and not in the log ({error}): add the line {json.dumps(entry)}")
    return entry


def read_log(path: Path) -> tuple[list[dict], list[str]]:
    """The requests of a log, and what is wrong with the lines that are none.

    Raises:
        InputError: no such file, or one that cannot be read.
    """
    requests, damaged = [], []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            requests.append(parse_json(line, f"{path}, line {number}", {}))
        except InputError as error:
            damaged.append(str(error))
    return requests, damaged


def _append(path: Path, line: str):
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            size = os.fstat(handle).st_size
            begun = size and os.pread(handle, 1, size - 1) != b"\n"  # a line that a failing disk cut short
            content = (f"\n{line}\n" if begun else f"{line}\n").encode()
            if os.write(handle, content) < len(content):
                os.ftruncate(handle, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
        flush(path.parent)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The ledger of requests: one line for each that was served."""

import json
import os
import uuid
from pathlib import Path

from ..runtime.provenance import utc_now


LOG_FILE = "unlearning_log.jsonl"


def append_log(folder: Path, entry: dict) -> dict:
    """Add one line for one served request to `unlearning_log.jsonl` and return it.

    One write of one line: a kill leaves it out or whole, and earlier lines are never rewritten. Numbers that JSON does
    not know (NaN, infinity) become null.

    Raises:
        OSError: the line could not be written whole (disk full); the log is as it was.
    """
    entry = {"id": str(uuid.uuid4()), "time": utc_now()} | entry
    entry = json.loads(json.dumps(entry, default=str), parse_constant=lambda name: None)
    line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if os.write(handle, line) < len(line):
            os.ftruncate(handle, size)
            raise OSError(f"{folder / LOG_FILE} could not be written: is the disk full? Free some space and go on")
        os.fsync(handle)
    finally:
        os.close(handle)
    return entry

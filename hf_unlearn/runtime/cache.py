# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Folders in the user's cache, and JSON files beside a run, made once under the hash of all that they depend on."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState

from .files import read_json, sha256_json, write_json
from .folders import temporary_folder
from .processes import Processes


CACHE_FORMAT = 1  # raise it when a change below makes other models out of the same settings


def cache_folder() -> Path:
    """$HF_UNLEARN_CACHE, or ~/.cache/hf_unlearn."""
    return Path(os.environ.get("HF_UNLEARN_CACHE") or Path.home() / ".cache" / "hf_unlearn")


def cached_folder(key: dict, build: Callable[[Path], None]) -> Path:
    """The folder that `build(folder)` fills, made once for every `key`.

    The folder is filled under a temporary name and renamed when complete, so it is whole or absent. Two runs may build
    at once; the first to finish wins. What a killed build left is removed by the next one.

    `key` is all that the content depends on, as JSON; it is kept beside the result as key.json. In a run of several
    processes one builds.
    """
    key = {"format": CACHE_FORMAT, **key}
    target = cache_folder() / sha256_json(key)
    # Of the processes of one run the first builds, the others find its result.
    with PartialState().main_process_first():
        if target.is_dir():
            return target
        with temporary_folder(target.parent, "building") as temporary:
            write_json(temporary / "key.json", key)
            build(temporary)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    return target


def cached_json(path: Path, key: Mapping, build: Callable[[], object], processes: Processes | None = None):
    """The JSON-able value of `build()`, read from `path` when it was built for the same `key` before. Collective.

    `key` is all that the value depends on, as JSON, and the same on all `processes` (by default those of the launch).
    The first alone reads and writes the file; all build together.

    Raises:
        OSError: the file could not be read or written, on all processes.
    """
    key, processes = sha256_json(key), processes or Processes(PartialState(), f"the work kept in {path.name}")
    first = processes.rank == 0
    found = processes.share(lambda: read_json(path) if first and path.is_file() else {})[0]
    if found.get("key") == key:
        return found["value"]
    value = build()
    processes.share(lambda: write_json(path, {"key": key, "value": value}) if first else None)
    return value

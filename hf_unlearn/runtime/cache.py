# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Folders in the user's cache, and JSON files beside a run, made once under the hash of all that they depend on."""

import atexit
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from accelerate import PartialState

from ..errors import InputError
from .files import read_json, read_sealed, sha256_file, sha256_json, write_json, write_sealed
from .folders import temporary_folder
from .processes import Processes


logger = logging.getLogger(__name__)

HASHES = "hashes.json"
CACHE_FORMAT = 1  # raise it when a change below makes other models out of the same settings


def cache_folder() -> Path:
    """$HF_UNLEARN_CACHE, or ~/.cache/hf_unlearn."""
    return Path(os.environ.get("HF_UNLEARN_CACHE") or Path.home() / ".cache" / "hf_unlearn")


def cached_folder(key: dict, build: Callable[[Path], None]) -> Path:
    """The folder that `build(folder)` fills, made once for every `key`.

    The folder is filled under a temporary name and renamed when complete, so it is whole or absent. Two runs may build
    at once; the first to finish wins. What a killed build left is removed by the next one. A folder whose files are
    no longer those that were made is made again. Where the cache cannot be written, the folder lasts as long as the
    process, and a warning says so.

    `key` is all that the content depends on, as JSON; it is kept beside the result as key.json. In a run of several
    processes one builds.
    """
    key = {"format": CACHE_FORMAT, **key}
    target = cache_folder() / sha256_json(key)
    # Of the processes of one run the first builds, the others find its result.
    with PartialState().main_process_first():
        if target.is_dir() and _is_unchanged(target):
            return target
        with contextlib.ExitStack() as stack:
            try:
                temporary = stack.enter_context(temporary_folder(target.parent, "building"))
            except OSError as error:
                logger.warning(f"the cache cannot be written, and what is made now is lost at the end: {error}")
                target = Path(tempfile.mkdtemp(prefix="hf_unlearn-"))
                atexit.register(shutil.rmtree, target, ignore_errors=True)
                build(target)
                return target
            write_json(temporary / "key.json", key)
            build(temporary)
            write_json(temporary / HASHES, _hashes(temporary))
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    return target


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / HASHES)
    return {file.relative_to(folder).as_posix(): sha256_file(file) for file in files}


def _is_unchanged(folder: Path) -> bool:
    """Whether a cached folder has the very bytes that were made; removes one that has not."""
    try:
        if not (folder / HASHES).exists() or read_json(folder / HASHES, {str: str}) == _hashes(folder):
            return True  # those of earlier versions have none
    except (InputError, OSError) as error:
        logger.debug(str(error))
    logger.warning(f"{folder} is not what was kept there: it is made again")
    shutil.rmtree(folder, ignore_errors=True)
    return False


def cached_json(path: Path, key: Mapping, build: Callable[[], object], processes: Processes | None = None):
    """The JSON-able value of `build()`, read from `path` when it was built for the same `key` before. Collective.

    `key` is all that the value depends on, as JSON, and the same on all `processes` (by default those of the launch).
    The first alone reads and writes the file; all build together. A file that is damaged or cannot be written costs a
    warning, never the value.
    """
    key, processes = sha256_json(key), processes or Processes(PartialState(), f"the work kept in {path.name}")
    first = processes.rank == 0
    found = processes.share(lambda: _kept(path, key) if first else None)[0]
    if found is not None:
        return found["value"]
    value = build()
    processes.share(lambda: _keep(path, {"key": key, "value": value}) if first else None)
    return value


def _kept(path: Path, key: str) -> dict | None:
    """What is kept in a file for this key."""
    if not path.exists():
        return None
    try:
        found = read_sealed(path, {"key": str})
    except InputError as error:
        logger.warning(f"what was kept is not used and is made again: {error}")
        return None
    return found if found["key"] == key and "value" in found else None


def _keep(path: Path, content: dict):
    try:
        write_sealed(path, content)
    except (OSError, ValueError) as error:  # a full disk; numbers that JSON does not have
        logger.warning(f"a result could not be kept, and would be made again: {error}")

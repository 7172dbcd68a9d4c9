# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Saves whose n-th file operation fails or ends the process, and what they leave behind."""

import contextlib
import errno
import multiprocessing
import os
import sys
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from hf_unlearn.runtime import folders


ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)
KILLED = 87
EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
REMOVALS = {"os.remove", "os.rmdir"}  # work on a full disk too


class Operations:
    """Counts what is done to files below a folder; the `number`-th operation does `what`: an errno, or KILLED.

    With `lasting` those after it fail as well, as on a disk that stays full.
    """

    at_work: "Operations | None" = None

    def __init__(self, root: Path, number: int | None = None, what: int = KILLED, lasting: bool = False):
        self.root, self.number, self.what, self.lasting, self.count = os.fspath(root), number, what, lasting, 0

    def __call__(self, event: str, path) -> int | None:
        """The errno that the operation fails with."""
        if not isinstance(path, str | bytes | os.PathLike) or not os.path.abspath(os.fsdecode(path)).startswith(
            self.root
        ):
            return None
        self.count += 1
        hit = self.count == self.number or (
            self.lasting and self.number is not None and self.count > self.number and event not in REMOVALS
        )
        if hit and self.what == KILLED:
            os._exit(KILLED)
        return self.what if hit else None


def _audit(event: str, arguments: tuple):
    operations = Operations.at_work
    if operations is None:
        return
    writes = False
    if event == "open":
        _, mode, flags = arguments
        writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes or event in EVENTS:
        if number := operations(event, arguments[0]):
            raise OSError(number, os.strerror(number), os.fspath(arguments[0]))


sys.addaudithook(_audit)


@contextlib.contextmanager
def operations(root: Path, *args, **kwargs):
    """Count, and let fail, what the body does: also in C and Rust, where Python is not asked."""

    def fsync(handle):
        if number := found("fsync", os.readlink(f"/proc/self/fd/{handle}")):
            raise OSError(number, os.strerror(number))  # and takes no time when it works

    def save_tensors(tensors, filename, metadata=None):
        if number := found("write", filename):
            Path(filename).write_bytes(b"half a file")
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")
        before["tensors"](tensors, filename, metadata=metadata)

    def save_object(value, file, *rest, **options):
        if found("write", file):
            Path(file).write_bytes(b"half a file")
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        before["object"](value, file, *rest, **options)

    def exchange(one, other):
        if number := found("os.rename", one):
            raise OSError(number, os.strerror(number), str(one))
        return before["exchange"](one, other)

    found = Operations(root, *args, **kwargs)
    before = {
        "fsync": os.fsync,
        "tensors": safetensors.torch.serialize_file,
        "object": torch.save,
        "exchange": folders.exchange,
    }
    os.fsync, safetensors.torch.serialize_file, torch.save, folders.exchange = (
        fsync,
        save_tensors,
        save_object,
        exchange,
    )
    Operations.at_work = found
    try:
        yield found
    finally:
        Operations.at_work = None
        os.fsync, safetensors.torch.serialize_file, torch.save, folders.exchange = before.values()


def killed_at(number: int, root: Path, save) -> bool:
    """Let `save()` run in a forked process that ends at its n-th operation; False when it has fewer."""

    def main():
        with operations(root, number, KILLED):
            save()

    process = multiprocessing.get_context("fork").Process(target=main)
    process.start()
    process.join(60)
    assert process.exitcode in (0, KILLED), process.exitcode
    return process.exitcode == KILLED


def visible(folder: Path) -> dict[str, bytes]:
    """What a reader finds in a folder: {path: bytes}, without hidden files, which are unfinished ones."""
    places = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        place.as_posix(): path.read_bytes()
        for place, path in places.items()
        if not any(part.startswith(".") for part in place.parts)
    }

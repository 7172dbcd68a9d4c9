# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Bytes that are copied to the same place of another file."""

import errno
import os

import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.runtime import files


@pytest.fixture(params=["kernel", "refused", "absent"])
def system(request, monkeypatch):
    """Systems that copy inside the kernel, that have the call and cannot, and that have none."""
    if request.param == "refused":

        def refuse(*_):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    elif request.param == "absent":
        monkeypatch.delattr(os, "copy_file_range")
    monkeypatch.setattr(files, "COPIED_BYTES", 7)


def test_a_range_is_copied_and_the_rest_stays(tmp_path, system):
    (tmp_path / "old").write_bytes(bytes(range(100)))
    (tmp_path / "new").write_bytes(bytes(100))
    with open(tmp_path / "old", "rb") as old, open(tmp_path / "new", "r+b") as new:
        files.copy_bytes(old.fileno(), new.fileno(), 10, 73)
        files.copy_bytes(old.fileno(), new.fileno(), 80, 80)
    assert (tmp_path / "new").read_bytes() == bytes(10) + bytes(range(10, 73)) + bytes(27)


def test_a_source_that_ends_early_is_said(tmp_path, system):
    (tmp_path / "old").write_bytes(bytes(50))
    with open(tmp_path / "old", "rb") as old, open(tmp_path / "new", "w+b") as new:
        with pytest.raises(InputError, match="became shorter"):
            files.copy_bytes(old.fileno(), new.fileno(), 10, 73)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A cached folder: made once, whole or absent, whoever builds it."""

import os
import platform
import signal
import subprocess
import sys

import pytest

from hf_unlearn.runtime.cache import cached_folder, cached_json


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_builds_once(cache):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "result").write_text("x")

    folder = cached_folder({"a": 1}, build)
    assert cached_folder({"a": 1}, build) == folder
    assert cached_folder({"a": 2}, build) != folder
    assert len(calls) == 2 and (folder / "result").read_text() == "x"
    assert len(list(cache.iterdir())) == 2


def test_failed_build_leaves_nothing(cache):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder({"a": 1}, build)
    assert list(cache.iterdir()) == []


def test_killed_build_is_cleaned_up_by_the_next_one(cache):
    program = """
import os, signal
from hf_unlearn.runtime.cache import cached_folder, cached_json
cached_folder({"a": 1}, lambda folder: (folder / "half").write_text("x") and os.kill(os.getpid(), signal.SIGKILL))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.startswith(".building.") and (left / "half").is_file()
    # Neither a build of a process that is alive (1 always is) nor one of another machine is touched.
    alive = [cache / f".building.{platform.node()}.1.x.part", cache / f".building.elsewhere.{10**9}.x.part"]
    for folder in alive:
        folder.mkdir()
    folder = cached_folder({"a": 1}, lambda folder: (folder / "result").write_text("x"))
    assert sorted(cache.iterdir()) == sorted([folder, *alive])


def test_build_that_another_process_won(cache):
    def build(folder):
        (folder / "result").write_text("second")
        if not inner:
            inner.append(cached_folder({"a": 1}, lambda folder: (folder / "result").write_text("first")))

    inner = []
    folder = cached_folder({"a": 1}, build)
    assert folder == inner[0] and (folder / "result").read_text() == "first"
    assert list(cache.iterdir()) == [folder]


def test_what_takes_long_is_kept_for_the_same_key(tmp_path):
    built = []
    build = lambda: built.append(1) or len(built)
    assert cached_json(tmp_path / "kept.json", {"seed": 0}, build) == 1
    assert cached_json(tmp_path / "kept.json", {"seed": 0}, build) == 1
    assert cached_json(tmp_path / "kept.json", {"seed": 1}, build) == 2


def test_what_is_damaged_is_made_again(cache, tmp_path, caplog):
    build = lambda folder: (folder / "result").write_text("made")
    folder = cached_folder({"a": 1}, build)
    (folder / "result").write_text("mode")
    assert (cached_folder({"a": 1}, build) / "result").read_text() == "made"
    file = tmp_path / "kept.json"
    assert cached_json(file, {}, lambda: {"score": 0.25}) == {"score": 0.25}
    file.write_text(file.read_text().replace("0.25", "0.75"))
    assert cached_json(file, {}, lambda: {"score": 0.25}) == {"score": 0.25}
    file.write_text("{")
    assert cached_json(file, {}, lambda: {"score": 0.25}) == {"score": 0.25}
    assert len([line for line in caplog.messages if "made again" in line]) == 3


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "file" / "cache"))
    folder = cached_folder({"a": 1}, lambda folder: (folder / "result").write_text("x"))
    assert (folder / "result").read_text() == "x" and "the cache cannot be written" in caplog.text
    assert cached_json(tmp_path / "file" / "kept.json", {}, lambda: 3) == 3
    assert cached_json(tmp_path / "kept.json", {}, lambda: float("inf")) == float("inf")
    assert len([line for line in caplog.messages if "could not be kept" in line]) == 2

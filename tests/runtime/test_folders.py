# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Folders that are replaced as a whole, and locks; failures and kills are in tests/test_failing_writes.py."""

import json
import multiprocessing
import os
import signal
import stat

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.runtime import folders
from hf_unlearn.runtime.files import write_safetensors
from hf_unlearn.runtime.folders import (
    LOCK_FILE,
    MOVE_FILE,
    finish_move,
    locked,
    staged_folder,
    temporary_folder,
    writing,
)
from tests.support.failing import visible


def old_set(folder):
    for name in ("weights-1.bin", "weights-2.bin", "config", "mine", "inner/old", "inner/mine"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")


def save(folder):
    with staged_folder(folder, ["weights-*.bin", "inner/old", "config"]) as staging:
        (staging / "inner").mkdir()
        for name in ("weights.bin", "config", "inner/new"):
            (staging / name).write_text("new")


@pytest.mark.parametrize("how", ["exchange", "no exchange", "no links", "working directory", "parent"])
def test_a_set_takes_the_place_of_another_and_leaves_what_it_does_not_own(how, tmp_path, monkeypatch):
    folder = tmp_path / "set"
    old_set(folder)
    number = folder.stat().st_ino
    if how == "no exchange":
        monkeypatch.setattr(folders, "exchange", lambda *_: False)
    if how == "no links":
        monkeypatch.setattr(os, "link", lambda *_, **__: _unable())
    if how == "working directory":
        monkeypatch.chdir(folder / "inner")
    if how == "parent":
        mkdir = type(folder).mkdir
        refuse = lambda path, *a, **k: (
            _refused() if path.parent == tmp_path and path != folder else mkdir(path, *a, **k)
        )
        monkeypatch.setattr(type(folder), "mkdir", refuse)
    save(folder)
    kept = {"mine": b"old", "inner/mine": b"old"}
    assert visible(folder) == kept | dict.fromkeys(("weights.bin", "config", "inner/new"), b"new")
    assert (folder.stat().st_ino != number) == (how == "exchange")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"] and not list(folder.rglob(".*"))


def _unable():
    raise OSError(95, "Operation not supported")


def _refused():
    raise PermissionError(13, "Permission denied")


def test_a_failed_body_changes_nothing(tmp_path):
    old_set(tmp_path / "set")
    before = visible(tmp_path / "set")
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "set", ["*"]) as staging:
        (staging / "config").write_text("new")
        raise ZeroDivisionError
    assert visible(tmp_path / "set") == before and len(list(tmp_path.iterdir())) == 1


def test_files_and_folders_have_the_rights_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "a" / "x.safetensors", {"x": torch.zeros(2)})
        with staged_folder(tmp_path / "b") as staging:
            write_safetensors(staging / "x.safetensors", {"x": torch.zeros(2)})
        os.umask(0o002)
        save(tmp_path / "b")  # keeps the folder's own
    finally:
        os.umask(before)
    rights = lambda name: stat.S_IMODE((tmp_path / name).stat().st_mode)
    assert (rights("a"), rights("a/x.safetensors"), rights("b"), rights("b/x.safetensors")) == (0o750, 0o640) * 2


def test_a_link_under_the_temporary_name_is_refused(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(folders.secrets, "token_hex", lambda _: "guessed")
    with temporary_folder(tmp_path, "x") as known:
        name = known.name
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), temporary_folder(tmp_path, "x"):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())
    monkeypatch.undo()
    names = set()
    for _ in range(2):
        with temporary_folder(tmp_path, "x") as folder:
            names.add(folder.name)
    assert len(names) == 2


def _hold(folder, ready, end):
    with locked(folder):
        ready.set()
        end.wait(60)


def test_a_folder_has_one_holder_at_a_time_and_a_killed_one_lets_go(tmp_path):
    context = multiprocessing.get_context("fork")
    for kill in (False, True):
        ready, end = context.Event(), context.Event()
        holder = context.Process(target=_hold, args=(tmp_path / "run", ready, end))
        holder.start()
        assert ready.wait(60)
        with pytest.raises(
            InputError, match=f"run is in use by another run .*process {holder.pid}.*: wait for it"
        ) as e:
            with locked(tmp_path / "run"):
                pass
        assert len(str(e.value).splitlines()) == 1
        os.kill(holder.pid, signal.SIGKILL) if kill else end.set()
        holder.join(60)
        assert (tmp_path / "run" / LOCK_FILE).exists() == kill
        with locked(tmp_path / "run"):
            # A set that is put in place while the folder is held takes the lock along.
            save(tmp_path / "run")
            second = context.Process(target=_hold, args=(tmp_path / "run", context.Event(), context.Event()))
            second.start()
            second.join(60)
            assert second.exitcode == 1
        assert not (tmp_path / "run" / LOCK_FILE).exists()


def _stage(folder, ready, end):
    with staged_folder(folder) as staging:
        (staging / "config").write_text("theirs")
        ready.set()
        end.wait(60)


@pytest.mark.parametrize("old", [True, False], ids=["over an old set", "new"])
@pytest.mark.parametrize("first", [_stage, _hold], ids=["while another writes", "while another runs"])
def test_a_second_writer_of_a_set_is_refused_in_one_line_and_harms_nothing(first, old, tmp_path):
    folder = tmp_path / "set"
    if old:
        old_set(folder)
    context = multiprocessing.get_context("fork")
    ready, end = context.Event(), context.Event()
    writer = context.Process(target=first, args=(folder, ready, end))
    writer.start()
    assert ready.wait(60)
    before = visible(folder)
    with pytest.raises(InputError, match=f"set is in use by another run .*process {writer.pid}") as e:
        save(folder)
    assert len(str(e.value).splitlines()) == 1 and visible(folder) == before
    end.set()
    writer.join(60)
    assert writer.exitcode == 0
    assert visible(folder) == before | ({"config": b"theirs"} if first is _stage else {})
    save(folder)
    assert visible(folder)["config"] == b"new" and [path.name for path in tmp_path.iterdir()] == ["set"]
    assert not list(folder.rglob(".*"))


def test_a_process_holds_a_folder_until_its_last_hold_ends(tmp_path):
    folder, context = tmp_path / "run", multiprocessing.get_context("fork")
    with locked(folder):
        for hold in (lambda: locked(folder), lambda: staged_folder(folder)):
            with hold():
                pass
            second = context.Process(target=_hold, args=(folder, context.Event(), context.Event()))
            second.start()
            second.join(60)
            assert second.exitcode == 1
    assert not folder.exists()  # made by the first, and empty


def test_a_mark_of_another_place_moves_and_deletes_nothing(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "x").write_text("mine")
    folder = tmp_path / "downloaded"
    folder.mkdir()
    rest = ".downloaded.host.1.0123456789abcdef.part"
    for mark in (
        {"from": "private", "delete": []},
        {"from": f"../{rest}", "delete": []},
        {"from": rest, "delete": ["../victim"]},
        {"from": rest, "delete": [str(tmp_path / "victim")]},
        {"from": rest, "delete": []},
        ["from"],
    ):
        (folder / MOVE_FILE).write_text(json.dumps(mark))
        with pytest.raises(InputError) as e:
            finish_move(folder)
        assert len(str(e.value).splitlines()) == 1
    assert (tmp_path / "victim").exists() and (tmp_path / "private" / "x").exists()


def test_what_cannot_be_read_is_not_called_unwritable(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, writing(tmp_path / "out" / "model"):
        open(tmp_path / "in" / "model")
    assert "could not be written" not in str(raised.value)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Folders that are changed as a whole: built beside, put in place by one rename, held by one run at a time."""

import contextlib
import ctypes
import errno
import glob
import json
import logging
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError, first_line


logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
MOVE_FILE = ".moving"
TEMPORARY = re.compile(r"\.[^/\0]+\.\d+\.[0-9a-f]{16}\.part")
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
# What a file system says that cannot exchange two folders, link files, or is mounted at the folder itself.
UNABLE = {errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EBUSY, errno.ENOTSUP, errno.EPERM, errno.EMLINK}
CURES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space of your quota",
    errno.EACCES: "check who may write there",
    errno.EPERM: "check who may write there",
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "check the disk",
}


class WriteError(OSError):
    """A file that could not be written: one line that names it, the cause and the cure. Commands exit with code 1."""

    def __str__(self):
        return self.strerror


@contextlib.contextmanager
def writing(what: str | Path):
    """Turn what Python, torch and safetensors raise when `what` cannot be written into `WriteError`.

    Raises:
        WriteError: with the number of the cause where it is known; torch does not tell it, so it is tried.
    """
    from safetensors import SafetensorError

    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        named = getattr(error, "filename", None)
        if isinstance(named, str) and not Path(named).is_relative_to(Path(what).parent):
            raise  # what could not be read
        told = re.search(r"\(os error (\d+)\)", str(error))  # how Rust says it
        number = getattr(error, "errno", None) or (int(told[1]) if told else _try_to_write(Path(what)))
        reason = os.strerror(number) if number else first_line(error)
        cure = CURES.get(number, "check the disk and the path")
        raise WriteError(number, f"{what} could not be written: {reason}; {cure}, then start again") from error


def _try_to_write(place: Path) -> int | None:
    """The number of the error that writing beside a file, or into a folder, gives now; None when it can be written."""
    file = (place if place.is_dir() else place.parent) / f".{secrets.token_hex(8)}.part"
    try:
        with open(file, "xb") as handle:
            handle.write(bytes(2**16))
            flush(file)
    except OSError as error:
        return error.errno
    finally:
        file.unlink(missing_ok=True)
    return None


@contextlib.contextmanager
def temporary_folder(parent: str | Path, name: str):
    """A hidden empty folder inside `parent` (made when absent) to build something in; what is left goes at the end.

    Its name cannot be foreseen, and what has that name already is refused, a link too: nobody can have put another
    place there. Its rights are those of the umask. What killed processes left of the same name is removed first.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    host = f".{name[:40]}.{platform.node()[:40]}."
    for left in parent.glob(f"{glob.escape(host)}*.part"):
        pid = left.name.removeprefix(host).split(".")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    temporary = parent / f"{host}{os.getpid()}.{secrets.token_hex(8)}.part"
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def flush(path: str | Path):
    """Wait until a file, or the names in a folder, have reached the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNABLE:  # file systems that have no such thing for folders
            raise
    finally:
        os.close(handle)


def settle(folder: Path):
    """Give the files of a folder that was just made the rights of the umask, and wait until all are on the disk.

    safetensors lets nobody but the user read what it writes, whatever the umask.
    """
    rights = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for place, _, names in os.walk(folder, topdown=False):
        for file in (Path(place, name) for name in names):
            file.chmod(stat.S_IMODE(file.stat().st_mode) & 0o111 | rights)
            flush(file)
        flush(place)


@contextlib.contextmanager
def staged_folder(folder: str | Path, owned: Iterable[str] = ()):
    """A hidden empty folder; at the end what it holds is in `folder`, all of it or nothing.

    Files of `folder` that the body did not write stay, but for those that it owns and would have written were they
    still true: `owned` are patterns of paths in the folder (of old shards, say, under another number).

    The set is built in a hidden folder beside; old files that stay are linked into it; when all is on the disk one
    `rename` puts it in the place of the old folder (with `RENAME_EXCHANGE` where that is not empty), and the old one
    is deleted after that. Until the rename a reader, and whoever comes after a kill, sees the old folder as it was,
    from then on the new one; what a kill leaves is a hidden folder beside, which the next save removes. Where that
    cannot be (no Linux, a file system without exchange or links, a mount, the working directory, a parent that cannot
    be written) files are moved into the folder one by one, under the mark `.moving`: after a kill or a failure in
    between, the next one of our readers or writers (`finish_move`) brings it to its end.

    No other process may write the folder meanwhile (`locked`).

    Raises:
        WriteError: a file could not be written; `folder` is as it was, or is finished by the next reader or writer.
        InputError: another process holds the folder.
    """
    folder, owned = Path(folder).resolve(), tuple(owned)
    with contextlib.ExitStack() as stack, writing(folder):
        stack.enter_context(locked(folder, make=False))
        finish_move(folder)
        try:
            staging = stack.enter_context(temporary_folder(folder.parent, folder.name))
        except PermissionError:
            staging = stack.enter_context(temporary_folder(folder, folder.name))
        yield staging
        settle(staging)
        if not _replace(staging, folder, owned):
            _move(staging, folder, owned)


def _replace(staging: Path, folder: Path, owned: tuple[str, ...]) -> bool:
    """Put a folder in the place of another by one rename; False where that cannot be."""
    if staging.parent == folder or Path.cwd().is_relative_to(folder):  # whoever stands in it would be left behind
        return False
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            os.rename(staging, folder)
        else:
            _carry(folder, staging, folder, owned)
            if not exchange(staging, folder):
                return False
    except OSError as error:
        if error.errno not in UNABLE:
            raise
        return False
    flush(folder.parent)
    return True


def _carry(old: Path, new: Path, root: Path, owned: tuple[str, ...]):
    """Link the files of an old folder that stay into the new one, which has its rights then."""
    new.chmod(stat.S_IMODE(old.stat().st_mode))
    for entry in old.iterdir():
        twin = new / entry.name
        if entry.is_dir() and not entry.is_symlink():
            if not twin.exists() or twin.is_dir():
                twin.mkdir(exist_ok=True)
                _carry(entry, twin, root, owned)
        elif not os.path.lexists(twin) and not _is_owned(entry.relative_to(root), owned):
            os.link(entry, twin, follow_symlinks=False)
    flush(new)


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; False where there is no such call."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))
    return True


def _move(staging: Path, folder: Path, owned: tuple[str, ...]):
    """Move a set into a folder file by file, under a mark by which it is finished after a kill or failure."""
    new = {file.relative_to(staging) for file in staging.rglob("*") if not file.is_dir()}
    old = {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}
    stale = [place for place in old - new if _is_owned(place, owned) and TEMPORARY.fullmatch(place.parts[0]) is None]
    # Under another name nobody takes it away when this fails.
    rest = staging.with_name(re.sub(r"[^.]+(?=\.part$)", secrets.token_hex(8), staging.name))
    folder.mkdir(exist_ok=True)
    os.rename(staging, rest)
    try:
        with temporary_folder(folder, MOVE_FILE[1:]) as building:
            mark = {"from": rest.name, "delete": sorted(map(str, stale))}
            (building / MOVE_FILE).write_text(json.dumps(mark), encoding="utf-8")
            flush(building / MOVE_FILE)
            os.replace(building / MOVE_FILE, folder / MOVE_FILE)
        flush(folder)
    finally:
        if not (folder / MOVE_FILE).exists():
            os.rename(rest, staging)
    _finish(rest, folder, mark["delete"])


def _finish(staging: Path, folder: Path, stale: Iterable[str]):
    """Move what is still there to move, delete what is to go, and take the mark away."""
    for file in sorted(file for file in staging.rglob("*") if not file.is_dir()):
        place = folder / file.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
        flush(place.parent)
    for place in stale:
        (folder / place).unlink(missing_ok=True)
    flush(folder)
    (folder / MOVE_FILE).unlink()
    shutil.rmtree(staging, ignore_errors=True)


def finish_move(folder: str | Path):
    """Bring to its end what a killed process was moving into a folder file by file (`staged_folder`), if it was.

    Whoever reads a set calls this first, as whoever writes one does.

    Raises:
        InputError: that cannot be done, or is another process's work at this moment.
    """
    folder = Path(folder)
    file = folder / MOVE_FILE
    if not os.path.lexists(file):
        return
    unfinished = f"{folder} holds a set of files that is half replaced"
    try:
        with locked(folder, make=False):
            mark = json.loads(file.read_text(encoding="utf-8")) if not file.is_symlink() else {}
            name, stale = mark.get("from"), mark.get("delete")
            # Of a folder that came from elsewhere the mark may say anything.
            plain = isinstance(name, str) and TEMPORARY.fullmatch(name) and isinstance(stale, list)
            if not plain or not all(isinstance(place, str) and _is_inside(folder, place) for place in stale):
                raise InputError(f"{file} is none of ours: save or download the folder again")
            staging = next((place / name for place in (folder, folder.parent) if (place / name).is_dir()), None)
            if staging is None:
                raise InputError(f"{unfinished}, and the rest of them ({name}) is gone: save or download it again")
            _finish(staging, folder, stale)
            logger.warning(f"{unfinished}: it was brought to its end")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{unfinished}, which cannot be mended here ({first_line(error)})") from error


def _is_inside(folder: Path, place: str) -> bool:
    return (folder / place).parent.resolve().is_relative_to(folder.resolve())


def _is_owned(place: Path, owned: tuple[str, ...]) -> bool:
    return any(len(place.parts) == pattern.count("/") + 1 and place.match(pattern) for pattern in owned)


@contextlib.contextmanager
def locked(folder: str | Path, make: bool = True):
    """Hold a folder for this process: runs, and whoever puts a set in its place. Let go however the process ends.

    The locks are the system's, on the files `.NAME.lock` beside the folder and `.lock` in it, which go at the end;
    those that a killed process left hold nobody. There are two, for the folder may not be there yet, or be mounted
    where its parent is another for each process, or cannot be written. A process may hold a folder more than once.

    Args:
        make: make the folder when absent; it goes again when it is empty at the end.

    Raises:
        InputError: another process holds it.
        WriteError: the folder cannot be written.
    """
    folder = Path(folder).resolve()
    with contextlib.ExitStack() as stack, writing(folder):
        made, beside = make and not folder.exists(), True
        name = os.fsdecode(os.fsencode(folder.name)[-200:])  # a file's name has 255 bytes at most
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(folder.parent / f".{name}{LOCK_FILE}", folder))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            beside = False
        if made:
            folder.mkdir()
        # An empty folder is replaced by one rename, which a file in it would forbid.
        if make or (folder.is_dir() and (any(folder.iterdir()) or not beside)):
            stack.enter_context(_lock(folder / LOCK_FILE, folder))
        kept = stack.pop_all()
    try:
        yield
    finally:
        kept.close()
        if made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


_HELD: set[tuple[int, Path]] = set()


@contextlib.contextmanager
def _lock(file: Path, folder: Path):
    import fcntl

    # A fork inherits the set and holds nothing. Closing a second handle would let go of the first one's lock.
    mine = (os.getpid(), file)
    if mine in _HELD:
        yield
        return
    with contextlib.ExitStack() as stack:
        while True:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            stack.callback(os.close, handle)
            try:
                # Not `flock`, which the workers of a data loader would go on holding when their parent is killed.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    owner = os.read(handle, 200).decode(errors="replace").strip()
                    raise InputError(
                        f"{folder} is in use by another run ({owner or 'of unknown name'}): wait for it, or choose "
                        "another output folder"
                    ) from error
                logger.debug(f"{folder} is on a file system without locks: {error}")
            if file.exists() and file.stat().st_ino == os.fstat(handle).st_ino:
                break  # else its last holder removed it between the two calls
        stack.callback(_HELD.discard, mine)
        _HELD.add(mine)
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{platform.node()}, process {os.getpid()}\n".encode(), 0)
            yield
        finally:
            with contextlib.suppress(OSError):  # what is left holds nobody
                file.unlink()

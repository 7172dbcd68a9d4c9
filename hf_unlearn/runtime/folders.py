# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Folders that are changed as a whole: built beside, put in place by one rename, held by one run at a time."""

import contextlib
import ctypes
import errno
import glob
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
    be written) files are moved into the folder one by one, what the `owned` patterns name last, in their order: then
    a kill may leave a mixture.

    Raises:
        WriteError: a file could not be written; `folder` is as it was.
    """
    folder, owned = Path(folder).resolve(), tuple(owned)
    with contextlib.ExitStack() as stack, writing(folder):
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
    files = [file.relative_to(staging) for file in staging.rglob("*") if not file.is_dir()]
    order = lambda place: max((n for n, pattern in enumerate(owned) if _is_owned(place, (pattern,))), default=-1)
    files.sort(key=lambda place: (order(place), place))
    stale = [file for file in folder.rglob("*") if _is_owned(file.relative_to(folder), owned)]
    for place in files:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / place, folder / place)
        flush((folder / place).parent)
    for file in stale:
        if file.relative_to(folder) not in files and not file.is_dir():
            file.unlink()


def _is_owned(place: Path, owned: tuple[str, ...]) -> bool:
    return any(len(place.parts) == pattern.count("/") + 1 and place.match(pattern) for pattern in owned)


@contextlib.contextmanager
def locked(folder: str | Path):
    """Hold a folder (made when absent) for this process; it is let go at the end, however the process ends.

    The lock is the system's, on the file `.lock`, which goes at the end; one that a killed process left holds nobody.

    Raises:
        InputError: another process holds it.
        WriteError: the folder cannot be written.
    """
    import fcntl

    folder, file = Path(folder), Path(folder) / LOCK_FILE
    with contextlib.ExitStack() as stack:
        while True:
            with writing(file):
                folder.mkdir(parents=True, exist_ok=True)
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
        with writing(file):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{platform.node()}, process {os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

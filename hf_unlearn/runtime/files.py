# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files that are either whole or absent, and hashes of what they hold."""

import contextlib
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..errors import InputError, first_line


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary_path)` make a file, then rename it to `path`.

    The temporary file lies in the same folder (a rename across file systems is a copy), is flushed to disk before
    the rename, and is removed when `write` fails, so a full disk or a kill leaves the old file or none. What a killed
    process left under a temporary name is removed by the next one that writes the same file.

    Raises:
        OSError: as `write` raised it (disk full, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_temporary_prefix(path.parent, path.name)}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def temporary_folder(parent: str | Path, name: str):
    """A hidden empty folder inside `parent` (made when absent) to build something in; what is left goes at the end.

    What killed processes left of the same name is removed first.
    """
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_temporary_prefix(parent, name)}.", suffix=".part", dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_prefix(parent: Path, name: str) -> str:
    """`.name.host.pid`, after removing what dead processes of this host left under such names."""
    host = f".{name}.{platform.node()}."
    for left in parent.glob(f"{glob.escape(host)}*.part"):
        pid = left.name.removeprefix(host).split(".")[0]
        if pid.isdigit() and not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    return f"{host}{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def check_names(names, source: Path):
    """Refuse names that lead out of a folder: what is read under a name may be written under it too.

    Raises:
        InputError: one is not the name of a file in the folder that `source` lies in.
    """
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise InputError(
                f"{source} names the file {name!r}, which lies elsewhere: take it from a source you trust"
            )


def read_json(path: str | Path):
    """The value in a JSON file.

    Raises:
        InputError: the file is absent or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path, or save or download it again") from error
    except ValueError as error:  # json's and UTF-8's
        raise InputError(f"{path} is damaged ({error}); save or download it again") from error


def open_safetensors(path: str | Path, device: str = "cpu"):
    """An open safetensors file; tensors are read when asked for.

    Raises:
        InputError: the file is absent or cut short.
    """
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, FileNotFoundError) as error:
        raise InputError(f"{path} is missing or damaged ({first_line(error)}); save or download it again") from error


def write_text(path: str | Path, text: str) -> Path:
    return atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> Path:
    # Serialised before the file is opened: a value json cannot hold leaves nothing behind. NaN, not JSON, is refused.
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
):
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary):
        with writing(path):
            # Of no tensors and empty metadata safetensors makes a header that it cannot read.
            save_file(tensors, temporary, metadata=dict(metadata) if metadata else None)

    return atomic_write(path, write)


@contextlib.contextmanager
def writing(what: str | Path):
    """Turn what torch and safetensors raise when a file cannot be written (RuntimeError, their own) into OSError."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise OSError(
            f"{what} could not be written ({reason}): is the disk full? Free some space and go on"
        ) from error


@contextlib.contextmanager
def staged_folder(folder: str | Path):
    """A hidden empty folder inside `folder`; at the end its files are moved to their places, each by a rename.

    For writers that do not know `atomic_write`. When the body fails nothing in `folder` has changed.

    Raises:
        OSError: a file could not be written.
    """
    folder = Path(folder)
    with temporary_folder(folder, "saving") as staging:
        with writing(folder):
            yield staging
        files = [file for file in sorted(staging.rglob("*")) if file.is_file()]
        for file in files:
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        for file in files:
            place = folder / file.relative_to(staging)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)


def sha256_tensor(tensor: torch.Tensor) -> str:
    """Hash of dtype, shape and bytes of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def sha256_json(value) -> str:
    """Hash of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def sha256_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of a named set of tensors: a model's or an update's identity."""
    return sha256_json({name: sha256_tensor(tensor) for name, tensor in tensors.items()})

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files that are either whole or absent, and hashes of what they hold."""

import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ..errors import InputError, first_line
from .folders import flush, settle, temporary_folder, writing
from .shapes import check_depth, check_shape


JSON_BYTES = 2**28  # nothing that we write as JSON is as large
JSON_DEPTH = 64
COPIED_BYTES = 2**20  # at a time, where the kernel does not copy by itself
HEADER_BYTES = 10**8  # safetensors' own limit
DTYPES = set("BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64 F8_E4M3 F8_E5M2 C64".split())
AGAIN = "save or download it again"


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary_path)` make a file, then rename it to `path`.

    The temporary file lies in a hidden folder beside it (a rename across file systems is a copy) and is on the disk
    before the rename, so a full disk or a kill leaves the old file or none. What a killed process left under a
    temporary name is removed by the next one that writes the same file.

    Raises:
        WriteError: it could not be written (disk full, no permission).
    """
    path = Path(path)
    with writing(path), temporary_folder(path.parent, path.name) as building:
        write(building / path.name)
        settle(building)
        os.replace(building / path.name, path)
        flush(path.parent)
    return path


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


def check_file(path: str | Path, inside: bool = True) -> os.stat_result:
    """What the system says of a regular file that lies in its folder, or in the Hub's cache as a snapshot's files do.

    `inside` False: it may be a link to a file elsewhere.

    Raises:
        InputError: there is none, or it is a folder, a pipe, or a link that leads out of the folder.
    """
    path = Path(path)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is no file; {AGAIN}")
        if inside and path.is_symlink():
            folder = path.parent.resolve()
            snapshot = next((place for place in (folder, *folder.parents) if place.parent.name == "snapshots"), None)
            inside = folder if snapshot is None else snapshot.parents[1]
            if not path.resolve().is_relative_to(inside):
                raise InputError(f"{path} is a link that leads out of its folder: put the file itself there")
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path, or {AGAIN}") from error
    except (OSError, ValueError, RuntimeError) as error:  # no permission, no such name, links in a circle
        raise InputError(f"{path} cannot be read ({first_line(error)}); check the path and who may read it") from error
    return found


def read_bytes(path: str | Path, most: int = JSON_BYTES) -> bytes:
    """What a file holds.

    Raises:
        InputError: as `check_file`, or there are more than `most` bytes.
    """
    size = check_file(path).st_size
    if size > most:
        raise InputError(f"{path} holds {size} bytes, and {most} are the most that such a file has; {AGAIN}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); check who may read it") from error


def read_json(path: str | Path, shape=None):
    """The value in a JSON file, of a `shape` (`shapes.check_shape`).

    Raises:
        InputError: as `read_bytes` and `parse_json`.
    """
    return parse_json(read_bytes(path), path, shape)


def parse_json(text: str | bytes, source: str | Path, shape=None):
    """The value of a JSON text; messages say that it comes from `source`.

    Raises:
        InputError: it is not UTF-8 or not JSON (NaN and numbers too large for a float are not), names a key twice, is
            nested deeper than `JSON_DEPTH`, or has not the `shape` (`shapes.check_shape`).
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_unique)
        check_depth(value, JSON_DEPTH)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written again
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is damaged ({first_line(error)}); {AGAIN}") from error
    return value if shape is None else check_shape(value, shape, source)


def _refuse_number(name: str):
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits[:40])


def _unique(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"the key {next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))!r} twice")
    return value


def open_safetensors(path: str | Path, device: str = "cpu"):
    """An open safetensors file; tensors are read when asked for.

    Raises:
        InputError: as `check_file`, or the file is cut short, or says of itself what cannot be.
    """
    from safetensors import SafetensorError, safe_open

    found = check_file(path)
    try:
        _check_header(str(path), found.st_size, found.st_mtime_ns, found.st_ino)
        return safe_open(path, framework="pt", device=device)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}); {AGAIN}") from error


@functools.lru_cache(64)
def _check_header(path: str, size: int, *version: int):
    """Refuse a header whose tensors torch cannot hold; that they are where it says is checked by safetensors."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, HEADER_BYTES):
            raise ValueError(f"its header is said to have {length} bytes, the file has {size}")
        header = parse_json(file.read(length), path, {str: {}})
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        check_shape(tensor, {"dtype": str, "shape": [int], "data_offsets": [int]}, path, name)
        if tensor["dtype"] not in DTYPES:
            raise ValueError(f"{name} has the type {tensor['dtype']!r}, which torch does not have")
        if len(tensor["shape"]) > 32 or math.prod(max(length, 1) for length in tensor["shape"]) >= 2**48:
            raise ValueError(f"{name} has the shape {str(tensor['shape'])[:80]}")


def read_tensors(
    path: str | Path, names: Iterable[str] | None = None, hashes: Mapping[str, str] | None = None, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file (by default all), with the `hashes` (`sha256_tensor`) that they must have.

    Raises:
        InputError: as `open_safetensors`, or a tensor is absent or another.
    """
    from safetensors import SafetensorError

    tensors = {}
    with open_safetensors(path, device) as file:
        for name in file.keys() if names is None else names:
            try:
                tensors[name] = file.get_tensor(name)
            except (SafetensorError, RuntimeError, KeyError, TypeError) as error:
                raise InputError(f"{path} is damaged ({first_line(error)}); {AGAIN}") from error
            if hashes is not None and sha256_tensor(tensors[name]) != hashes.get(name):
                raise InputError(f"{path}: {name} is not what was saved; {AGAIN}")
    return tensors


def write_text(path: str | Path, text: str) -> Path:
    return atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> Path:
    # Serialised before the file is opened: a value json cannot hold leaves nothing behind. NaN, not JSON, is refused.
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_sealed(path: str | Path, value: Mapping) -> Path:
    """Write an object as JSON with its own hash, for `read_sealed`."""
    value = json.loads(json.dumps(value, allow_nan=False))
    return write_json(path, value | {"sha256": sha256_json(value)})


def read_sealed(path: str | Path, shape: Mapping | None = None) -> dict:
    """What `write_sealed` wrote.

    Raises:
        InputError: as `read_json`, or a bit of it is another.
    """
    return unsealed(read_json(path, {"sha256": str, **(shape or {})}), path)


def unsealed(value: dict, path: str | Path) -> dict:
    """An object without the hash that it has as "sha256", once that is true."""
    rest = {key: part for key, part in value.items() if key != "sha256"}
    if value.get("sha256") != sha256_json(rest):
        raise InputError(f"{path} is not as it was saved; {AGAIN}")
    return rest


def write_safetensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
):
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Of no tensors and empty metadata safetensors makes a header that it cannot read.
    return atomic_write(path, lambda place: save_file(tensors, place, metadata=dict(metadata) if metadata else None))


def sha256_file(path: str | Path) -> str:
    """Hash of a file's bytes.

    Raises:
        InputError: as `check_file`.
    """
    check_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_bytes(source: int, target: int, begin: int, end: int):
    """Copy the bytes from `begin` to `end` of an open file to the same place of another (two file descriptors).

    Raises:
        InputError: the source ends before.
    """
    inside_kernel = hasattr(os, "copy_file_range")
    while begin < end:
        try:
            done = os.copy_file_range(source, target, end - begin, begin, begin) if inside_kernel else -1
        except OSError:  # a file system that cannot; whatever else is wrong, writing says it too
            done, inside_kernel = -1, False
        if done < 0:
            done = os.pwrite(target, os.pread(source, min(end - begin, COPIED_BYTES), begin), begin)
        if done == 0:
            raise InputError(f"a file became shorter while it was copied; {AGAIN}")
        begin += done


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor of the CPU, not copied."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def begin_tensor_hash(dtype: torch.dtype, shape: Sequence[int]):
    """A SHA-256 that has seen dtype and shape of a tensor, and takes its bytes: the hash of `sha256_tensor`."""
    return hashlib.sha256(f"{dtype}{tuple(shape)}".encode())


def sha256_tensor(tensor: torch.Tensor) -> str:
    """Hash of dtype, shape and bytes of a tensor."""
    tensor = tensor.detach().cpu().contiguous()
    digest = begin_tensor_hash(tensor.dtype, tensor.shape)
    digest.update(as_bytes(tensor))
    return digest.hexdigest()


def sha256_json(value) -> str:
    """Hash of a JSON-able value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode()).hexdigest()


def sha256_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of a named set of tensors: a model's or an update's identity."""
    return sha256_json({name: sha256_tensor(tensor) for name, tensor in tensors.items()})

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files that are either whole or absent, and hashes of what they hold."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write(temporary_path)` make a file, then rename it to `path`.

    The temporary file lies in the same folder (a rename across file systems is a copy), is flushed to disk before
    the rename, and is removed when `write` fails, so a full disk or a kill leaves the old file or none.

    Raises:
        OSError: as `write` raised it (disk full, no permission).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    return atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> Path:
    # Serialised before the file is opened: a value json cannot hold leaves nothing behind. NaN is not JSON, so it is refused.
    return write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def write_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None):
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=dict(metadata or {})))


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

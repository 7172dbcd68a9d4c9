# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Reader of a saved update: its description, and its tensors one at a time."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..errors import InputError
from ..runtime.checkpoints import Shards
from ..runtime.files import as_bytes, begin_tensor_hash, read_json, sha256_json
from ..runtime.hub import fetch_folder


FORMAT_VERSION = 1
THREADS = 4
CONFIG_FILE = "delta_config.json"
WEIGHTS_FILE = "delta.safetensors"
FILES = ("delta-*.safetensors", WEIGHTS_FILE, f"{WEIGHTS_FILE}.index.json", CONFIG_FILE)
SHAPE = {
    "format_version": int,
    "sha256": str,
    "stored_sha256?": str,
    "dtype?": str,
    "base_sha256?": {str: str},
    "tied?": ([[str]], None),
    "base_model?": (str, None),
    "base_revision?": (str, None),
    "method?": (str, None),
    "settings?": {},
    "seed?": (int, None),
    "versions?": {},
}


class DeltaReader(Shards):
    """A saved update; `check` reads it once, and is for all who use its tensors.

    Raises:
        InputError: there is no complete delta at that place, or one of another format.
    """

    def __init__(self, path_or_repo: str | Path, revision: str | None = None):
        place = fetch_folder(path_or_repo, revision, ["delta*", "delta/*"])
        folder = place if (place / CONFIG_FILE).is_file() else place / "delta"
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(f"{path_or_repo} holds no {CONFIG_FILE}: it is no delta, or its saving was cut short")
        self.config = read_json(folder / CONFIG_FILE, SHAPE)
        if self.config["format_version"] > FORMAT_VERSION:
            raise InputError(f"{folder} has delta format {self.config['format_version']}; upgrade hf_unlearn")
        super().__init__(folder, WEIGHTS_FILE)

    def check(self) -> float:
        """Read all tensors, a chunk at a time; returns the sum of their squares.

        Raises:
            InputError: they are not those that were saved, or not finite.
        """
        # hashlib and torch leave the interpreter to others while they work.
        with ThreadPoolExecutor(THREADS) as pool:
            found = dict(zip(self.files, pool.map(self._hash_and_squares, self.files)))
        squares = sum(squares for _, squares in found.values())
        hashes = {name: digest for name, (digest, _) in found.items()}
        self.compare(self.config["sha256"], sha256_json(hashes), math.isfinite(squares))
        return squares

    def compare_stored(self, hashes: Mapping[str, str], finite: bool):
        """Tell, by `sha256_tensor` of the tensors as they are stored, whether they are what was saved.

        Raises:
            InputError: as `check`.
        """
        self.compare(self.config["stored_sha256"], stored_sha256(self.config["sha256"], hashes), finite)

    def compare(self, expected: str, found: str, finite: bool):
        if not finite:
            raise InputError(f"{self.folder}: its tensors are not all finite; save or download it again")
        if expected != found:
            raise InputError(f"{self.folder}: tensors are not those of its {CONFIG_FILE}; save or download it again")

    def _hash_and_squares(self, name: str) -> tuple[str, float]:
        """Hash of a tensor in fp32, as `UpdateDelta.sha256` has it, and the sum of its squares."""
        stored, squares = self.stored(name), 0.0
        digest = begin_tensor_hash(torch.float32, stored.shape)
        for chunk in map(torch.Tensor.float, stored.chunks()):
            digest.update(as_bytes(chunk))
            part = float(torch.dot(chunk, chunk))
            # Squares of large numbers may leave the range of fp32.
            squares += part if math.isfinite(part) else float(chunk.double().square().sum())
        return digest.hexdigest(), squares


def stored_sha256(sha256: str, hashes: Mapping[str, str]) -> str:
    """Hash of an update as it is stored: of its `sha256`, which is of fp32 values, and of `hashes` of its tensors."""
    return sha256_json({"sha256": sha256, "tensors": hashes})


def describe(path_or_repo: str | Path) -> dict:
    """What a saved delta is: its configuration, `files` and `tensors` by name, `bytes` and `norm` of all of them.

    Tensors are read one at a time.

    Raises:
        InputError: there is no complete delta at that place, or it is not what was saved.
    """
    reader = DeltaReader(path_or_repo)
    squares = reader.check()
    stored = {name: reader.stored(name) for name in sorted(reader.files)}
    names = {file.name for pattern in FILES for file in reader.folder.glob(pattern)}
    sizes = {name: (reader.folder / name).stat().st_size for name in sorted(names)}
    return {
        **reader.config,
        "files": sizes,
        "tensors": {
            name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in stored.items()
        },
        "bytes": sum(sizes[name] for name in reader.filenames),
        "norm": math.sqrt(squares),
    }

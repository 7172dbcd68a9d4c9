# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Provenance of a number: the command, the date, versions of code and libraries, the machine."""

import datetime
import functools
import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from ..version import __version__
from .files import write_json
from .published import TOKEN


def library_versions() -> dict[str, str]:
    """Versions of what computes the numbers: {"python": ..., "torch": ..., ...}."""
    names = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"hf_unlearn": __version__, "python": platform.python_version(), **versions}


def environment() -> dict[str, str]:
    """Where numbers came from: library versions, system, processors and accelerator."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **library_versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "accelerators": ", ".join(devices) or "none",
    }


def utc_now() -> str:
    """The time, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def command_line(program: str | None = None) -> str:
    """The command that runs, as a reader can give it: with `program` in place of its file, and without places."""
    file = Path(sys.argv[0])
    module = f"python -m {file.parent.name}" if file.name == "__main__.py" else None
    program = program or module or ("python " if file.suffix == ".py" else "") + without_places(sys.argv[0])
    return " ".join([program, *without_places(sys.argv[1:])])


def without_places(value):
    """A value, or all of nested ones, as it may be shown to others.

    Paths that are absolute, or lead out of the working folder, say nothing to a reader and are cut to their last part,
    also behind an equals sign (`--output=/a/b`, `model=/a/b`); access tokens are taken out.
    """
    if isinstance(value, Mapping):
        return {key: without_places(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(part) for part in value]
    if not isinstance(value, str | Path):
        return value
    name, equals, path = str(value).rpartition("=")
    place = Path(path)
    if (place.is_absolute() and place.name) or ".." in place.parts or path.startswith("~/"):
        path = place.resolve().name
    return TOKEN.sub("TOKEN", f"{name}{equals}{path}")


def record_run(path: str | Path, about: Mapping):
    """Write `about` with the command, the date, versions and machine."""
    write_json(path, {"command": command_line(), "date": utc_now(), **about, "environment": environment()})


@functools.cache
def code_sha256() -> str:
    """Hash of this package's source."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Provenance of a number: the command, the date, versions of code and libraries, the machine."""

import datetime
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


def record_run(path: str | Path, about: Mapping):
    """Write `about` with the command, the date, versions and machine."""
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    shown = [Path(argument).name if Path(argument).is_absolute() else argument for argument in sys.argv]
    shown = ["python", *shown] if shown[0].endswith(".py") else shown
    write_json(path, {"command": " ".join(shown), "date": date, **about, "environment": environment()})


def code_sha256() -> str:
    """Hash of this package's source."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()

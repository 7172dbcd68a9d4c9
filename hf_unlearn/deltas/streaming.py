# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Transfer of a saved update onto a checkpoint, shard by shard."""

import os
import shutil
from pathlib import Path

from ..errors import InputError
from ..runtime.checkpoints import Shards
from ..runtime.files import open_safetensors, temporary_folder, write_json, write_safetensors
from ..runtime.hub import fetch_folder, hide_places, public_name
from .adding import add, check_scale, check_targets, is_base, warn_of_other_base
from .reader import DeltaReader


CHECKPOINT = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*"]
# Weights in another format and the card describe the model as it was, so `transfer` does not carry them over.
NOT_TRANSFERRED = {".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx"}


def transfer(delta_dir: str | Path, model_dir: str | Path, output_dir: str | Path, scale: float = 1.0) -> Path:
    """Apply a saved delta to a safetensors checkpoint, file by file, and write the result as a new checkpoint.

    Memory: one shard of the checkpoint and one tensor of the delta. Configuration and tokenizer files are copied; the
    card and weights in other formats are not, for they describe the model as it was. The result is built in a hidden
    folder beside `output_dir` and renamed at the end, so a kill leaves no half checkpoint. Delta and checkpoint (with
    `model.safetensors`, or shards and their index) are folders or Hub repositories; `output_dir` is new or empty.

    Raises:
        InputError: a folder is not what it should be, or the checkpoint lacks a tensor of the delta.
        OSError: the result could not be written (nothing is left behind).
    """
    check_scale(scale)
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output} exists and is not an empty folder; choose another --output or remove it")
    reader = DeltaReader(delta_dir)
    source = fetch_folder(model_dir, None, CHECKPOINT)
    checkpoint = Shards(source, "model.safetensors")
    shapes = {name: shape for name, (shape, _) in reader.headers(reader.files).items()}
    check_targets(shapes, checkpoint.headers(reader.files))

    with temporary_folder(output.parent, output.name) as building:
        other_base = []
        for filename in checkpoint.filenames:
            names = [name for name, file in checkpoint.files.items() if file == filename]
            other_base += _transfer_shard(source / filename, building / filename, names, reader, scale)
        warn_of_other_base(reader.config, other_base)
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix not in NOT_TRANSFERRED and file.name != "README.md":
                shutil.copyfile(file, building / file.name)
        record = {"delta": reader.config, "model": public_name(model_dir), "scale": scale, "other_base": other_base}
        write_json(building / "unlearning_transfer.json", record)
        hide_places(building)
        building.chmod(0o755)
        os.replace(building, output)
    return output


def _transfer_shard(source: Path, target: Path, names: list[str], reader, scale: float) -> list[str]:
    """Write one shard with the update added; returns the touched tensors whose hash is not the delta's base."""
    if not any(name in reader.files for name in names):
        shutil.copyfile(source, target)
        return []
    with open_safetensors(source) as shard:
        tensors = {name: shard.get_tensor(name) for name in names}
        touched = [name for name in names if name in reader.files]
        other_base = [name for name in touched if not is_base(reader.config, name, tensors[name])]
        for name in touched:
            tensors[name] = add(tensors[name], reader.tensor(name), scale)
        write_safetensors(target, tensors, shard.metadata())
    return other_base

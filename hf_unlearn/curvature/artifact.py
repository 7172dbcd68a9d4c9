# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A fitted curvature as files, and of which model it is: each process writes, and reads, what it owns."""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..runtime.files import open_safetensors, read_json, sha256_tensor, write_json, write_safetensors
from ..runtime.processes import Processes, own
from ..runtime.sharded import whole
from .layout import assign_weights, tensor_weight


CONFIG_FILE = "curvature_config.json"
FORMAT = 2
SHARD_BYTES = 5 * 10**9


def save(curvature, folder: str | Path) -> Path:
    """See `Curvature.save_pretrained`."""
    from huggingface_hub import split_torch_state_dict_into_shards

    folder, processes = Path(folder), _owners(curvature)
    processes.doing = "saving a curvature"
    split = split_torch_state_dict_into_shards(curvature.tensors, max_shard_size=SHARD_BYTES)
    shards = list(split.filename_to_tensors.values())
    # From here on an older curvature in this folder is gone: its config must not stand beside new shards.
    counts = processes.share(lambda: (folder / CONFIG_FILE).unlink(missing_ok=True) or len(shards))
    first, total = sum(counts[: processes.rank]), sum(counts)
    files = {
        f"curvature-{first + number:05d}-of-{total:05d}.safetensors": names for number, names in enumerate(shards, 1)
    }

    def write() -> dict[str, list[str]]:
        for file, names in files.items():
            write_safetensors(folder / file, {name: curvature.tensors[name] for name in names})
        return files

    written = {file: names for part in processes.share(write) for file, names in part.items()}
    config = {**curvature.metadata, "format": FORMAT, "files": written}
    own(processes, lambda: write_json(folder / CONFIG_FILE, config) if processes.rank == 0 else None)
    return folder


def load(
    kinds: Mapping[str, type],
    folder_or_repo: str | Path,
    model: nn.Module | None,
    device: str | torch.device,
    revision: str | None,
    accelerator,
):
    """See `Curvature.from_pretrained`; `kinds` are the classes that are known."""
    from ..runtime.hub import fetch_folder

    processes = Processes(accelerator)
    processes.doing = "loading a curvature"

    def read():
        folder = fetch_folder(folder_or_repo, revision, ["curvature*"])
        if not (folder / CONFIG_FILE).is_file():
            raise InputError(
                f"{folder_or_repo} holds no {CONFIG_FILE}: give the folder or repository of a saved curvature"
            )
        metadata = read_json(folder / CONFIG_FILE)
        if metadata.pop("format", None) != FORMAT:
            raise InputError(f"{folder_or_repo} was written by another version of hf_unlearn: fit the curvature again")
        if metadata["kind"] not in kinds:
            raise InputError(
                f"{folder_or_repo} holds a curvature of the kind {metadata['kind']!r}, which no class has: import the "
                "module that defines it first"
            )
        curvature = kinds[metadata["kind"]]()
        files, curvature.metadata = metadata.pop("files"), metadata
        if processes.size > 1 and curvature.passes:
            curvature.processes = processes
            curvature.owners = assign_weights(type(curvature), metadata["targets"], processes.size)
        for file, names in files.items():
            chosen = [name for name in names if curvature.holds(tensor_weight(name))]
            with open_safetensors(folder / file, str(device)) as shard:
                curvature.tensors |= {name: shard.get_tensor(name) for name in chosen}
        if model is not None:
            curvature.check_model(model)
        return curvature

    return own(processes, read)


def push(curvature, repo: str, private: bool | None, token: str | None) -> str:
    """See `Curvature.push_to_hub`."""
    from ..runtime.hub import push_folder

    processes = _owners(curvature)
    main = processes.rank == 0
    with tempfile.TemporaryDirectory() as own:
        folder = processes.gather(own)[0]
        save(curvature, folder)
        processes.doing = "pushing a curvature"
        push_main = lambda: push_folder(repo, folder, private=private, commit_message="Add curvature", token=token)
        return processes.share(lambda: push_main() if main else None)[0]


def check_model(curvature, model: nn.Module, strict: bool):
    """See `Curvature.check_model`."""
    parameters = dict(model.named_parameters())
    for name, target in curvature.metadata["targets"].items():
        if name not in parameters:
            raise InputError(f"the curvature is of another architecture: the model has no {name}; fit it again")
        if list(parameters[name].shape) != target["shape"]:
            raise InputError(
                f"the curvature is of another architecture: {name} is {list(parameters[name].shape)} in the model "
                f"and {target['shape']} in the curvature; fit it again"
            )
    for name, digest in curvature.metadata["weights_sha256"].items():
        if sha256_tensor(whole(parameters[name])) != digest:
            if strict:
                raise InputError(
                    f"the curvature was fitted on other weights: {name} has other values in this model; fit it "
                    "again, or load it with Curvature.from_pretrained and pass the object to use it all the same"
                )
            warnings.warn(
                f"the curvature was fitted on other weights: {name} has changed since; refit it, or go on if the "
                "change is small",
                stacklevel=3,
            )
            return


def _owners(curvature) -> Processes:
    """Those among whom the tensors are spread: this one alone when it holds all."""
    return curvature.processes if curvature.owners else Processes()

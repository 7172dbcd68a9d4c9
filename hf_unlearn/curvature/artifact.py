# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A fitted curvature as files, and of which model it is: each process writes, and reads, what it owns."""

import contextlib
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..runtime.files import (
    check_names,
    read_json,
    read_tensors,
    sha256_tensor,
    unsealed,
    write_safetensors,
    write_sealed,
)
from ..runtime.folders import staged_folder
from ..runtime.hub import fetch_folder, push_folder
from ..runtime.processes import Processes, own
from ..runtime.shapes import check_shape
from ..runtime.sharded import whole
from .layout import assign_weights, tensor_weight


CONFIG_FILE = "curvature_config.json"
FILES = ("curvature-*.safetensors", CONFIG_FILE)
FORMAT = 4
SHAPE = {
    "sha256": str,
    "kind": str,
    "targets": {str: {"shape": [int], "kept": [int], "kept_sha256": (str, None), "transposed": bool}},
    "weights_sha256": {str: str},
    "files": {str: {str: str}},
}
SHARD_BYTES = 5 * 10**9
# Kind -> class, in order of definition: every subclass of `Curvature` that has a `kind` of its own.
KINDS: dict[str, type["CurvatureFiles"]] = {}


def describe(folder: str | Path) -> dict:
    """What a saved curvature is: its account of the fit, `files` and `tensors` by name, `bytes` of all tensors' files.

    Tensors are read one at a time, and need no class of their kind.

    Raises:
        InputError: there is no complete curvature in the folder, or it is not what was saved.
    """
    folder = Path(folder)
    metadata = _read_config(folder, folder)
    hashes, tensors = metadata.pop("files"), {}
    for file, digests in hashes.items():
        for name, digest in digests.items():
            tensor = read_tensors(folder / file, [name], digests)[name]
            dtype = str(tensor.dtype).removeprefix("torch.")
            tensors[name] = {"shape": list(tensor.shape), "dtype": dtype, "sha256": digest}
    sizes = {name: (folder / name).stat().st_size for name in [CONFIG_FILE, *hashes]}
    return {**metadata, "files": sizes, "tensors": tensors, "bytes": sum(sizes[file] for file in hashes)}


def _read_config(folder: Path, place: str | Path) -> dict:
    """The account of a saved curvature, with the names and hashes of its files' tensors; `place` is what was given."""
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{place} holds no {CONFIG_FILE}: give the folder or repository of a saved curvature")
    metadata = read_json(folder / CONFIG_FILE, {})
    if metadata.get("format") != FORMAT:
        raise InputError(f"{place} was written by another version of hf_unlearn: fit it again")
    check_shape(metadata, SHAPE, folder / CONFIG_FILE)
    check_names(metadata["files"], folder / CONFIG_FILE)
    metadata = unsealed(metadata, folder / CONFIG_FILE)
    del metadata["format"]
    return metadata


class CurvatureFiles:
    """The part of a `Curvature` that knows files: the kinds by which they are read, saving, loading, pushing."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "kind" not in vars(cls):
            return
        known = KINDS.get(cls.kind, cls)
        # A class that is defined again, by a notebook's cell that runs twice, takes its own place.
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            place = f"{known.__module__}.{known.__qualname__}"
            raise InputError(f"the curvature kind {cls.kind!r} is {place}: give the new class another")
        KINDS[cls.kind] = cls

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `curvature_config.json` and safetensors shards, whose hashes it holds, into a folder of their own.

        Each process writes what it owns, so all of them must see the same folder. An older curvature there is
        replaced as a whole (`staged_folder`): a failure or a kill leaves it as it was.

        Raises:
            OSError: a file could not be written.
        """
        from huggingface_hub import split_torch_state_dict_into_shards

        folder, processes = Path(folder), self._spread_over()
        processes.doing = "saving a curvature"
        # The identity is held by all processes of its fit, and written by one.
        mine = self.tensors if self.owners or processes.rank == 0 else {}
        split = split_torch_state_dict_into_shards(mine, max_shard_size=SHARD_BYTES)
        shards = list(split.filename_to_tensors.values())
        counts = processes.gather(len(shards))
        first, total = sum(counts[: processes.rank]), sum(counts)
        files = {f"curvature-{first + n:05d}-of-{total:05d}.safetensors": names for n, names in enumerate(shards, 1)}

        def write() -> dict[str, dict]:
            written = {}
            for file, names in files.items():
                tensors = {name: self.tensors[name] for name in names}
                write_safetensors(staging / file, tensors)
                written[file] = {name: sha256_tensor(tensor) for name, tensor in tensors.items()}
            return written

        def place():
            config = {**self.metadata, "format": FORMAT, "files": written}
            write_sealed(staging / CONFIG_FILE, config)
            stack.close()  # here the folder is put in its place

        with contextlib.ExitStack() as stack:
            begin = lambda: stack.enter_context(staged_folder(folder, FILES)) if processes.rank == 0 else None
            staging = processes.share(begin)[0]
            written = {file: hashes for part in processes.share(write) for file, hashes in part.items()}
            own(processes, lambda: place() if processes.rank == 0 else None)
        return folder

    @staticmethod
    def from_pretrained(
        folder_or_repo: str | Path,
        *,
        model: nn.Module | None = None,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        accelerator=None,
    ) -> "CurvatureFiles":
        """Load what `save_pretrained` wrote, of whatever kind and by however many processes, from a folder or the Hub.

        Args:
            folder_or_repo (`str` or `Path`): a folder, or a repository of the Hub.
            model (`nn.Module`, *optional*, defaults to `None`): to check the curvature against, see `check_model`.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): where the tensors lie; a solve brings
                those of one weight at a time to the gradient's device.
            revision (`str`, *optional*, defaults to `None`): of the repository.
            accelerator (`accelerate.Accelerator`, *optional*, defaults to `None`): with several processes each loads
                the tensors of its own weights only.

        Raises:
            InputError: nothing there, damaged, another format, a kind that no class has, or not of this `model`.
        """
        processes = Processes(accelerator, "loading a curvature")

        def read():
            folder = fetch_folder(folder_or_repo, revision, ["curvature*"])
            metadata = _read_config(folder, folder_or_repo)
            if metadata["kind"] not in KINDS:
                raise InputError(
                    f"{folder_or_repo} holds a curvature of the kind {metadata['kind']!r}, which no class has: import "
                    "the module that defines it first"
                )
            curvature = KINDS[metadata["kind"]]()
            files, curvature.metadata = metadata.pop("files"), metadata
            if processes.size > 1 and curvature.passes:
                curvature.processes = processes
                curvature.owners = assign_weights(type(curvature), metadata["targets"], processes.size)
            for file, hashes in files.items():
                chosen = [name for name in hashes if curvature.holds(tensor_weight(name))]
                curvature.tensors |= read_tensors(folder / file, chosen, hashes, str(device))
            if model is not None:
                curvature.check_model(model)
            return curvature

        return own(processes, read)

    def push_to_hub(self, repo: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload to the Hub in one commit; the commit's URL."""
        processes = self._spread_over()
        with tempfile.TemporaryDirectory() as own_folder:
            folder = self.save_pretrained(processes.gather(own_folder)[0])
            processes.doing = "pushing a curvature"
            push = lambda: push_folder(repo, folder, private=private, commit_message="Add curvature", token=token)
            return processes.share(lambda: push() if processes.rank == 0 else None)[0]

    def check_model(self, model: nn.Module, strict: bool = False):
        """Raise InputError when a weight is missing or of another shape; warn when its values are not those fitted.

        With `strict` other values are an InputError too.
        """
        parameters = dict(model.named_parameters())
        for name, target in self.metadata["targets"].items():
            if name not in parameters:
                raise InputError(f"the curvature is of another architecture: the model has no {name}; fit it again")
            if list(parameters[name].shape) != target["shape"]:
                raise InputError(
                    f"the curvature is of another architecture: {name} is {list(parameters[name].shape)} in the model "
                    f"and {target['shape']} in the curvature; fit it again"
                )
        for name, digest in self.metadata["weights_sha256"].items():
            if sha256_tensor(whole(parameters[name])) != digest:
                if strict:
                    raise InputError(
                        f"the curvature was fitted on other weights: {name} has other values in this model; fit it "
                        "again, or load it with Curvature.from_pretrained and pass the object to use it all the same"
                    )
                warnings.warn(
                    f"the curvature was fitted on other weights: {name} has changed since; refit it, or go on if the "
                    "change is small",
                    stacklevel=2,
                )
                return

    def _spread_over(self) -> Processes:
        """The processes that were in the fit, or have loaded a share each: this one alone when it loaded all."""
        return self.processes

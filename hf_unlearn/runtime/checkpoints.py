# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Names of tensors in memory and on disk: under adapters, merged, and in the shards of a checkpoint."""

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError
from .files import check_names, open_safetensors, read_json, read_tensors
from .modules import is_peft
from .sharded import is_sharded, reshard, whole


# What PEFT puts into the name of a weight that it wraps.
WRAPPERS = re.compile(r"(\.token_adapter)?(\.base_layer|\.original_module)+\.")


def base_tensors(model: torch.nn.Module | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a model (or of its state dict) under the names they have in the base model's checkpoint.

    PEFT wraps the model as `base_model.model.*`, a tuned layer's weight as `*.base_layer.*` (again for each of its
    parameters that is tuned by itself), that of tuned tokens as `*.token_adapter.base_layer.*` and a fully tuned
    module as `*.original_module.*`; these parts are taken out of the names, and the adapters' own tensors are left
    out. The tensors are the live ones: writing into them changes the model.
    """
    state = model.state_dict() if isinstance(model, torch.nn.Module) else dict(model)
    inside = [name for name in state if name.startswith("base_model.")]
    if inside:
        # Prompt learning wraps the model once (`base_model.lm_head`), other tuners twice (`base_model.model.lm_head`).
        twice = all(name.startswith("base_model.model.") for name in inside)
        prefix = "base_model.model." if twice else "base_model."
        state = {name.removeprefix(prefix): state[name] for name in inside}
    wrapped = {name.split(part)[0] for part in (".base_layer.", ".original_module.") for name in state if part in name}
    result = {}
    for name, tensor in state.items():
        clean = WRAPPERS.sub(".", name)
        modules = name.split(".")
        if clean == name and any(".".join(modules[:depth]) in wrapped for depth in range(1, len(modules))):
            continue
        result[clean] = tensor
    return result


def tied_names(model: torch.nn.Module) -> list[list[str]]:
    """Groups of names that are one parameter, as the base model's checkpoint has them, in the model's order."""
    groups: dict[int, list[str]] = {}
    for name, parameter in base_tensors(dict(model.named_parameters(remove_duplicate=False))).items():
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


# Elements of a tensor that are read, added and written at a time: 2 MB in fp32, for which memory is used again.
CHUNK = 2**19
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a safetensors file, row-major and little-endian."""

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    begin: int  # its first byte in the file

    @property
    def end(self) -> int:
        """The byte after its last one."""
        return self.begin + self.shape.numel() * self.dtype.itemsize

    def chunks(self, first: int = 0, count: int | None = None) -> Iterator[torch.Tensor]:
        """Its elements as flat tensors of `CHUNK`, read when asked for into memory that the next one uses again.

        Args:
            first (`int`, *optional*, defaults to 0): the element to begin with.
            count (`int`, *optional*): how many elements; None: all.

        Raises:
            InputError: the file ends before the tensor does.
        """
        left = self.shape.numel() if count is None else count
        memory = memoryview(bytearray(min(left, CHUNK) * self.dtype.itemsize))
        with open(self.path, "rb") as file:
            file.seek(self.begin + first * self.dtype.itemsize)
            while left:
                content = memory[: min(left, CHUNK) * self.dtype.itemsize]
                if file.readinto(content) != len(content):
                    raise InputError(f"{self.path} is cut short; save or download it again")
                left -= min(left, CHUNK)
                yield torch.frombuffer(content, dtype=self.dtype)


class Shards:
    """The tensors of `x.safetensors`, or of the shards that `x.safetensors.index.json` lists, read one at a time."""

    def __init__(self, folder: Path, filename: str):
        self.folder, self._headers = folder, {}
        index = folder / f"{filename}.index.json"
        if (folder / filename).is_file():
            with open_safetensors(folder / filename) as file:
                self.files = dict.fromkeys(file.keys(), filename)
        elif index.is_file():
            content = read_json(index)
            self.files = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(self.files, dict):
                raise InputError(f"{index} has no weight_map: save or download the checkpoint again")
            check_names(self.files.values(), index)
        else:
            raise InputError(f"{folder} has no {filename} and no {index.name}; save it with save_pretrained()")
        self.filenames = sorted(set(self.files.values()))
        absent = [name for name in self.filenames if not (folder / name).is_file()]
        if absent:
            raise InputError(f"{folder} lacks {shorten(absent)}; save or download it again")

    def tensor(self, name: str) -> torch.Tensor:
        return read_tensors(self.folder / self.files[name], [name])[name]

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor of a floating-point type lies."""
        path = self.folder / self.files[name]
        if path not in self._headers:
            with open_safetensors(path), open(path, "rb") as file:  # the first checks what the second reads
                length = int.from_bytes(file.read(8), "little")
                self._headers[path] = 8 + length, json.loads(file.read(length))
        start, header = self._headers[path]
        entry = header.get(name, {})
        if entry.get("dtype") not in _DTYPES:
            raise InputError(f"{path} holds no floating-point tensor {name}; save or download it again")
        return StoredTensor(
            path, _DTYPES[entry["dtype"]], torch.Size(entry["shape"]), start + entry["data_offsets"][0]
        )

    def headers(self, names: Iterable[str]) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """{name: (shape, dtype)} of those of `names` that exist, from the files' headers."""
        headers = {}
        for filename in self.filenames:
            with open_safetensors(self.folder / filename) as file:
                for name in set(file.keys()).intersection(names):
                    piece = file.get_slice(name)
                    # Types that no update can be added to (integers, eight bits) need no name of their own here.
                    headers[name] = (torch.Size(piece.get_shape()), _DTYPES.get(piece.get_dtype(), torch.uint8))
        return headers


def can_merge(model) -> bool:
    """Whether the adapters of a PEFT model are a change of its weights; prompts are none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return bool(layers) and not any(hasattr(layer, "cannot_merge") for layer in layers)


def needs_merging(model, own_update: bool) -> bool:
    """Whether a PEFT model's own weights have moved under its adapter, which alone would be saved otherwise.

    A model that is spread over processes is saved by all of them together, as it is.
    """
    return own_update and is_peft(model) and can_merge(model) and not is_sharded(model)


def save_merged(model, folder: str | Path):
    """Save a PEFT model as the base model's class, with its active adapters merged; the model stays as it is."""
    state = base_tensors(model)
    state |= {name: tensor.to(state[name].dtype) for name, tensor in merged_weights(model).items()}
    model.get_base_model().save_pretrained(folder, state_dict=state)


@torch.no_grad()
def merged_weights(model) -> dict[str, torch.Tensor]:
    """Weights that a PEFT model has where its active adapters are merged, of all that they tune: {base name: fp32}.

    These are the weights of tuned layers, of fully tuned modules and of tuned tokens, and the base model's own
    parameters that are trained beside them (`bias="all"`). Collective for a sharded model.

    Raises:
        InputError: its adapter is none that can be merged (prompts), or tunes one of several names of a tied weight,
            which the base model could not hold.
    """
    tuned_names(model)
    reshard(model)
    merged = _beside_adapters(model)
    for name, layer in _wrappers(model).items():
        merged |= {f"{name}.base_layer.{key}": tensor for key, tensor in _merge(layer)}
    return base_tensors({name: whole(tensor.detach()).float().cpu().clone() for name, tensor in merged.items()})


def tuned_names(model) -> set[str]:
    """Base names of the weights that a PEFT model's adapters change, and of those that are trained beside them.

    Raises:
        InputError: as `merged_weights`, without its work.
    """
    wrappers = _wrappers(model)
    if not wrappers:
        raise InputError("this adapter cannot be merged into weights, so there is no update to report: use LoRA")
    inside = (f"{name}.base_layer.{key}" for name, layer in wrappers.items() for key in _tuned(layer))
    tuned = set(base_tensors(dict.fromkeys([*_beside_adapters(model), *inside])))
    for group in tied_names(model):
        alone = tuned.intersection(group)
        if alone and len(alone) < len(group):
            raise InputError(
                f"{shorten(group)} are one tied weight and the adapter tunes {shorten(alone)} alone, which the base "
                "model cannot hold: set ensure_weight_tying=True in its configuration, or leave it out of it"
            )
    return tuned


def _wrappers(model) -> dict[str, torch.nn.Module]:
    """Name -> what PEFT has put around a module of the base model; of one in another the outer one."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer | AuxiliaryTrainingWrapper) and not name.startswith(_places(found)):
            found[name] = layer
    return found


def _places(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def _beside_adapters(model) -> dict[str, torch.nn.Parameter]:
    """The base model's own parameters that are trained beside its adapters (`bias="all"`)."""
    inside = _places(_wrappers(model))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name.startswith("base_model.model.") and not name.startswith(inside)
    }


def _tuned(layer) -> list[str]:
    """Names of the parameters that an adapter changes in the module that it wraps."""
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        return [name for name, _ in layer.modules_to_save[layer.active_adapters[0]].named_parameters()]
    if isinstance(layer, TrainableTokensWrapper):
        return ["weight"]
    # Parameters that are tuned by themselves (`target_parameters`), one wrapper in another.
    alone = [one.parameter_name for one in layer.modules() if hasattr(one, "parameter_name")]
    return alone or [name for name, _ in layer.get_base_layer().named_parameters()]


def _merge(layer):
    """(name, weight) of what an adapter makes of the module that it wraps."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(layer, ModulesToSaveWrapper):
        yield from layer.modules_to_save[layer.active_adapters[0]].named_parameters()
    elif isinstance(layer, TrainableTokensWrapper):
        yield "weight", layer.token_adapter.get_merged_weights(layer.token_adapter.active_adapters)
    else:
        # One layer at a time, in fp32: what merging would round away is part of the update.
        # What PEFT was called with is not copied: of tied layers it has views of weights, which cannot be.
        called = getattr(layer, "kwargs", {})
        twin = copy.deepcopy(layer, {id(called): called}).float()
        for one in twin.modules():
            if isinstance(one, BaseTunerLayer):  # one in another where parameters are tuned by themselves
                one.merge()
        yield from twin.get_base_layer().named_parameters()


def shorten(names: Iterable[str], most: int = 5) -> str:
    """The first names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Heads and filters of a transformer: where each one's output enters a projection, and which entries it owns."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.files import sha256_json
from ..runtime.modules import is_peft


KINDS = ("heads", "filters")


@dataclass(frozen=True)
class Heads:
    """The modules of an attention, named from the layer on.

    Args:
        output (`str`): the projection at whose input the heads' outputs stand side by side.
        inputs (`tuple[str, ...]`): query, key and value; or one module that makes all three.
        size (`str`, *optional*, defaults to `"head_dim"`): the attribute, of the module that holds the query, that is
            the width of a head.
        order (`str`, *optional*, defaults to `"blocks"`): of the rows of one module for all three: `"blocks"` for all
            queries, then all keys, then all values; `"heads"` for query, key and value of each head.
    """

    output: str
    inputs: tuple[str, ...]
    size: str = "head_dim"
    order: str = "blocks"


@dataclass(frozen=True)
class Filters:
    """The modules of a feed-forward block, named from the layer on.

    Args:
        output (`str`): the down projection, whose inputs are the filters.
        inputs (`tuple[str, ...]`): the up projection; gate and up; or one module whose rows are all gates,
            then all ups.
    """

    output: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How the layers of a model are built, for `find_structures`; None for what they do not have."""

    heads: Heads | None
    filters: Filters | None


QKV = ("q_proj", "k_proj", "v_proj")

# Known by the names of modules, not of classes: whoever names them so, builds them so.
ATTENTIONS = {
    "BERT, RoBERTa, ELECTRA": Heads(
        "attention.output.dense",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        size="attention_head_size",
    ),
    "DistilBERT": Heads(
        "attention.out_lin",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        size="attention_head_size",
    ),
    "Llama, Qwen, Mistral, Gemma": Heads("self_attn.o_proj", tuple(f"self_attn.{name}" for name in QKV)),
    "OPT, CLIP, SigLIP": Heads("self_attn.out_proj", tuple(f"self_attn.{name}" for name in QKV)),
    "Phi-3": Heads("self_attn.o_proj", ("self_attn.qkv_proj",)),
    "GPT-2": Heads("attn.c_proj", ("attn.c_attn",)),
    "GPT-NeoX": Heads("attention.dense", ("attention.query_key_value",), size="head_size", order="heads"),
    "ViT, DINOv2": Heads("attention.o_proj", tuple(f"attention.{name}" for name in QKV)),
}
FEED_FORWARDS = {
    "BERT, RoBERTa, ELECTRA": Filters("output.dense", ("intermediate.dense",)),
    "DistilBERT": Filters("ffn.lin2", ("ffn.lin1",)),
    "Llama, Qwen, Mistral, Gemma": Filters("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
    "Phi-3": Filters("mlp.down_proj", ("mlp.gate_up_proj",)),
    "GPT-2": Filters("mlp.c_proj", ("mlp.c_fc",)),
    "GPT-NeoX": Filters("mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "ViT, DINOv2, CLIP, SigLIP": Filters("mlp.fc2", ("mlp.fc1",)),
    "OPT": Filters("fc2", ("fc1",)),
}
DESCRIBE = (
    "describe its layers: find_structures(model, layout=Layout(heads=Heads(output='self_attn.o_proj', "
    "inputs=('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'), size='head_dim'), "
    "filters=Filters(output='mlp.down_proj', inputs=('mlp.gate_proj', 'mlp.up_proj'))), with the names in its layers"
)


@dataclass(frozen=True, eq=False)
class Part:
    """The share that a site's structures have in one parameter.

    Entry i along `dim` of the parameter as it is stored belongs to the structures `first[i]` to `last[i]` - 1: to one,
    or, for keys and values under grouped queries, to all of the group.

    Args:
        dim (`int`): 0 or 1.
        first, last (`Tensor`): of shape (length of `dim`,).
        on_inputs (`bool`): whether `dim` is that of the layer's inputs (output and down projections), the columns of a
            weight (d_out, d_in); else of its outputs, its rows. A `Conv1D` stores the transpose.
    """

    dim: int
    first: Tensor
    last: Tensor
    on_inputs: bool

    def kept(self, chosen: Tensor) -> Tensor:
        """Which entries along `dim` any of the chosen structures, a bool (count,), owns: a bool (length of `dim`,)."""
        before = torch.cat([torch.zeros(1, dtype=torch.long), chosen.cpu().long().cumsum(0)])
        return before[self.last] > before[self.first]


@dataclass(frozen=True, eq=False)
class Site:
    """The heads or the filters of one layer.

    Args:
        layer (`int`): number of the layer.
        kind (`str`): `"heads"` or `"filters"`.
        module (`str`): the projection at whose input the structures' outputs stand side by side: the hook point.
        count (`int`): structures.
        width (`int`): of each at that input: the width of a head; 1 for filters.
        parts (`dict[str, Part]`): `state_dict` name of a parameter -> the structures' share in it.
    """

    layer: int
    kind: str
    module: str
    count: int
    width: int
    parts: Mapping[str, Part] = field(repr=False)

    @property
    def key(self) -> str:
        return f"{self.kind}.{self.layer}"

    def owned(self, structure: int) -> dict[str, tuple[int, Tensor]]:
        """`state_dict` name -> (dim as stored, entries along it) of all that one structure owns or shares."""
        chosen = torch.zeros(self.count, dtype=torch.bool)
        chosen[structure] = True
        return {name: (part.dim, part.kept(chosen).nonzero()[:, 0]) for name, part in self.parts.items()}


@dataclass(frozen=True, eq=False)
class Structures:
    """The heads and filters of a model, for masks over them.

    What no structure owns, biases of output projections, norms (of queries and keys too), embeddings and everything
    outside the layers, is in `unowned`: no mask lets it be updated.

    Args:
        sites (`dict[str, Site]`): key (`"heads.0"`, `"filters.0"`, `"heads.1"`, ...) -> site, from the input on.
        shapes (`dict[str, tuple[int, ...]]`): of every parameter.
        unowned (`tuple[str, ...]`): parameters that belong to no structure.
    """

    sites: Mapping[str, Site]
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    unowned: tuple[str, ...] = field(repr=False)

    @functools.cached_property
    def owners(self) -> dict[str, tuple[Site, Part]]:
        """`state_dict` name of a parameter -> the site whose structures own it, and their share."""
        return {name: (site, part) for site in self.sites.values() for name, part in site.parts.items()}

    @property
    def layers(self) -> int:
        return 1 + max(site.layer for site in self.sites.values())

    def count(self, kinds: Iterable[str] = KINDS) -> int:
        """Number of structures of these kinds."""
        return sum(site.count for site in self.sites.values() if site.kind in kinds)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of what a mask is made for: sites, their sizes, and the shapes of what their structures own."""
        return sha256_json(
            {
                site.key: [site.module, site.count, site.width, {name: self.shapes[name] for name in site.parts}]
                for site in self.sites.values()
            }
        )


def find_structures(model: nn.Module, layout: Layout | None = None) -> Structures:
    """Find the heads and filters of a model, and what each of them owns.

    A head owns its rows of query, key and value (and of their biases) and its columns of the output projection; a
    filter its row of the up projection (and of the gate, and of biases) and its column of the down projection. Under
    grouped queries the rows of key and value belong to the heads of the group together.

    Args:
        model (`nn.Module`): a transformer: an encoder, a decoder, or images', with any head on top.
        layout (`Layout`, *optional*, defaults to `None`): how its layers are built; by default known by the names of
            modules (`ATTENTIONS`, `FEED_FORWARDS`). What a given one leaves out is in `Structures.unowned`.

    Raises:
        InputError: no layer, or not all of a layer, is known; a weight that cannot be split into structures, is
            tied to another, or quantised; an adapter.
    """
    if is_peft(model):
        raise InputError("heads and filters are those of a model without an adapter: merge_and_unload it first")
    modules = dict(model.named_modules())
    attentions = list(ATTENTIONS.values()) if layout is None else [layout.heads] if layout.heads else []
    feed_forwards = list(FEED_FORWARDS.values()) if layout is None else [layout.filters] if layout.filters else []
    found = {**_places(modules, attentions), **_places(modules, feed_forwards)}  # output -> (layer, its description)
    order = {name: number for number, name in enumerate(modules)}
    layers = {place: n for n, place in enumerate(sorted({place for place, _ in found.values()}, key=order.get))}
    sites = {}
    for name in sorted(found, key=lambda name: (layers[found[name][0]], isinstance(found[name][1], Filters))):
        place, known = found[name]
        find = _heads if isinstance(known, Heads) else _filters
        site = find(modules, name, [_join(place, end) for end in known.inputs], known, layers[place])
        sites[site.key] = site
    if not sites:
        raise InputError(f"{type(model).__name__} has no layer whose heads and filters are known: {DESCRIBE}")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    owned = {name for site in sites.values() for name in site.parts}
    _check_weights(model, owned)
    if layout is None:
        _check_covered(model, modules, layers, owned)
    return Structures(sites, shapes, tuple(name for name in shapes if name not in owned))


def _places(modules: Mapping[str, nn.Module], known: Iterable[Heads | Filters]) -> dict[str, tuple]:
    """Module name of an output projection -> (name of its layer, the description that fits)."""
    found = {}
    for one in known:
        for name in modules:
            if name not in found and (name == one.output or name.endswith(f".{one.output}")):
                place = name.removesuffix(one.output).removesuffix(".")
                if all(_join(place, end) in modules for end in one.inputs):
                    found[name] = place, one
    return found


def _join(place: str, end: str) -> str:
    return f"{place}.{end}" if place else end


def _heads(modules, output: str, inputs: list[str], known: Heads, layer: int) -> Site:
    holder = modules[inputs[0].rpartition(".")[0]]
    width = getattr(holder, known.size, None)
    if not isinstance(width, int) or width < 1:
        raise InputError(f"{type(holder).__name__} of layer {layer} has no {known.size}: {DESCRIBE}")
    columns, rows = _widths(modules, output)[1], [_widths(modules, name)[0] for name in inputs]
    count = columns // width
    # Head -> the heads of its group; a whole block of rows for each of query, key and value.
    fused = len(inputs) == 1 and known.order == "blocks"
    blocks = [count * width, *[(rows[0] - count * width) // 2] * 2] if fused else rows
    whole = columns % width == 0 and all(size > 0 and size % width == 0 for size in blocks)
    if known.order == "heads":
        spread = _spread(count, rows[0]) if whole and rows == [3 * columns] else None
        spreads = None if spread is None else [spread]
    else:
        whole = whole and len(blocks) == 3 and blocks[0] == columns and blocks[1] == blocks[2]
        whole = whole and columns % blocks[1] == 0 and sum(blocks) == sum(rows)
        spreads = [_spread(count, size, columns // size) for size in blocks] if whole else None
        if spreads is not None and fused:
            spreads = [tuple(map(torch.cat, zip(*spreads)))]
    if spreads is None:
        raise InputError(
            f"{', '.join(inputs)} have {' + '.join(map(str, rows))} rows and {output} has {columns} columns, "
            f"which are not {count} heads of {width}: {DESCRIBE}"
        )
    parts = {}
    for name, (first, last) in zip(inputs, spreads, strict=True):
        parts |= _input_parts(modules, name, first, last)
    parts |= _output_part(modules, output, *_spread(count, columns))
    return Site(layer, "heads", output, count, width, parts)


def _filters(modules, output: str, inputs: list[str], known: Filters, layer: int) -> Site:
    count = _widths(modules, output)[1]
    rows = [_widths(modules, name)[0] for name in inputs]
    if rows not in ([count], [2 * count], [count, count]):
        raise InputError(
            f"{', '.join(inputs)} have {' + '.join(map(str, rows))} rows and {output} has {count} columns, which are "
            f"no filters with an up projection, or gate and up: {DESCRIBE}"
        )
    parts = {}
    for name, size in zip(inputs, rows, strict=True):
        parts |= _input_parts(modules, name, *(one.repeat(size // count) for one in _spread(count, count)))
    parts |= _output_part(modules, output, *_spread(count, count))
    return Site(layer, "filters", output, count, 1, parts)


def _spread(count: int, size: int, group: int = 1) -> tuple[Tensor, Tensor]:
    """First and last (exclusive) structure of each of `size` rows, which `count` structures share in groups."""
    units = torch.arange(size) // (size * group // count)
    return units * group, (units + 1) * group


def _widths(modules, name: str) -> tuple[int, int]:
    """(d_out, d_in) of a linear module."""
    module = modules[name]
    if _is_transposed(module, name):
        return module.weight.shape[1], module.weight.shape[0]
    return module.weight.shape[0], module.weight.shape[1]


def _is_transposed(module: nn.Module, name: str) -> bool:
    """Whether the weight is stored (in, out), as in transformers' `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear | Conv1D):
        raise InputError(f"{name} is a {type(module).__name__}, not a linear layer: merge adapters, do not quantise")
    return isinstance(module, Conv1D)


def _input_parts(modules, name: str, first: Tensor, last: Tensor) -> dict[str, Part]:
    """Of a module whose rows belong to structures: the weight, and the bias where there is one."""
    module = modules[name]
    parts = {f"{name}.weight": Part(int(_is_transposed(module, name)), first, last, on_inputs=False)}
    if module.bias is not None:
        parts[f"{name}.bias"] = Part(0, first, last, on_inputs=False)
    return parts


def _output_part(modules, name: str, first: Tensor, last: Tensor) -> dict[str, Part]:
    transposed = _is_transposed(modules[name], name)
    return {f"{name}.weight": Part(0 if transposed else 1, first, last, on_inputs=True)}


def _check_weights(model: nn.Module, owned: set[str]):
    """Refuse a weight of structures that is another's too, or is not of a floating type."""
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        if name in owned and not parameter.is_floating_point():
            raise InputError(f"{name} is {parameter.dtype}: load the model unquantised to update its heads")
    for shared in names.values():
        if len(shared) > 1 and owned.intersection(shared):
            raise InputError(
                f"{shared[0]} and {shared[1]} are one tensor, so no structure owns its entries alone: untie them"
            )


def _check_covered(model: nn.Module, modules, layers: Mapping[str, int], owned: set[str]):
    """Refuse a layer, or a matrix in a layer, that no description covers: a mask would silently leave it out."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    inside = lambda name: any(name == place or not place or name.startswith(f"{place}.") for place in layers)
    left = {name: one for name, one in model.named_parameters() if one.dim() >= 2 and name not in owned}
    left = {name: one for name, one in left.items() if inside(name)}
    if left:
        # Routers are matrices like others; experts are one tensor (experts, out, in) for all.
        name = next((name for name, one in left.items() if one.dim() == 3), next(iter(left)))
        what = "of routed experts, which have no masks here" if left[name].dim() == 3 else "not known"
        raise InputError(f"{name} in a layer of {type(model).__name__} is {what}: {DESCRIBE}")
    for name, module in modules.items():
        around = any(place == name or place.startswith(f"{name}.") for place in layers)
        if isinstance(module, GradientCheckpointingLayer) and not inside(name) and not around:
            raise InputError(f"{name} ({type(module).__name__}) is a layer that is not known: {DESCRIBE}")

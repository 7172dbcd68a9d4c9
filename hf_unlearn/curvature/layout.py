# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Layout of a fit: groups of weights that share an input, their owners, and the blocks in which they are measured."""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import InputError
from ..runtime.modules import evaluation_mode
from ..runtime.processes import assign
from ..runtime.sharded import reshard
from .targets import Target


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass
class Group:
    """The weights that share one input factor (gate/up, q/k/v). One process owns all that is kept of them."""

    leader: str  # the first of them that runs, which names the input factor
    names: list[str]  # all of them
    d_in: int
    d_out: list[int]  # of each one
    bytes: int = 0  # what the kind of curvature holds of them while it is measured
    cost: float = 0.0  # work that their owner does, in the units of the kind

    @property
    def factors(self) -> list[int]:
        """Widths of the Kronecker factors: the input's, then each output's."""
        return [self.d_in, *self.d_out]

    @property
    def weight_entries(self) -> int:
        return self.d_in * sum(self.d_out)


@dataclass
class Layout:
    """Blocks of groups, each measured by passes of its own, and the owner (rank) of each group's leader."""

    blocks: list[list[Group]]
    owners: dict[str, int]

    @property
    def leaders(self) -> dict[str, str]:
        """Name -> leader, of all weights."""
        return {name: group.leader for block in self.blocks for group in block for name in group.names}

    def most(self, size: Callable[[Group], int]) -> int:
        """The largest sum of `size` over the groups that one process owns in one block."""
        loads = Counter()
        for number, block in enumerate(self.blocks):
            for group in block:
                loads[number, self.owners[group.leader]] += size(group)
        return max(loads.values(), default=0)


def parse_bytes(value: int | str | None) -> int | None:
    """Bytes from a number or a text such as "20GB" or "512MiB".

    Raises:
        InputError: it is not a positive amount.
    """
    if value is None:
        return None
    match = re.fullmatch(r"\s*([\d_.]+)\s*([a-z]*)\s*", str(value), re.IGNORECASE)
    try:
        size = int(float(match[1]) * UNITS[match[2].upper()])
    except (TypeError, ValueError, KeyError):
        size = 0
    if size < 1:
        raise InputError(f"max_factor_memory must be bytes, or a text such as '20GB', not {value!r}")
    return size


def make_layout(
    kind, targets: Mapping[str, Target], leaders: Mapping[str, str], size: int, limit: int | None = None
) -> Layout:
    """Spread the groups over `size` processes, in as few blocks as keep every process within `limit` bytes.

    A block takes groups in the order of the model, so that the backward of its passes stops at its own lowest weight.
    `kind` is the class of the curvature, `leaders` are those of `shared_inputs`.

    Raises:
        InputError: one group alone exceeds the limit.
    """
    shapes = {name: target.widths for name, target in targets.items()}
    groups = _groups(kind, leaders, shapes, entry_bytes(targets))
    if limit is not None:
        for group in groups:
            if group.bytes > limit:
                raise InputError(
                    f"max_factor_memory is {limit:,} bytes, but {group.leader} and the weights that share its input "
                    f"need {group.bytes:,} together: raise it, or leave them out of target_modules"
                )
    blocks, owners = [[]], {}
    for group in groups:
        block = [*blocks[-1], group]
        chosen = _assign(block, size)
        if blocks[-1] and limit is not None and Layout([block], chosen).most(lambda group: group.bytes) > limit:
            blocks.append([])
            chosen = _assign([group], size)
        blocks[-1].append(group)
        owners |= chosen
    return Layout(blocks, owners)


def shared_inputs(model: nn.Module, targets: Mapping[str, Target], inputs: Mapping) -> dict[str, str]:
    """Name -> the first target that takes the same part of the same tensor, as one forward in eval mode shows."""
    seen: dict[tuple, tuple[str, Tensor]] = {}
    leaders = {}

    def remember(name, columns, module, args):
        # The tensor is held: an id is only unique among living objects.
        part = id(args[0]), None if columns is None else tuple(columns.tolist())
        leaders[name] = seen.setdefault(part, (name, args[0]))[0]

    with contextlib.ExitStack() as stack:
        for name, target in targets.items():
            if not target.is_bias:
                hook = functools.partial(remember, name, target.columns)
                stack.callback(target.module.register_forward_pre_hook(hook).remove)
        stack.callback(reshard, model)
        stack.enter_context(evaluation_mode(model))
        model(**inputs)
    return {name: leaders.get(name, name) for name in targets}


def tensor_weight(key: str) -> str:
    """The weight that a stored tensor ("vectors.input.NAME", "eigenvalues.NAME") belongs to."""
    return re.sub(r"^(?:(?:values|vectors)\.(?:input|output)|eigenvalues|rows|columns)\.", "", key)


def assign_weights(kind, targets: Mapping[str, Mapping], size: int) -> dict[str, int]:
    """Name -> rank for a fitted curvature of this class, from its metadata."""
    shapes = {name: tuple(about["kept"]) for name, about in targets.items()}
    leaders = {name: about["input"] for name, about in targets.items()}
    owners = _assign(_groups(kind, leaders, shapes, 1), size)
    return {name: owners[leader] for name, leader in leaders.items()}


def entry_bytes(targets: Mapping[str, Target]) -> int:
    """Bytes of one number of a factor."""
    return next(iter(targets.values())).dtype.itemsize


def _groups(kind, leaders: Mapping[str, str], shapes: Mapping[str, tuple[int, int]], size: int) -> list[Group]:
    """Groups in the order of the weights, whose shapes are (d_out, d_in); `size` bytes an entry."""
    members: dict[str, list[str]] = {}
    for name in shapes:
        members.setdefault(leaders[name], []).append(name)
    groups = [
        Group(leader, names, shapes[leader][1], [shapes[name][0] for name in names])
        for leader, names in members.items()
    ]
    for group in groups:
        group.bytes, group.cost = kind.entries(group) * size, kind.work(group)
    return groups


def _assign(groups: list[Group], size: int) -> dict[str, int]:
    return assign({group.leader: group.cost for group in groups}, size)

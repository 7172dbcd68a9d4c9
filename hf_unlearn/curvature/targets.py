# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Targets: the weights of a model that carry curvature, whole or the rows and columns of them that a mask keeps."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..runtime.checkpoints import base_tensors
from ..runtime.files import sha256_json
from ..runtime.modules import is_peft


logger = logging.getLogger(__name__)

# The linear layers of the MLP blocks of the usual architectures, by the end of their module name. BERT's
# `attention.output.dense` is a projection of the attention, not of the MLP.
MLP_LINEARS = re.compile(
    r"(?:^|.*\.)(?:gate_proj|up_proj|down_proj|gate_up_proj|fc1|fc2|fc_in|fc_out|c_fc|mlp\.c_proj|dense_h_to_4h"
    r"|dense_4h_to_h|wi|wi_0|wi_1|wo|ffn\.lin1|ffn\.lin2|intermediate\.dense|(?<!attention\.)output\.dense)"
)

# Where experts are: position embeddings and convolutions have three dimensions too.
MLP_PLACES = re.compile(r"expert|moe|mlp|ffn|feed_forward", re.IGNORECASE)


# Name of a weight or bias -> which of its d_out rows and d_in columns are kept, None for all of them.
Kept = Mapping[str, tuple[Tensor | None, Tensor | None]]


@dataclass(eq=False)
class Target:
    """A weight that carries curvature, or the bias beside it, or what a mask keeps of either.

    Rows are outputs and columns are inputs, however the weight is stored. A bias is a weight (d_out, 1) whose input is
    always 1. Indices lie on the CPU, in ascending order; `None` stands for all.
    """

    module: nn.Module
    rows: Tensor | None = None
    columns: Tensor | None = None
    is_bias: bool = False
    _copies: dict = field(default_factory=dict, repr=False)  # of the indices, on the devices of activations

    @property
    def parameter(self) -> nn.Parameter:
        return self.module.bias if self.is_bias else self.module.weight

    @property
    def transposed(self) -> bool:
        """Whether the parameter is stored (in, out)."""
        return not self.is_bias and is_transposed(self.module)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is added up: fp32, and fp64 for an fp64 model; a bf16 sum has negative eigenvalues."""
        return factor_dtype(self.parameter)

    @property
    def device(self) -> torch.device:
        return self.parameter.device

    @property
    def widths(self) -> tuple[int, int]:
        """(d_out, d_in) of what is kept."""
        d_out, d_in = (len(self.parameter), 1) if self.is_bias else widths(self.module)
        return d_out if self.rows is None else len(self.rows), d_in if self.columns is None else len(self.columns)

    @property
    def index(self) -> dict[str, Tensor]:
        """The rows and the columns that are kept, where these are not all."""
        found = {"rows": self.rows, "columns": self.columns}
        return {side: index for side, index in found.items() if index is not None}

    @property
    def kept_sha256(self) -> str | None:
        """A hash of these; None where all is kept."""
        return sha256_json({side: index.tolist() for side, index in self.index.items()}) if self.index else None

    def inputs(self, tensor: Tensor) -> Tensor:
        """Of the module's input (..., d_in) what meets the kept columns: the tensor itself where these are all."""
        return tensor.new_ones(*tensor.shape[:-1], 1) if self.is_bias else self._part("columns", tensor)

    def gradients(self, tensor: Tensor) -> Tensor:
        """Of a gradient at the module's output (..., d_out) what meets the kept rows."""
        return self._part("rows", tensor)

    def zeros(self, rows: int, columns: int) -> Tensor:
        return torch.zeros(rows, columns, dtype=self.dtype, device=self.device)

    def _part(self, side: str, tensor: Tensor) -> Tensor:
        index = self.index.get(side)
        if index is None:
            return tensor
        key = side, tensor.device
        if key not in self._copies:
            self._copies[key] = index.to(tensor.device)
        return tensor.index_select(-1, self._copies[key])


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (in, out), as in transformers' `Conv1D`, rather than (out, in)."""
    return not isinstance(module, nn.Linear)


def widths(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear module."""
    rows, columns = module.weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT wrapper, else the model itself."""
    return model.get_base_model() if is_peft(model) else model


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of every `nn.Linear` and transformers `Conv1D`, without those of PEFT adapters.

    Under an adapter the base layer counts (`...gate_proj.base_layer`), the adapter's own matrices do not.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    adapters = tuple(f"{name}." for name, module in modules.items() if "base_layer" in module._modules)
    return {
        name: module
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D)
        and all(name == f"{adapter}base_layer" for adapter in adapters if name.startswith(adapter))
    }


def select_targets(model: nn.Module, target_modules: str | list[str] | None = None) -> dict[str, nn.Module]:
    """Weights that carry curvature: `state_dict` name -> the module that owns it.

    Args:
        model (`nn.Module`): also wrapped by PEFT.
        target_modules (`str` or `list[str]`, *optional*, defaults to `None`): None for the linear layers of the MLP
            blocks; a string is a regular expression that must match a whole module name; a list holds module names or
            their ends (`"down_proj"`). What PEFT adds to the base model's names may be left out.

    Raises:
        InputError: nothing matches (the message lists the linear modules), not a regular expression, a matched weight
            is tied to another module's, or is not of a floating type (quantised).
    """
    linears = linear_modules(model)
    if not isinstance(target_modules, str | None):
        ends = tuple(target_modules)
        matches = lambda name: any(name == end or name.endswith(f".{end}") for end in ends)
    else:
        try:
            pattern = MLP_LINEARS if target_modules is None else re.compile(target_modules)
        except re.error as error:
            raise InputError(f"target_modules: {target_modules!r} is not a regular expression: {error}") from error
        matches = lambda name: pattern.fullmatch(name) is not None
    chosen = {name: module for name, module in linears.items() if any(map(matches, _aliases(name)))}
    if not chosen and (experts := expert_weights(model)):
        raise InputError(
            f"target_modules: no linear module matches: the MLPs of {type(unwrap(model)).__name__} are routed experts "
            f"fused into {', '.join(_grouped(experts))}, which have no curvature here; name linear layers in "
            f"target_modules ({', '.join(_grouped(linears)) or 'there are none'}), or use a first-order method"
        )
    if not chosen:
        wanted = "the linear layers of an MLP block" if target_modules is None else repr(target_modules)
        raise InputError(
            f"target_modules: no linear module matches {wanted}; the model has "
            f"{', '.join(_grouped(linears)) or 'none'}"
        )
    owners = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, module in chosen.items():
        tied = [owner for owner in owners.get(id(module.weight), []) if owner != f"{name}.weight"]
        if tied:
            raise InputError(
                f"target_modules: {name}.weight is tied to {tied[0]}, so its curvature is not one Kronecker product; "
                "leave it out of target_modules or untie the weights"
            )
        if not module.weight.is_floating_point():
            raise InputError(f"target_modules: {name}.weight is {module.weight.dtype}; load the model unquantised")
    return {f"{name}.weight": module for name, module in chosen.items()}


def make_targets(
    model: nn.Module,
    target_modules: str | list[str] | None = None,
    kept: Kept | None = None,
    biases: bool = False,
) -> dict[str, Target]:
    """What carries curvature: `state_dict` name -> target, in the order of the model.

    Args:
        model (`nn.Module`): also wrapped by PEFT.
        target_modules (`str` or `list[str]`, *optional*, defaults to `None`): see `select_targets`; with `kept` None
            stands for all that it names.
        kept (`Mapping[str, tuple[Tensor | None, Tensor | None]]`, *optional*, defaults to `None`): name -> (rows,
            columns), the places that are kept of the d_out rows and d_in columns of a weight, also of one that is
            stored (in, out); None for all of them. Of what is not named, or has no place that is kept, nothing is. A
            bias has rows alone.
        biases (`bool`, *optional*, defaults to `False`): whether the biases of these modules (that are in `kept`) are
            targets too. Without it biases in `kept` are left out.

    Raises:
        InputError: as `select_targets`; `kept` names what is no weight or bias of a linear layer, holds places that
            the weight does not have or has only once, or nothing at all of the targets.
    """
    linears = {} if kept is None else linear_modules(model)
    for name in kept or ():
        module, _, end = name.rpartition(".")
        if module not in linears or end not in ("weight", "bias") or getattr(linears[module], end) is None:
            raise InputError(f"the mask keeps part of {name}, which is no weight or bias of a linear layer")
    if kept is not None and target_modules is None:
        target_modules = sorted({name.rpartition(".")[0] for name in kept})
    targets = {}
    for name, module in select_targets(model, target_modules).items():
        bias = f"{name.removesuffix('.weight')}.bias"
        for part in (name, bias) if biases and module.bias is not None else (name,):
            is_bias = part == bias
            if kept is None:
                targets[part] = Target(module, is_bias=is_bias)
            elif part in kept:
                whole = Target(module, is_bias=is_bias).widths
                rows, columns = (
                    _checked_index(part, side, index, size)
                    for side, index, size in zip(("rows", "columns"), kept[part], whole)
                )
                target = Target(module, rows, columns, is_bias)
                if all(target.widths):
                    targets[part] = target
    if not targets:
        raise InputError("the mask keeps nothing of the weights in target_modules: choose others, or another mask")
    return targets


def _checked_index(name: str, side: str, index: Tensor | None, size: int) -> Tensor | None:
    """The places in ascending order on the CPU; None for all of them."""
    if index is None:
        return None
    places = torch.as_tensor(index)
    if places.dim() != 1 or places.dtype == torch.bool or places.is_floating_point() or places.is_complex():
        raise InputError(
            f"the mask: {side} of {name} must be places in one dimension, not {places.dtype} {list(places.shape)}"
        )
    places = places.cpu().long()
    found = places.unique()
    if len(found) < len(places) or (len(found) and not 0 <= int(found[0]) <= int(found[-1]) < size):
        raise InputError(f"the mask: {side} of {name} must be places from 0 to {size - 1}, each of them once")
    return None if len(found) == size else found


def expert_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of the routed experts that transformers fuses: one tensor (experts, out, in) for all."""
    return {
        f"{place}.{name}": parameter
        for place, module in model.named_modules()
        if MLP_PLACES.search(place)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and parameter.is_floating_point()
    }


def covered_share(model: nn.Module, targets: Iterable[str]) -> float | None:
    """Which part of the MLPs' parameters the targets are; None where no routed experts are left out of them.

    Args:
        targets: names in the model, or in the base model of an adapter.
    """
    targets, experts = base_tensors(dict.fromkeys(targets)), base_tensors(expert_weights(model))
    if experts.keys() <= targets.keys():
        return None
    mlp = {
        f"{name}.weight": module.weight
        for name, module in linear_modules(model).items()
        if any(map(MLP_LINEARS.fullmatch, _aliases(name)))
    }
    sizes = {name: weight.numel() for name, weight in (base_tensors(mlp) | experts).items()}
    return sum(size for name, size in sizes.items() if name in targets) / sum(sizes.values())


def tell_covered_share(model: nn.Module, targets: Iterable[str]) -> float | None:
    """`covered_share`, after a warning with the number where there is one."""
    share = covered_share(model, targets)
    if share is not None:
        logger.warning(
            f"{', '.join(_grouped(expert_weights(model)))} are routed experts, and not all of them are changed: "
            f"{share:.0%} of the MLP parameters are covered; what the others know stays: first-order methods on all "
            "weights, or on an adapter with target_parameters, change them"
        )
    return share


def uncovered(model: nn.Module, targets: Iterable[str]) -> str:
    """`covered_share` as the end of a line of a plan; empty where there is nothing to tell."""
    share = covered_share(model, targets)
    return "" if share is None else f"; {share:.0%} of the MLP parameters: experts are not covered"


def factor_dtype(weight: torch.Tensor) -> torch.dtype:
    """Accumulators are fp32, and fp64 for an fp64 model: a bf16 accumulator has negative eigenvalues."""
    return torch.promote_types(weight.dtype, torch.float32)


def _aliases(name: str) -> set[str]:
    base = name.removesuffix(".base_layer")
    return {name, base, base.removeprefix("base_model.model.")}


def _grouped(names) -> list[str]:
    """Module names with their layer numbers folded: `model.layers.{0..31}.mlp.gate_proj`."""
    groups = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), []).append(re.findall(r"(?<=\.)\d+(?=\.)", name))
    folded = []
    for pattern, numbers in groups.items():
        for column in zip(*numbers):
            low, high = min(map(int, column)), max(map(int, column))
            pattern = pattern.replace("{}", str(low) if low == high else f"{{{low}..{high}}}", 1)
        folded.append(pattern)
    return folded

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What RMU (Li et al. 2024) needs of a model: one layer's hidden states, the weights below it, a direction."""

import contextlib
import re
from collections.abc import Iterator

import torch
from torch import nn

from ..curvature import select_targets
from ..errors import InputError


# The projections of the usual architectures that write an MLP's result into the hidden state.
MLP_OUTPUT = r".*\.(?:down_proj|fc2|fc_out|mlp\.c_proj|dense_4h_to_h)"


def choose_weights(
    model: nn.Module, layer: int, layers: tuple[int, ...] | None
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The layer whose output is steered, and the weights that may move: `state_dict` name -> parameter.

    Args:
        layer: number of the layer, from 0; its output is what `hidden_states[layer + 1]` holds in transformers.
        layers: layers whose MLP output projection moves; by default `layer` and the two before it (5, 6, 7 in the paper).

    Raises:
        InputError: a layer does not exist, lies above `layer` (its weight would get no gradient), or the model has no
            such projection or is wrapped in an adapter.
    """
    weights, places = {}, {}
    for name, module in select_targets(model, MLP_OUTPUT).items():
        if ".base_layer." in name or name.startswith("base_model."):
            raise InputError("RMU moves the model's own weights: call merge_and_unload() on the adapter first")
        # The first number in a name is the layer's: `model.layers.5.mlp.experts.0.down_proj`.
        place = re.match(r"(.*?\.(\d+))\.", name)
        places[int(place[2])] = place[1]
        weights.setdefault(int(place[2]), {})[name] = module.weight
    wanted = (
        tuple(number for number in range(layer - 2, layer + 1) if number >= 0) if layers is None else tuple(layers)
    )
    missing = sorted({layer, *wanted} - weights.keys())
    if missing or not wanted:
        raise InputError(
            f"RMU: the model has MLPs in layers {min(weights)} to {max(weights)}, not in layer "
            f"{', '.join(map(str, missing)) or '(none was named)'}; set layer and layers"
        )
    if max(wanted) > layer:
        raise InputError(
            f"RMU: layer {max(wanted)} lies above layer {layer}, whose output is steered, and would never move; raise layer "
            "or lower layers"
        )
    chosen = {name: weight for number in sorted(set(wanted)) for name, weight in weights[number].items()}
    return model.get_submodule(places[layer]), chosen


def control_vector(size: int, length: float, seed: int) -> torch.Tensor:
    """A vector (size,) of norm `length` whose direction is drawn from uniform [0, 1) and normalised, as in the release."""
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return length * direction / direction.norm()


@contextlib.contextmanager
def captured_states(layer: nn.Module, detach: bool) -> Iterator[list[torch.Tensor]]:
    """Collects the layer's outputs (B, T, d) inside.

    Args:
        detach: what follows the layer builds no graph on them. A loss on the states alone then leaves no activations of
            the layers above for a backward that never comes. Not under DDP, which looks for the weights that take part
            from the model's outputs, and would take these for unused.
    """
    states = []

    def capture(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden)
        if not detach:
            return None
        return (hidden.detach(), *output[1:]) if isinstance(output, tuple) else hidden.detach()

    handle = layer.register_forward_hook(capture)
    try:
        yield states
    finally:
        handle.remove()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""RMU, which scrambles a layer's hidden states on forget rows (Li et al. 2024, arXiv 2403.03218)."""

import contextlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from .. import objectives
from ..curvature import select_targets
from ..curvature.targets import uncovered
from ..errors import InputError
from ..runtime.fields import Range
from ..runtime.modules import trainable
from .base import Method, split_labels
from .reference import Reference, cite


logger = logging.getLogger(__name__)

# The projections of the usual architectures that write an MLP's result into the hidden state.
MLP_OUTPUT = r".*\.(?:down_proj|fc2|fc_out|mlp\.c_proj|dense_4h_to_h)"


@dataclass
class RMU(Method):
    r"""
    Pushes the states of one layer on forget rows to a random vector, and holds those on retain rows.

    The defaults are those of the release for zephyr-7b-beta, trained with `learning_rate=5e-5` on 150 batches of 4:
    only the MLP output projections of `layers` move, the output of `layer` is pushed to one random vector of norm
    `steering` (the same for a seed) and held on retain rows with weight alpha, here `retain_weight`. Unlike the
    release padding never counts, nor does a row's last position, which predicts nothing.

    Args:
        steering (`float`, defaults to `6.5`): Norm of the vector that states are pushed to.
        layer (`int`, defaults to `7`): The layer, counted from 0, whose output is pushed.
        layers (`list[int]`, *optional*): The layers that move; by default `layer` and the two before it.
        forget_weight (`float`, defaults to `1.0`): Weight of the forget term.
        retain_weight (`float`, defaults to `1200.0`): Weight of the retain term, the paper's alpha.
        average (`str`, defaults to `"tokens"`):
            `"tokens"` averages over all positions of the step (the release), `"rows"` over each row's positions and
            then over rows (open-unlearning).

    Raises:
        InputError: an unknown average, a value out of range; when it runs: a layer that the model does not have.
    """

    steering: float = 6.5
    layer: int = 7
    layers: list[int] | tuple[int, ...] | None = None
    forget_weight: float = 1.0
    retain_weight: float = 1200.0
    average: str = "tokens"

    label: ClassVar[str] = "RMU"
    paired: ClassVar[bool] = True
    paper: ClassVar[dict[str, str]] = cite("rmu2024")
    allowed: ClassVar[dict] = {
        "steering": Range(above=0),
        **dict.fromkeys(("layer", "layers", "forget_weight", "retain_weight"), Range(least=0)),
        "average": ("tokens", "rows"),
    }

    def __post_init__(self):
        super().__post_init__()
        self._frozen = contextlib.ExitStack()
        self._reference = None

    def prepare(self, run):
        self._steered, chosen = choose_weights(run.model, self.layer, self.layers)
        self._control = control_vector(run.model.config.hidden_size, self.steering, run.args.seed)
        self._frozen = contextlib.ExitStack()
        self._frozen.enter_context(trainable(run.model, chosen.values()))
        self._reference = Reference(run.model)
        logger.info(
            f"RMU: layer {self.layer} to a vector of norm {self.steering:g}, alpha {self.retain_weight:g}, mean over "
            f"{self.average}; moves {', '.join(chosen)}"
        )

    def finish(self, run):
        self._reference = None
        self._frozen.close()

    def plan(self, model, stage):
        _, chosen = choose_weights(model, self.layer, self.layers)
        return [f"moves {', '.join(chosen)}{uncovered(model, chosen)}"]

    def loss(self, model, inputs, counts):
        parts, total = {}, 0.0
        sides = (
            ("forget", counts.forget_tokens, counts.forget_rows, self.forget_weight),
            ("retain", counts.retain_tokens, counts.retain_rows, self.retain_weight),
        )
        for side, tokens, rows, weight in sides:
            batch, labels = split_labels(inputs[side])
            with captured_states(self._steered, detach=model is self._reference.model) as states:
                logits = model(**batch).logits.detach()
            target = self._control
            if side == "retain":
                with captured_states(self._steered, detach=True) as frozen:
                    self._reference.logits(batch)
                [target] = frozen
            values, row = objectives.steering(states[0], target, labels)
            if self.average == "rows":
                lengths = torch.bincount(row, minlength=len(labels))
                term = (values / lengths[row]).sum() / rows
            else:
                term = values.sum() / tokens
            total = total + weight * term
            parts[f"{side}_mse"] = term.detach()
            parts[f"{side}_loss"] = objectives.cross_entropy(logits, labels).sum() / tokens
        return total, parts


def choose_weights(
    model: nn.Module, layer: int, layers: tuple[int, ...] | None
) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    """The layer whose output is steered, and the weights that may move: `state_dict` name -> parameter.

    Args:
        layer: number of the layer, from 0; its output is what `hidden_states[layer + 1]` holds in transformers.
        layers: layers whose MLP output projection moves; by default `layer` and the two before it.

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
            f"RMU: layer {max(wanted)} lies above layer {layer}, whose output is steered, and would never move; raise "
            "layer or lower layers"
        )
    chosen = {name: weight for number in sorted(set(wanted)) for name, weight in weights[number].items()}
    return model.get_submodule(places[layer]), chosen


def control_vector(size: int, length: float, seed: int) -> torch.Tensor:
    """A vector (size,) of norm `length`, its direction drawn from uniform [0, 1), as in the release."""
    direction = torch.rand(size, generator=torch.Generator().manual_seed(seed))
    return length * direction / direction.norm()


@contextlib.contextmanager
def captured_states(layer: nn.Module, detach: bool) -> Iterator[list[torch.Tensor]]:
    """Collects the layer's outputs (B, T, d) inside.

    Args:
        detach: what follows the layer builds no graph on them. A loss on the states alone then leaves no activations
            of the layers above for a backward that never comes. Not under DDP, which looks for the weights that take
            part from the model's outputs, and would take these for unused.
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

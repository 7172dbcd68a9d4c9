# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Steps of weights: natural-gradient ascent of constant norm, fp32 beside half precision, parts of weights alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from .errors import NumericalError
from .runtime.sharded import is_dtensor, placed_like, whole


class NaturalGradientAscent(torch.optim.Optimizer):
    r"""
    Adds `alpha * v / sqrt(v^T G v)` with `v = (G + damping I)^-1 grad` to the weights.

    The norm is taken over all weights together and under the undamped G, so to second order one step changes the
    model's outputs on the curvature's data by a KL divergence of alpha^2 / 2 (K-FADE, section 3 "Step size").
    Gradients are those of an objective that must *rise*; their scale does not matter.

    The update is accumulated in fp32 (fp64 for fp64 weights) beside weights of any dtype, and the weights are set to
    `base + update`, rounded once: steps far below the spacing of bf16 numbers are not lost between steps.

    Weights may be spread over processes (`fully_shard`), and so may the curvature be: then `step`, `directions` and
    `updates` are collective, and every process makes the same step.

    Args:
        named_parameters (`Mapping[str, torch.nn.Parameter]`): Weights to move, by the names that the curvature knows.
        base (`Mapping[str, torch.Tensor]`): Their values before the first step; may lie on another device.
        curvature: A fitted [`~curvature.Curvature`].
        step_norm (`float`): alpha, in sqrt(nats per token). It is the group's `lr`, so schedulers and logs work.
        damping (`float`): Added to the eigenvalues of G.
        refit (`Callable[[int], None]`, *optional*): Fits the curvature to the weights as they are before every step;
            called with the number of steps taken.
    """

    def __init__(
        self,
        named_parameters: Mapping[str, torch.nn.Parameter],
        base: Mapping[str, torch.Tensor],
        curvature,
        *,
        step_norm: float,
        damping: float,
        refit: Callable[[int], None] | None = None,
    ):
        self._names = list(named_parameters)
        self.base, self.curvature, self.refit = base, curvature, refit
        super().__init__(
            list(named_parameters.values()), {"lr": step_norm, "damping": damping, "steps": 0, "last_norm": step_norm}
        )
        self.diagnostics: dict[str, float] = {}
        # Direction and norm of the step to come, from who has solved for them already.
        self.solved: tuple[Mapping[str, torch.Tensor], float] | None = None

    @property
    def _group(self) -> dict:
        return self.param_groups[0]

    @property
    def named(self) -> dict[str, torch.nn.Parameter]:
        """The weights by name. Accelerate puts sharded parameters in the place of those that were given."""
        return dict(zip(self._names, self._group["params"]))

    def fit(self):
        """Fit the curvature for the step to come (once per step, however often it is asked)."""
        if self.refit is not None:
            self.refit(self._group["steps"])

    def directions(self, dampings: Iterable[float]) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
        """For each damping the unscaled step `v` from the gradients at hand, and its norm sqrt(v^T G v).

        Raises:
            NumericalError: a gradient or the norm is not finite, or the gradient is zero.
        """
        gradients = {}
        for name, parameter in self.named.items():
            if parameter.grad is None or not whole(torch.isfinite(parameter.grad).all()):
                state = "missing" if parameter.grad is None else "not finite"
                raise NumericalError(f"the forget gradient of {name} is {state}: check the forget rows and the loss")
            gradients[name] = parameter.grad
        for vector, norm in self.curvature.solve_many(gradients, dampings):
            if not norm > 0 or norm == float("inf"):
                raise NumericalError(
                    f"the step has norm {norm} under the curvature: the forget gradient is zero or the damping too "
                    "small; check the forget rows, or raise damping"
                )
            yield vector, norm

    @torch.no_grad()
    def apply(self, vector: Mapping[str, torch.Tensor], scale: float):
        """Set the weights to base + update + scale * vector without keeping it (a candidate)."""
        for name, parameter in self.named.items():
            self._set_weight(name, self._update(name).add(placed_like(vector[name], parameter), alpha=scale))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.fit()
        vector, norm = self.solved or next(self.directions([self._group["damping"]]))
        self.solved = None
        alpha = self._group["lr"]
        for name, parameter in self.named.items():
            update = self._update(name).add_(placed_like(vector[name], parameter), alpha=alpha / norm)
            self.state[parameter]["update"] = update
            self._set_weight(name, update)
        self._group["steps"] += 1
        self._group["last_norm"] = alpha  # which a scheduler does not touch, and a checkpoint keeps
        total = self.curvature.norm({name: self.state[parameter]["update"] for name, parameter in self.named.items()})
        self.diagnostics = {"step_norm": alpha, "predicted_step_kl": alpha**2 / 2, "predicted_kl": total**2 / 2}
        return loss

    def _update(self, name: str) -> torch.Tensor:
        parameter = self.named[name]
        # Read without setdefault, whose default would allocate a second copy of every weight at every step.
        update = self.state[parameter].get("update")
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        return torch.zeros_like(parameter, dtype=dtype) if update is None else update

    def _set_weight(self, name: str, update: torch.Tensor):
        parameter = self.named[name]
        base = placed_like(self.base[name].to(update.dtype), parameter)
        parameter.copy_((base + update).to(parameter.dtype))

    @torch.no_grad()
    def restore(self):
        """Take all steps back: the weights are those of `base`, to the bit, and the update is zero."""
        for name, parameter in self.named.items():
            self.state.pop(parameter, None)
            parameter.copy_(placed_like(self.base[name], parameter))

    def begin(self):
        """Make the state of weights that have none: an update of zero.

        Loading a checkpoint of a sharded model would else do so by a step with gradients of zero, which is none here.
        """
        for name, parameter in self.named.items():
            self.state[parameter]["update"] = self._update(name)

    @torch.no_grad()
    def load_state_dict(self, state_dict):
        """Take over saved updates, and set the weights to base + update: a PEFT checkpoint holds no base weights."""
        super().load_state_dict(state_dict)
        # Numbers by place, or the weights' names in a checkpoint of a sharded model.
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for key, (name, parameter) in zip(keys, self.named.items(), strict=True):
            # torch casts floating state to the parameter's dtype; a bf16 weight's fp32 update must survive as it is.
            saved = state_dict["state"].get(key, {}).get("update")
            if saved is not None:
                self.state[parameter]["update"] = placed_like(saved.clone(), parameter)
                self._set_weight(name, self.state[parameter]["update"])

    def updates(self) -> dict[str, torch.Tensor]:
        """The whole update of every weight so far, as it was made, by `state_dict` name.

        Collective for sharded weights, whose updates come to the CPU one by one: together they may fit no device.
        """
        updates = {name: self._update(name) for name in self.named}
        return {name: whole(update).cpu() if is_dtensor(update) else update for name, update in updates.items()}


HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Part:
    """The entries of a parameter that may change: those along `dim` at `index`, of these alone where `elements` is."""

    dim: int
    index: torch.Tensor
    elements: torch.Tensor | None = None

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of these entries, in one dimension where there are `elements`."""
        chosen = tensor.index_select(self.dim, self.index.to(tensor.device))
        return chosen if self.elements is None else chosen[self.elements.to(tensor.device)]

    def write(self, tensor: torch.Tensor, values: torch.Tensor):
        """Put values, as `select` gives them, into their places; the others keep their bits."""
        index, values = self.index.to(tensor.device), values.to(tensor.dtype)
        if self.elements is not None:
            chosen = tensor.index_select(self.dim, index)
            chosen[self.elements.to(tensor.device)] = values
            values = chosen
        tensor.index_copy_(self.dim, index, values)


def step_in_fp32(optimizer: torch.optim.Optimizer, parts: Mapping[torch.nn.Parameter, Part] | None = None):
    """Let an optimiser step weights of half precision as fp32 ones: its state holds these, and they are rounded.

    A step of AdamW is as long as its learning rate, whatever the weight: 1e-5 is a tenth of the spacing of bf16
    numbers at 0.02, and would be lost, step after step. Moments are fp32 too: 12 bytes a weight beside its own 2, of
    weights spread over processes (FSDP2) those of a process's own part.

    Of parameters in `parts` the optimiser sees these entries alone. The others keep their bits whatever it does
    (weight decay, momentum, factored moments), and have no state.
    """
    # Inside a step, and while a state is loaded, twins (in fp32, of a part) stand in the groups in the weights' place.
    parts = optimizer.parts = dict(parts or {})
    twins: dict[torch.nn.Parameter, torch.nn.Parameter] = {}

    def enter(optimizer, *args):
        for group in optimizer.param_groups:
            group["params"] = [
                twin_of(parameter) if parameter.dtype in HALF or parameter in parts else parameter
                for parameter in group["params"]
            ]

    def twin_of(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
        state = optimizer.state.pop(parameter, {})
        # Taken out: optimisers begin their own state where there is none.
        values = state.pop("fp32", None)
        part = parts.get(parameter)

        def fitting(tensor):
            """As the twin is: of that part, and in fp32 where the weight is of half precision."""
            if part is not None and getattr(tensor, "shape", None) == parameter.shape:
                tensor = part.select(tensor)
            return tensor.float() if getattr(tensor, "dtype", None) in HALF else tensor

        twin = torch.nn.Parameter(fitting(parameter.detach()) if values is None else values)
        twin.grad = None if parameter.grad is None else fitting(parameter.grad)
        if state:
            # Adagrad begins its own when it is made, in the type and shape that the weights had then.
            optimizer.state[twin] = {key: fitting(value) for key, value in state.items()}
        twins[twin] = parameter
        return twin

    @torch.no_grad()
    def leave(optimizer, *args):
        for group in optimizer.param_groups:
            group["params"] = [twins.get(parameter, parameter) for parameter in group["params"]]
        for twin, parameter in twins.items():
            state = optimizer.state.pop(twin, {})
            # What has never been stepped has no state, and AdamW would miss its own in one that is begun for it.
            if state or twin.grad is not None:
                values = state.pop("fp32", twin.detach())  # a state that was loaded brings its own
                if parameter in parts:
                    parts[parameter].write(parameter, values)
                else:
                    parameter.copy_(values)
                optimizer.state[parameter] = state | ({"fp32": values} if parameter.dtype in HALF else {})
        twins.clear()

    def load(optimizer, *args):
        enter(optimizer)
        for twin in twins:
            twin.grad = None  # nothing is stepped

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)
    optimizer.register_load_state_dict_pre_hook(load)
    optimizer.register_load_state_dict_post_hook(leave)


def fp32_weights(optimizer: torch.optim.Optimizer | None) -> dict[torch.nn.Parameter, torch.Tensor]:
    """Parameter -> the fp32 value that it is rounded from, of an optimiser after `step_in_fp32`."""
    found, inner = {}, getattr(optimizer, "optimizer", optimizer)  # inside accelerate's wrapper
    for parameter, values in () if inner is None else inner.state.items():
        if "fp32" in values:
            found[parameter] = values["fp32"]
            if part := getattr(inner, "parts", {}).get(parameter):
                found[parameter] = parameter.detach().float()
                part.write(found[parameter], values["fp32"])
    return found

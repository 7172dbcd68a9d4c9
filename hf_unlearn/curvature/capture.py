# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Hooks, frozen weights and checkpointing: the one place that touches a model while curvature is measured."""

import contextlib
import functools
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ..errors import InputError
from ..runtime.modules import measuring
from .targets import Target


class Capture:
    """Within the context, a forward and backward through `model` report each target's input and output gradient,
    of a masked target those parts that it keeps.

    Weights are frozen, so autograd makes gradients of activations only, and the backward stops at the lowest target:
    its output is where the graph begins (`runtime.modules.measuring`). Everything is restored on exit.

    What `on_input(name, input)` returns in the forward is kept for `on_gradient(name, kept, gradient of the output)`.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        on_input: Callable[[str, Tensor], Tensor | None],
        on_gradient: Callable[[str, Tensor | None, Tensor], None],
    ):
        self.model, self.targets = model, targets
        self.on_input, self.on_gradient = on_input, on_gradient
        self.inputs_seen, self.gradients_seen = set(), set()
        self._recording = False

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(measuring(self.model))
            for name, target in self.targets.items():
                hook = functools.partial(self._hook, name, target)
                stack.callback(target.module.register_forward_hook(hook).remove)
            self._settings = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._settings.close()

    @contextlib.contextmanager
    def recording(self):
        """Within the context, which holds one forward and nothing else, inputs are reported.

        The forward that checkpointing repeats in the backward would count every input twice (measured elsewhere as
        factors of exactly 2.000 times their value).
        """
        self.inputs_seen, self.gradients_seen = set(), set()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def check_seen(self):
        """Raise InputError naming the first target that the last forward and backward did not reach."""
        for seen, what in ((self.inputs_seen, "never ran"), (self.gradients_seen, "never received a gradient")):
            missing = [name for name in self.targets if name not in seen]
            if missing:
                raise InputError(
                    f"{missing[0]}: its module {what} in the first batch ({len(missing)} such targets); fused kernels "
                    "and unused layers have no curvature to measure: leave them out of target_modules"
                )

    def _hook(self, name: str, target: Target, module: nn.Module, args: tuple, output: Tensor):
        if not output.requires_grad:
            output.requires_grad_()
        if not self._recording:
            return
        if name in self.inputs_seen:
            raise InputError(
                f"{name}: its module runs several times in one forward, so its curvature is not one Kronecker "
                "product; leave it out of target_modules"
            )
        self.inputs_seen.add(name)
        # Not detached: targets that share an input are known by the identity of the tensor.
        kept = self.on_input(name, target.inputs(args[0]))

        def gradient_hook(gradient):
            self.gradients_seen.add(name)
            self.on_gradient(name, kept, target.gradients(gradient.detach()))

        output.register_hook(gradient_hook)

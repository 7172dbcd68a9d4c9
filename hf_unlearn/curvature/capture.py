# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The one place that touches a model while curvature is measured: hooks, frozen weights, checkpointing."""

import contextlib
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..runtime.sharded import reshard


class Capture:
    """Within the context, a forward and backward through `model` report each target's input and output gradient.

    Weights are frozen, so autograd makes gradients of activations only, and the backward stops at the lowest target:
    its output is where the graph begins. The model is in eval mode. Layers with gradient checkpointing enabled stay
    checkpointed though transformers only does so in train mode; they are wrapped here rather than put in train mode,
    because some layers read their own `training` flag for dropout. Everything is put back on exit.

    Args:
        targets: weight name -> module, from `select_targets`.
        on_input: called with (name, input) in the forward; what it returns is kept until the gradient comes.
        on_gradient: called with (name, kept, gradient of the output) in the backward.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, nn.Module],
        on_input: Callable[[str, Tensor], Tensor | None],
        on_gradient: Callable[[str, Tensor | None, Tensor], None],
    ):
        self.model, self.targets = model, targets
        self.on_input, self.on_gradient = on_input, on_gradient
        self.inputs_seen, self.gradients_seen = set(), set()
        self._recording = False

    def __enter__(self):
        from transformers.modeling_layers import GradientCheckpointingLayer

        reshard(self.model)
        self._requires_grad = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self._training = {module: module.training for module in self.model.modules()}
        self._forwards, self._handles = {}, []
        try:
            self.model.requires_grad_(False)
            self.model.eval()
            for module in self.model.modules():
                if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                    self._keep_checkpointed(module)
            for name, module in self.targets.items():
                self._handles.append(module.register_forward_hook(self._hook(name)))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for handle in self._handles:
            handle.remove()
        for module, forward in self._forwards.items():
            del module.forward
            if forward is not None:
                module.forward = forward
        for module, training in self._training.items():
            module.training = training
        reshard(self.model)
        for parameter, requires_grad in self._requires_grad.items():
            parameter.requires_grad_(requires_grad)

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

    def _hook(self, name: str):
        def hook(module, args, output):
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
            kept = self.on_input(name, args[0])

            def gradient_hook(gradient):
                self.gradients_seen.add(name)
                self.on_gradient(name, kept, gradient.detach())

            output.register_hook(gradient_hook)

        return hook

    def _keep_checkpointed(self, module: nn.Module):
        forward = module.forward
        self._forwards[module] = vars(module).get("forward")
        # Non-reentrant whatever the user chose: reentrant checkpointing needs an input that requires grad, and here
        # the graph begins inside the layer. No dropout runs, so no random state need be kept.
        module.forward = lambda *args, **kwargs: checkpoint(
            forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs
        )

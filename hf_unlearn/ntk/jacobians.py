# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Per-sample Jacobians of a classifier's outputs with respect to a few of its parameters."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError, NumericalError
from ..runtime.modules import evaluation_mode, model_inputs, replaced_forwards, trainable


logger = logging.getLogger(__name__)

OUTPUTS = ("logits", "probabilities")


class Jacobians:
    """Outputs and Jacobians of a model at some parameters, batch by batch.

    Every chosen parameter gets a leading batch axis (`expand(n, ...)`, one leaf), so that the gradient of
    `outputs[:, k].sum()` with respect to it *is* the Jacobian row of every sample: C backwards in all, through any
    operation, SDPA and convolutions included. Batch normalisation runs on its running statistics, as in evaluation:
    others would mix the samples. The model is not changed.

    Args:
        model (`nn.Module`): takes `pixel_values` or `input_ids` ... and gives `.logits` (B, C), or a tensor.
        names (`Sequence[str]`): parameters, by `named_parameters()` name, in the order of the columns.
        at (`Mapping[str, Tensor]`, *optional*): Where Jacobians are taken, in place of the model's own values.
        origin (`Mapping[str, Tensor]`, *optional*): Where outputs are taken; `at` by default. The linear model is
            f(w) = f(origin) + J(at) (w - origin).
        outputs (`str`, defaults to `"logits"`): `"logits"` or `"probabilities"` (softmax of them).
        chunk_size (`int`, defaults to 16): Samples at a time, each with its activations and C * p numbers in memory.

    Raises:
        InputError: no such parameter, or one whose module cannot take a batch of values.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        at: Mapping[str, Tensor] | None = None,
        origin: Mapping[str, Tensor] | None = None,
        outputs: str = "logits",
        chunk_size: int = 16,
    ):
        if outputs not in OUTPUTS:
            raise InputError(f"outputs must be one of {', '.join(OUTPUTS)}, not {outputs!r}")
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, not {chunk_size}")
        parameters = dict(model.named_parameters())
        if missing := [name for name in names if name not in parameters]:
            raise InputError(f"the model has no parameter {missing[0]}; name those of named_parameters()")
        if not names:
            raise InputError("no parameter to take Jacobians of: tune some first (BatchNorm, prompts, a head)")
        self.model, self.outputs, self.chunk_size = model, outputs, chunk_size
        self.values = {name: (at or {}).get(name, parameters[name]).detach().to(parameters[name]) for name in names}
        self.origin = origin and {name: origin[name].detach().to(parameters[name]) for name in names}
        self.size = sum(value.numel() for value in self.values.values())
        self.device = next(iter(self.values.values())).device

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(p,) fp64: tensors by name, in the order of the columns."""
        return torch.cat([tensors[name].detach().double().flatten() for name in self.values])

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """The inverse of `flatten`: name -> tensor of the parameter's shape."""
        parts = flat.split([value.numel() for value in self.values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(self.values.items(), parts)}

    def __call__(
        self,
        inputs: Mapping[str, Tensor],
        basis: Callable[[slice, int], Tensor] = lambda samples, classes: torch.eye(classes),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(outputs (n, C), Jacobian (n, m, p)) of every chunk of a batch of N samples, in order; fp32 (or fp64).

        Args:
            basis (`Callable`, *optional*): Given which samples of the batch, and C: the combinations of outputs whose
                Jacobian rows are wanted, one backward each; (m, C) for all, or (n, m, C). By default the outputs.
        """
        start = 0
        for leaves, outputs, base in self._forward(inputs):
            samples = slice(start, start := start + len(outputs))
            weights = basis(samples, outputs.shape[1]).to(outputs)
            count = weights.shape[-2]
            jacobian = outputs.new_empty(len(outputs), count, self.size)
            for row in range(count):
                self._rows(outputs, weights[..., row, :], leaves, jacobian[:, row], retain_graph=row < count - 1)
            yield base, jacobian

    def products(
        self, inputs: Mapping[str, Tensor], weights: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(outputs (n, C), rows (n, p)) of every chunk: sum over k of weights[:, k] * Jacobian[:, k], one backward.

        Args:
            weights (`Callable`): given the outputs (n, C), the cotangents (n, C).
        """
        for leaves, outputs, base in self._forward(inputs):
            rows = outputs.new_empty(len(outputs), self.size)
            self._rows(outputs, weights(outputs.detach()), leaves, rows, retain_graph=False)
            yield base, rows

    @torch.no_grad()
    def outputs_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs (N, C) of a batch at the origin."""
        return torch.cat([call(self.origin or self.values) for call in self._calls(inputs)])

    def jvp(self, inputs: Mapping[str, Tensor], vector: Mapping[str, Tensor]) -> Tensor:
        """J v (N, C) for a batch: forward-mode differentiation, no Jacobian."""
        tangent = {name: vector[name].to(value) for name, value in self.values.items()}
        # The fused kernels of attention have no forward mode.
        with sdpa_kernel(SDPBackend.MATH):
            return torch.cat([torch.func.jvp(call, (self.values,), (tangent,))[1] for call in self._calls(inputs)])

    def vjp(self, inputs: Mapping[str, Tensor], cotangents: Tensor) -> dict[str, Tensor]:
        """J^T u by name for a batch and u (N, C), summed over samples: one backward."""
        total = {name: torch.zeros_like(value) for name, value in self.values.items()}
        for call, part in zip(self._calls(inputs), cotangents.split(self.chunk_size)):
            outputs, pull = torch.func.vjp(call, self.values)
            for name, gradient in pull(part.to(outputs))[0].items():
                total[name] += gradient
        return total

    def _calls(self, inputs: Mapping[str, Tensor]) -> Iterator[Callable]:
        """Outputs as a function of the parameters, for every chunk."""
        with _evaluation(self.model):
            for chunk in self._chunks(inputs):
                yield functools.partial(self._outputs, chunk)

    def _chunks(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """`chunk_size` samples of a batch at a time, as the model takes them."""
        inputs = model_inputs(self.model, inputs)
        for start in range(0, len(next(iter(inputs.values()))), self.chunk_size):
            yield {name: value[start : start + self.chunk_size] for name, value in inputs.items()}

    def _outputs(self, chunk: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Tensor:
        outputs = functional_call(self.model, dict(values), kwargs=dict(chunk))
        outputs = outputs if isinstance(outputs, Tensor) else outputs.logits
        return outputs.softmax(-1) if self.outputs == "probabilities" else outputs

    def _forward(self, inputs: Mapping[str, Tensor]):
        """(leaves of a batch of values, outputs that depend on them, outputs at the origin) of every chunk."""
        with _evaluation(self.model), batched_modules(self.model, self.values):
            for chunk in self._chunks(inputs):
                count = len(next(iter(chunk.values())))
                leaves = {
                    name: value.expand(count, *value.shape).clone().requires_grad_()
                    for name, value in self.values.items()
                }
                with torch.enable_grad():
                    outputs = self._outputs(chunk, leaves)
                if not outputs.requires_grad:
                    name = next(iter(leaves))
                    raise InputError(f"{name} does not reach the outputs: leave it out of the tuned parameters")
                base = outputs.detach()
                if self.origin:
                    with torch.no_grad():
                        base = self._outputs(chunk, self.origin)
                if not (torch.isfinite(outputs).all() and torch.isfinite(base).all()):
                    raise NumericalError("the model's outputs are not finite: it overflows on these samples")
                yield leaves, outputs, base

    def _rows(self, outputs: Tensor, weights: Tensor, leaves: Mapping[str, Tensor], rows: Tensor, retain_graph: bool):
        """One backward of the outputs weighted by (n, C) or (C,) numbers, into rows (n, p)."""
        gradients = torch.autograd.grad(
            outputs, list(leaves.values()), weights.expand_as(outputs), retain_graph=retain_graph, allow_unused=True
        )
        start = 0
        for (name, value), gradient in zip(self.values.items(), gradients):
            if gradient is None:
                raise InputError(f"{name} does not reach the outputs: leave it out of the tuned parameters")
            rows[:, start : start + value.numel()] = gradient.flatten(1)
            start += value.numel()


@contextlib.contextmanager
def _evaluation(model: nn.Module):
    """Evaluation mode within; gradients of the leaves alone, so no weight-gradient products."""
    if any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        logger.info("BatchNorm layers are in training mode; Jacobians are taken in evaluation mode, sample by sample")
    with trainable(model), evaluation_mode(model, grad=torch.is_grad_enabled()):
        yield


@contextlib.contextmanager
def batched_modules(model: nn.Module, names: Sequence[str]):
    """Within the context, modules that own one of the parameters take it with a leading batch axis.

    Batch and layer normalisation and linear layers are known. A module of another kind must broadcast over the axis by
    itself and say so with the class attribute `batched_parameters = True`, as prompts do.
    """
    owners = {}
    for name in names:
        path, _, attribute = name.rpartition(".")
        owners.setdefault(path, set()).add(attribute)
    forwards = []
    for path in owners:
        module = model.get_submodule(path)
        # The entries of a ParameterDict belong to the layer that holds it.
        holder = model.get_submodule(path.rpartition(".")[0]) if isinstance(module, nn.ParameterDict) else module
        if getattr(holder, "batched_parameters", False):
            continue
        forward = next((make for kind, make in BATCHED_FORWARDS.items() if isinstance(module, kind)), None)
        if forward is None:
            raise InputError(
                f"{path} is a {type(module).__name__}: per-sample Jacobians know BatchNorm, LayerNorm, Linear and the "
                "tuners of hf_unlearn; tune other parameters"
            )
        forwards.append((module, forward.__get__(module)))
    with replaced_forwards(forwards):
        yield


def _per_sample(parameter: Tensor, like: Tensor, axis: int) -> Tensor:
    """(n, d) values or (d,) ones, shaped to broadcast against `like` (n, ...) along `axis`."""
    if parameter.dim() == 1:
        parameter = parameter[None]
    shape = [1] * like.dim()
    shape[0], shape[axis] = parameter.shape
    return parameter.view(shape)


def _batch_norm(module: _BatchNorm, x: Tensor) -> Tensor:
    if module.running_mean is None:
        raise InputError("a BatchNorm layer keeps no running statistics: its outputs depend on the whole batch")
    return _ChannelAffine.apply(x, module.weight, module.bias, module.running_mean, module.running_var, module.eps)


class _ChannelAffine(torch.autograd.Function):
    """Batch normalisation on running statistics, with a weight and a bias for every sample.

    x * scale + shift in one pass, and backwards one pass for each of the three gradients; autograd's own graph of it
    makes five, and keeps the normalised values beside x.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, mean, var, eps):
        inverse = (var + eps).rsqrt()
        scale = weight * inverse
        ctx.save_for_backward(x, scale, mean, inverse)
        ctx.shapes = weight.shape, bias.shape
        return torch.addcmul(_per_sample(bias - mean * scale, x, 1), x, _per_sample(scale, x, 1))

    @staticmethod
    def backward(ctx, gradient):
        x, scale, mean, inverse = ctx.saved_tensors
        flat = gradient.flatten(2) if gradient.dim() > 2 else gradient[..., None]
        bias = flat.sum(2)
        # One dot product over the pixels of every sample and channel.
        product = torch.linalg.vecdot(flat, x.reshape(flat.shape))
        weight = (product - mean * bias) * inverse
        wanted = gradient * _per_sample(scale, x, 1) if ctx.needs_input_grad[0] else None
        return wanted, weight.sum_to_size(ctx.shapes[0]), bias.sum_to_size(ctx.shapes[1]), None, None, None


def _layer_norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    normal = F.layer_norm(x, module.normalized_shape, None, None, module.eps)
    normal = normal * _per_sample(module.weight, x, -1)
    return normal if module.bias is None else normal + _per_sample(module.bias, x, -1)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    weight = module.weight if module.weight.dim() == 3 else module.weight[None].expand(len(x), -1, -1)
    rows = x.reshape(len(x), -1, x.shape[-1])
    out = (rows @ weight.transpose(1, 2)).view(*x.shape[:-1], weight.shape[1])
    return out if module.bias is None else out + _per_sample(module.bias, out, -1)


BATCHED_FORWARDS = {_BatchNorm: _batch_norm, nn.LayerNorm: _layer_norm, nn.Linear: _linear}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a pass over the data adds up: Kronecker factors, or squares of per-sequence gradients in a basis."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .batches import Batch
from .linalg import add_gram_, matmul_precision
from .targets import factor_dtype, widths


class KroneckerSums:
    """Sums of a a^T over the inputs and g g^T over the output gradients of each target.

    Targets that take the same tensor (gate/up, q/k/v) share one input sum, under the name of the first of them. Which
    ones do is seen in the first batch, by identity of the tensor, not by name.

    Attributes:
        inputs: leader -> (d_in, d_in). outputs: name -> (d_out, d_out). Upper block-rows until mirrored.
        counts: leader -> rows in its input sum. Own counts: the backward's are another number.
        leaders: name -> the target whose input sum it shares; empty until a batch is seen.
    """

    def __init__(self, targets: Mapping[str, nn.Module]):
        self.targets, self.leaders = targets, {}
        self.inputs, self.counts = {}, {}
        self.outputs = {name: _zeros(module, widths(module)[0]) for name, module in targets.items()}

    def start(self, batch: Batch):
        self.batch, self._first = batch, len(self.leaders) < len(self.targets)
        self._seen = {}

    def on_input(self, name: str, tensor: Tensor) -> None:
        if self._first:
            # The tensor is held until the batch ends: an id is only unique among living objects.
            self.leaders[name] = self._seen.setdefault(id(tensor), (name, tensor))[0]
        if self.leaders[name] != name:
            return
        if name not in self.inputs:
            self.add_leader(name)
        rows, _ = self.batch.rows(name, tensor)
        add_gram_(self.inputs[name], rows)
        self.counts[name] += len(rows)

    def on_gradient(self, name: str, kept: None, gradient: Tensor):
        # Rows that do not count have gradient 0; when they are few, multiplying them costs less than gathering the rest.
        rows = gradient.reshape(-1, gradient.shape[-1])
        if sum(self.batch.lengths) < 0.95 * len(rows):
            rows, _ = self.batch.rows(name, gradient)
        add_gram_(self.outputs[name], rows)

    def add_leader(self, name: str):
        self.inputs[name] = _zeros(self.targets[name], widths(self.targets[name])[1])
        self.counts[name] = 0

    def end(self):
        self.batch = self._seen = None


class SquareSums:
    """Sums over sequences of (Q_S^T D Q_A)^2, D = sum over the sequence's rows of g a^T, the gradient (d_out, d_in).

    Every target's input is held from the forward to its gradient, under gradient checkpointing too.
    With rotations this is the EK-FAC correction (George et al. 2018, arXiv 1806.03884; per sequence as in Grosse et
    al. 2023, arXiv 2308.03296); without, the squares of per-sequence gradients themselves.

    Args:
        rotations: name -> (Q_A (d_in, d_in), Q_S (d_out, d_out)), or None for the identity.
    """

    def __init__(self, targets: Mapping[str, nn.Module], rotations: Mapping[str, tuple[Tensor, Tensor]] | None = None):
        self.rotations = rotations
        self.squares = {name: _zeros(module, *widths(module)) for name, module in targets.items()}
        self._rotated = (None, None)

    def start(self, batch: Batch):
        self.batch = batch

    def on_input(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def on_gradient(self, name: str, tensor: Tensor, gradient: Tensor):
        total = self.squares[name]
        y, lengths = self.batch.rows(name, gradient, in_products=True)
        y = y.to(total.dtype)
        with matmul_precision("highest"):
            if self.rotations is None:
                self._add(total, y, self._input(name, tensor, None), lengths)
                return
            q_in, q_out = self.rotations[name]
            if len(y) / len(lengths) <= break_even(*total.shape):
                self._add(total, y @ q_out, self._input(name, tensor, q_in), lengths)
            else:
                self._add(total, y, self._input(name, tensor, None), lengths, q_in, q_out)

    def _input(self, name: str, tensor: Tensor, q_in: Tensor | None) -> Tensor:
        """Rows of the input, rotated. Targets that share an input come one after another, so the last is kept."""
        key = (tensor, q_in)
        if self._rotated[0] is None or any(a is not b for a, b in zip(self._rotated[0], key)):
            rows = self.batch.rows(name, tensor, in_products=True)[0].to(self.squares[name].dtype)
            self._rotated = key, rows if q_in is None else rows @ q_in
        return self._rotated[1]

    @staticmethod
    def _add(total: Tensor, y: Tensor, x: Tensor, lengths: list[int], q_in=None, q_out=None):
        if max(lengths) == 1:
            total.addmm_(y.square().T, x.square())
            return
        product, start = torch.empty_like(total), 0
        for length in lengths:
            torch.mm(y[start : start + length].T, x[start : start + length], out=product)
            start += length
            if q_in is not None:
                product = q_out.T @ product @ q_in
            total.addcmul_(product, product)

    def end(self):
        self.batch, self._rotated = None, (None, None)


def break_even(d_out: int, d_in: int) -> float:
    """Rows of a sequence up to which rotating them is cheaper than rotating the sequence's gradient.

    n rows cost 2 n (d_in^2 + d_out^2) FLOPs, the gradient 2 d_in d_out (d_in + d_out). 4,937 for 4096 x 11008.
    """
    return d_in * d_out * (d_in + d_out) / (d_in**2 + d_out**2)


def _zeros(module: nn.Module, rows: int, columns: int | None = None) -> Tensor:
    weight = module.weight
    return torch.zeros(rows, columns or rows, dtype=factor_dtype(weight), device=weight.device)

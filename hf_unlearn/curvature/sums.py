# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sums of a pass over the data: Kronecker factors, or squares of per-sequence gradients in a basis."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .batches import Batch
from .exchange import Rows
from .linalg import add_gram_, matmul_precision
from .targets import Target


# Products of a sample are made for so many entries of a weight at a time, 4 MB in fp32, so that they are squared while
# they are in the cache of a CPU: 1.6 times as fast for a weight of 5504 x 2048 and samples of 30 rows, 1.1 of 128.
BLOCK_ELEMENTS = 2**20


class KroneckerSums:
    """Sums of a a^T over the inputs and g g^T over the output gradients of each target.

    Targets (with several processes those that this one owns) that take the same tensor (gate/up, q/k/v) share one
    input sum, under the name of their leader. Both sums are upper block-rows until mirrored.
    """

    def __init__(self, targets: Mapping[str, Target], leaders: Mapping[str, str]):
        self.leaders = leaders
        # name -> (d_out, d_out), and leader -> (d_in, d_in) and the rows in it, not as many as in the output's.
        self.outputs, self.inputs = {}, {}
        for name, target in targets.items():
            d_out, d_in = target.widths
            self.outputs[name] = target.zeros(d_out, d_out)
            if leaders[name] == name:
                self.inputs[name] = target.zeros(d_in, d_in)
        self.counts = dict.fromkeys(self.inputs, 0)

    def start(self, batch: Batch):
        self.batch = batch

    def on_input(self, name: str, tensor: Tensor) -> None:
        if self.leaders[name] == name:
            self._add_input(name, self.batch.rows(name, tensor)[0])

    def on_gradient(self, name: str, kept: None, gradient: Tensor):
        # Rows that do not count have gradient 0; when few, multiplying them costs less than gathering the rest.
        rows = gradient.reshape(-1, gradient.shape[-1])
        if sum(self.batch.lengths) < 0.95 * len(rows):
            rows, _ = self.batch.rows(name, gradient)
        add_gram_(self.outputs[name], rows)

    def end(self):
        self.batch = None

    def add(self, rows: Rows):
        """Rows of one group from one batch of some process."""
        self._add_input(rows.leader, rows.inputs)
        for name, gradients in rows.gradients.items():
            for gradient in gradients:
                add_gram_(self.outputs[name], gradient)

    def tensors(self) -> dict[str, Tensor]:
        """The running sums themselves, by name: written and read back by a fit that was interrupted."""
        return {f"input.{name}": total for name, total in self.inputs.items()} | {
            f"output.{name}": total for name, total in self.outputs.items()
        }

    def _add_input(self, name: str, rows: Tensor):
        add_gram_(self.inputs[name], rows)
        self.counts[name] += len(rows)


class SquareSums:
    """Sums over sequences of (Q_S^T D Q_A)^2, D = sum over the sequence's rows of g a^T, the gradient (d_out, d_in).

    Every target's input is held from the forward to its gradient, under gradient checkpointing too.
    With rotations, name -> (Q_A (d_in, d_in), Q_S (d_out, d_out)), this is the EK-FAC correction (George et al. 2018,
    arXiv 1806.03884; per sequence as in Grosse et al. 2023, arXiv 2308.03296); without, plain squares.
    """

    counts: Mapping[str, int] = {}

    def __init__(self, targets: Mapping[str, Target], rotations: Mapping[str, tuple[Tensor, Tensor]] | None = None):
        self.rotations = rotations
        self.squares = {name: target.zeros(*target.widths) for name, target in targets.items()}
        self._rotated = (None, None)
        self._buffer = torch.empty(0)  # of products: a new one for each weight costs as much as squaring it

    def start(self, batch: Batch):
        self.batch = batch

    def on_input(self, name: str, tensor: Tensor) -> Tensor:
        return tensor

    def on_gradient(self, name: str, tensor: Tensor, gradient: Tensor):
        y, lengths = self.batch.rows(name, gradient, in_products=True)
        self._add(name, tensor, lambda: self.batch.rows(name, tensor, in_products=True)[0], y, lengths)

    def end(self):
        self.batch, self._rotated = None, (None, None)

    def add(self, rows: Rows):
        for name, gradients in rows.gradients.items():
            for gradient in gradients:
                self._add(name, rows.inputs, lambda: rows.inputs, gradient, rows.lengths)
        self._rotated = (None, None)

    def tensors(self) -> dict[str, Tensor]:
        return self.squares

    def _add(self, name: str, source: Tensor, rows: Callable[[], Tensor], y: Tensor, lengths: list[int]):
        """Add the squares of the sequences with gradients `y` and inputs `rows()`, which come from tensor `source`."""
        total = self.squares[name]
        y = y.to(total)
        with matmul_precision("highest"):
            if self.rotations is None:
                self._add_squares(total, y, self._input(source, rows, total, None), lengths)
                return
            q_in, q_out = self.rotations[name]
            if len(y) / len(lengths) <= break_even(*total.shape):
                self._add_squares(total, y @ q_out, self._input(source, rows, total, q_in), lengths)
            else:
                _add_rotated(total, y, self._input(source, rows, total, None), lengths, q_in, q_out)

    def _input(self, source: Tensor, rows: Callable[[], Tensor], total: Tensor, q_in: Tensor | None) -> Tensor:
        """Rows of the input, rotated. Targets that share an input come one after another, so the last is kept."""
        key = (source, q_in)
        if self._rotated[0] is None or any(a is not b for a, b in zip(self._rotated[0], key)):
            found = rows().to(total)
            self._rotated = key, found if q_in is None else found @ q_in
        return self._rotated[1]

    def _add_squares(self, total: Tensor, y: Tensor, x: Tensor, lengths: list[int]):
        """Add the squares of each sample's y^T x."""
        if max(lengths) == 1:
            total.addmm_(y.square().T, x.square())
            return
        if total.shape[1] == 1:  # a bias: the samples' sums, all in one product
            of_sample = torch.eye(len(lengths)).to(y).repeat_interleave(torch.tensor(lengths, device=y.device), 1)
            total += (of_sample @ (y * x)).square_().sum(0)[:, None]
            return
        samples = list(zip(y.split(lengths), x.split(lengths)))
        # Not one batched product of all samples, which writes each of theirs to memory: measured 1.0 to 2.8 times
        # slower; and 1.1 to 4 times slower as one of all samples for a few rows of the weight at a time.
        step = max(1, BLOCK_ELEMENTS // total.shape[1]) if total.device.type == "cpu" else len(total)
        product = self._product(min(step, len(total)), total)
        for start in range(0, len(total), step):
            block = total[start : start + step]
            part = product[: len(block)]
            for gradients, inputs in samples:
                torch.mm(gradients[:, start : start + step].T, inputs, out=part)
                block.addcmul_(part, part)

    def _product(self, rows: int, total: Tensor) -> Tensor:
        """Room for rows of a product like `total`."""
        size = rows * total.shape[1]
        if (self._buffer.dtype, self._buffer.device) != (total.dtype, total.device) or len(self._buffer) < size:
            self._buffer = total.new_empty(size)
        return self._buffer[:size].view(rows, -1)


def _add_rotated(total: Tensor, y: Tensor, x: Tensor, lengths: list[int], q_in: Tensor, q_out: Tensor):
    """Add the squares of each sample's y^T x in the basis."""
    for gradients, inputs in zip(y.split(lengths), x.split(lengths)):
        product = q_out.T @ (gradients.T @ inputs) @ q_in
        total.addcmul_(product, product)


def break_even(d_out: int, d_in: int) -> float:
    """Rows of a sequence up to which rotating them is cheaper than rotating the sequence's gradient.

    n rows cost 2 n (d_in^2 + d_out^2) FLOPs, the gradient 2 d_in d_out (d_in + d_out). 4,937 for 4096 x 11008.
    """
    return d_in * d_out * (d_in + d_out) / (d_in**2 + d_out**2)

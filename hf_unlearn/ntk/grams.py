# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sums over a dataset that the closed-form step needs, streamed: memory is p x p for any number of samples."""

import functools
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..curvature.linalg import add_gram_, mirror_
from ..errors import InputError
from ..runtime.processes import Processes, share_of
from .jacobians import Jacobians


T = TypeVar("T")
TENSORS = ("matrix", "target", "output", "classes")


@dataclass
class Gram:
    """Sums over samples and classes, fp64. Sets add and subtract: H(D_r) = H(D) - H(D_f).

    Outputs are centred over classes, f - mean_k f, and so are their Jacobians: softmax does not see the mean, and a
    target for it would be arbitrary. Targets are those of unit scale, y = one-hot - 1/C; the residual of scale s is
    s y + shift - f, so scale, shift and ridge change without another look at the data.
    """

    matrix: Tensor  # J^T J (p, p)
    target: Tensor  # J^T y (p,)
    output: Tensor  # J^T f (p,), f at the origin of the linear model
    classes: Tensor  # (p, C), column k the sum of row k of all Jacobians: what a target common to all meets
    rows: int  # number of samples

    def __add__(self, other: "Gram") -> "Gram":
        return Gram(*(mine + others for mine, others in zip(self._sums(), other._sums())))

    def __sub__(self, other: "Gram") -> "Gram":
        return Gram(*(mine - others for mine, others in zip(self._sums(), other._sums())))

    def __rmul__(self, weight: float) -> "Gram":
        """As if every row were there `weight` times."""
        return Gram(*(weight * total for total in self.tensors().values()), self.rows)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {name: getattr(self, name) for name in TENSORS}

    def _sums(self) -> tuple:
        return *self.tensors().values(), self.rows

    def residual(self, scale: float, shift: Tensor | None = None) -> Tensor:
        """J^T e (p,) for targets of this scale; `shift` (C,) is added to the targets of every sample."""
        residual = scale * self.target - self.output
        return residual if shift is None else residual + self.classes @ shift

    @property
    def mean_diagonal(self) -> float:
        """Trace / p: the unit of a relative ridge."""
        return float(self.matrix.diagonal().mean())


def measure_gram(
    jacobians: Jacobians, batches: Iterable[Mapping], processes: Processes | None = None, count: int | None = None
) -> Gram:
    """Sum over a dataset; with several processes each takes every n-th batch, and the sums are added. Collective.

    Args:
        jacobians (`Jacobians`): of the model.
        batches (`Iterable`): dicts with `labels` (B,) and what the model takes; in the same order on every process.
        processes (`Processes`, *optional*): those that share the work.
        count (`int`, *optional*): Contrasts drawn for each sample, see `contrast_basis`; all, and exact, by default.

    Raises:
        InputError: labels out of range; on all processes, whichever met them.
    """
    size, device = jacobians.size, jacobians.device
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=device)
    gram = Gram(zeros(size, size), zeros(size), zeros(size), zeros(size, 0), 0)
    processes = processes or Processes()

    def sum_up() -> int:
        for batch in share_of(batches, processes):
            for jacobian, outputs, targets, basis in contrast_chunks(jacobians, batch, count):
                rows = jacobian.flatten(0, 1).double()
                classes = rows.T @ basis.expand(len(outputs), -1, -1).flatten(0, 1)
                gram.classes = gram.classes + classes if gram.rows else classes
                add_gram_(gram.matrix, rows)
                gram.target += rows.T @ targets.flatten()
                gram.output += rows.T @ outputs.flatten()
                gram.rows += len(outputs)
        return gram.classes.shape[1]

    # A process without rows knows no number of classes.
    classes = max(processes.share(sum_up))
    if not gram.rows:
        gram.classes = zeros(size, classes)
    gram.classes = gram.classes.contiguous()
    for total in gram.tensors().values():
        processes.add(total)
    mirror_(gram.matrix)
    gram.rows = int(processes.add(torch.tensor(gram.rows, device=device)))
    return gram


def contrasts(classes: int) -> Tensor:
    """Helmert's orthonormal basis (C - 1, C), fp64, of what is centred over classes: Q^T Q = I - 1/C, Q Q^T = I."""
    ranks = torch.arange(1, classes, dtype=torch.float64)
    basis = torch.ones(classes - 1, classes, dtype=torch.float64).tril()
    basis[:, 1:].diagonal().copy_(-ranks)
    return basis / (ranks * (ranks + 1)).sqrt()[:, None]


def contrast_basis(batch: Mapping, count: int | None) -> Callable[[slice, int], Tensor]:
    """For `Jacobians`: all contrasts, or `count` random ones for every sample, scaled so that sums are unbiased.

    With S (m, C) the scaled basis of one sample, E[S^T S] = I - 1/C, so E[(S J)^T (S J)] is its share of the Gram. A
    sample's own values are the seed: its contrasts are the same in any order, process and request, so sets subtract.
    """
    seeds: list[int] = []

    def drawn(samples: slice, classes: int) -> Tensor:
        if count is None or count >= classes - 1:
            return contrasts(classes)
        if not seeds:
            seeds.extend(_checksums(batch))
        generator, shape = torch.Generator(), (classes - 1, count)
        normal = [
            torch.randn(shape, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds[samples]
        ]
        frames = torch.linalg.qr(torch.stack(normal)).Q.mT
        return ((classes - 1) / count) ** 0.5 * frames @ contrasts(classes)

    return drawn


def _checksums(batch: Mapping) -> list[int]:
    """One number for every sample of a batch, from what the model takes of it."""
    values = [value.detach().cpu() for name, value in batch.items() if name != "labels"]
    rows = [value.reshape(len(value), -1).contiguous().view(torch.uint8).numpy() for value in values]
    return [functools.reduce(lambda sum, part: zlib.crc32(part, sum), parts, 0) for parts in zip(*rows)]


def contrast_chunks(jacobians: Jacobians, batch: Mapping, count: int | None = None):
    """(Jacobian (n, m, p), outputs (n, m), unit targets (n, m), basis ([n,] m, C)) of every chunk.

    The first three are written in `contrast_basis`: sums over classes of products of centred vectors are those over
    contrasts, and one backward fewer is taken. The Jacobian is fp32 (of an fp64 model fp64), the others are fp64.
    """
    labels, start, drawn = batch["labels"].to(jacobians.device), 0, contrast_basis(batch, count)
    for outputs, jacobian in jacobians(batch, drawn):
        samples, classes = slice(start, start := start + len(outputs)), outputs.shape[1]
        unit = F.one_hot(check_labels(labels[samples], classes), classes)
        basis = drawn(samples, classes).to(outputs.device)
        yield jacobian, *((basis @ values.double()[..., None])[..., 0] for values in (outputs, unit)), basis


def centred_chunks(jacobians: Jacobians, batch: Mapping):
    """(Jacobian (n, C, p), outputs (n, C), unit targets (n, C)) of every chunk, all centred over classes."""
    for jacobian, *others, basis in contrast_chunks(jacobians, batch):
        yield torch.einsum("mc,nmp->ncp", basis.to(jacobian), jacobian), *(part @ basis for part in others)


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """The labels, if they are classes of the model.

    Raises:
        InputError: not whole numbers of shape (n,), or outside 0 ... classes - 1.
    """
    if labels.dim() != 1 or labels.is_floating_point():
        raise InputError(f"labels must be class numbers of shape (n,), not {labels.dtype} of {tuple(labels.shape)}")
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise InputError(
            f"label {int(labels.min()) if labels.min() < 0 else int(labels.max())} is out of range: the model has "
            f"{classes} classes, 0 to {classes - 1}"
        )
    return labels

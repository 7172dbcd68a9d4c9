# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Matrix work whose precision decides the result: symmetric accumulation, eigendecomposition, matmul precision."""

import contextlib

import torch
from torch import Tensor

from ..errors import NumericalError


@contextlib.contextmanager
def matmul_precision(precision: str):
    """Within the context, fp32 products on CUDA use TF32 ("high") or full fp32 ("highest")."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "high"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def block_rows(size: int, device_type: str) -> list[tuple[int, int]]:
    """Row ranges of the blocks in which a symmetric matrix of `size` is accumulated.

    n block-rows cost (1 + 1/n) / 2 of the full product: 0.625 for 4, 0.5625 for 8. Smaller blocks than these run below
    the speed of the full one, and so do edges that are no multiple of 16 (measured at 1376 on a CPU: 8 blocks with
    ragged edges 0.74, with these 0.63).
    """
    most, smallest = (4, 2048) if device_type == "cuda" else (8, 64)
    blocks = max(1, min(most, size // smallest))
    edges = [size * block // blocks // 16 * 16 for block in range(blocks)] + [size]
    return list(zip(edges, edges[1:]))


def add_gram_(total: Tensor, rows: Tensor):
    """total += rows^T rows in place, upper block-rows only; `mirror_` completes the matrix once at the end.

    A sum kept in bf16 gives negative eigenvalues, so `total` is fp32 (fp64) and the rows are cast to it. Products of
    numbers that were bf16 or fp16 are exact in TF32, which is then as good as fp32 and several times as fast.
    """
    exact_in_tf32 = rows.dtype in (torch.bfloat16, torch.float16)
    rows = rows.to(total)
    with matmul_precision("high" if exact_in_tf32 else "highest"):
        for start, stop in block_rows(len(total), total.device.type):
            total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])


def mirror_(total: Tensor) -> Tensor:
    """Copy the blocks above the diagonal below it; blocks on the diagonal are made symmetric."""
    for start, stop in block_rows(len(total), total.device.type):
        total[stop:, start:stop] = total[start:stop, stop:].T
        diagonal = total[start:stop, start:stop]
        diagonal.copy_((diagonal + diagonal.T) / 2)
    return total


def check_finite(tensor: Tensor, name: str):
    """Raise NumericalError that names the tensor when an entry is NaN or infinite."""
    if not torch.isfinite(tensor).all():
        raise NumericalError(f"{name} is not finite: the model overflows on this data; use bf16 or fp32 weights")


def eigendecompose(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(eigenvalues (d,), eigenvectors (d, d) in columns) of a symmetric positive semi-definite matrix.

    The matrix is scaled to unit mean trace (overwritten), so that factors of 1e-12 lose nothing to the solver's
    thresholds. fp32 `eigh` has good vectors and bad small values; the values are recomputed as Rayleigh quotients
    q^T C q, which at small damping is as good as an fp64 `eigh` of the same factor. Values are clamped at 0.

    Raises:
        NumericalError: an entry is not finite, or fp64 `eigh` on the CPU fails too.
    """
    check_finite(matrix, name)
    scale = matrix.diagonal().mean()
    if scale <= 0:
        return torch.zeros_like(matrix[0]), torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    matrix.div_(scale)
    try:
        vectors = torch.linalg.eigh(matrix).eigenvectors
        failed = not torch.isfinite(vectors).all()
    except torch.linalg.LinAlgError:
        failed = True
    if failed:
        try:
            vectors = torch.linalg.eigh(matrix.double().cpu()).eigenvectors.to(matrix)
        except torch.linalg.LinAlgError as error:
            raise NumericalError(f"{name} has no eigendecomposition even in fp64: {error}") from error
    with matmul_precision("highest"):
        values = (matrix @ vectors).mul_(vectors).sum(0)
    # `eigh` stores columns one after another; rows, as files have them, make products the same bits after loading.
    return values.clamp_(min=0).mul_(scale), vectors.contiguous()

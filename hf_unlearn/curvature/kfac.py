# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FAC: one Kronecker product of input and output-gradient covariances per weight."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from .base import Curvature
from .linalg import eigendecompose, mirror_
from .sums import KroneckerSums


class KFAC(Curvature):
    """G = S (x) A for each weight (d_out, d_in) (Martens & Grosse 2015, arXiv 1503.05671).

    A (d_in, d_in) is the mean of a a^T over the rows that can reach a label, S (d_out, d_out) the sum of g g^T over
    all rows divided by the number of predicted tokens. Kept are the eigendecompositions, not the factors: damping is
    then exact, (S (x) A + damping I)^-1, and changes without refitting.
    """

    kind = "kfac"

    passes = ("factors",)

    def make_sums(self, description, targets, leaders):
        return KroneckerSums(targets, leaders)

    def take(self, sums, tokens, show):
        """Divide the factors and put the eigendecomposition of each in its place, one after another."""
        from tqdm.auto import tqdm

        with self.stage("eigh") as measured:
            factors = {f"input.{name}": total.div_(sums.counts[name]) for name, total in sums.inputs.items()}
            factors |= {f"output.{name}": total.div_(tokens) for name, total in sums.outputs.items()}
            measured.factor_bytes = sum(factor.nbytes for factor in factors.values())
            # The sums let go of the factors: each is freed when its eigenvectors have taken its place.
            sums.inputs, sums.outputs = {}, {}
            bar = tqdm(sorted(factors), desc="eigh", unit="factor", disable=not show or self.processes.rank != 0)
            for name in bar:
                side, weight = name.split(".", 1)
                found = eigendecompose(mirror_(factors.pop(name)), f"the {side} factor of {weight}")
                self.tensors[f"values.{name}"], self.tensors[f"vectors.{name}"] = found

    def _bases(self, name: str) -> tuple[Tensor, Tensor]:
        """(Q_A, Q_S)."""
        leader = self.metadata["targets"][name]["input"]
        return self.tensors[f"vectors.input.{leader}"], self.tensors[f"vectors.output.{name}"]

    def _eigenvalues(self, name: str) -> Tensor:
        leader = self.metadata["targets"][name]["input"]
        return torch.outer(self.tensors[f"values.output.{name}"], self.tensors[f"values.input.{leader}"])

    def _largest(self, name: str) -> Tensor:
        leader = self.metadata["targets"][name]["input"]
        return self.tensors[f"values.output.{name}"].max() * self.tensors[f"values.input.{leader}"].max()

    def _rotate(self, name: str, matrix: Tensor) -> Tensor:
        q_in, q_out = (basis.to(matrix.device) for basis in self._bases(name))
        return q_out.T @ matrix @ q_in

    def _unrotate(self, name: str, matrix: Tensor) -> Tensor:
        q_in, q_out = (basis.to(matrix.device) for basis in self._bases(name))
        return q_out @ matrix @ q_in.T

    def _check_damping(self, names: Iterable[str], damping: float):
        if self._warned:
            return
        about = {name: self.metadata["targets"][name] for name in names}
        largest = {name: found["largest"] for name, found in about.items() if found["dtype"] == "float32"}
        worst = max(largest, key=largest.get, default=None)
        if worst is not None and damping < 1e-7 * largest[worst]:
            self._warned = True
            warnings.warn(
                f"damping {damping:g} lies below 1e-7 of the largest eigenvalue {largest[worst]:.3g} of {worst}: at "
                "fp32 rounding errors set the step; raise damping or use an fp64 model",
                stacklevel=4,
            )

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""K-FAC: one Kronecker product of input and output-gradient covariances per weight."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from .base import Curvature
from .linalg import check_finite, eigendecompose, mirror_
from .sharding import agree, all_reduce, assign, rank_and_size
from .sums import KroneckerSums


class KFAC(Curvature):
    """G = S (x) A for each weight (d_out, d_in) (Martens & Grosse 2015, arXiv 1503.05671).

    A (d_in, d_in) is the mean of a a^T over the rows that can reach a label, S (d_out, d_out) the sum of g g^T over
    all rows divided by the number of predicted tokens. Kept are the eigendecompositions, not the factors: damping is
    then exact, (S (x) A + damping I)^-1, and changes without refitting.
    """

    kind = "kfac"

    def _fit(self, targets, measure, accelerator, progress):
        sums = KroneckerSums(targets)

        def tensors():
            sums.leaders = agree(sums.leaders, accelerator)
            for leader in sorted(set(sums.leaders.values()) - set(sums.inputs)):
                sums.add_leader(leader)
            return {f"input.{name}": total for name, total in sums.inputs.items()} | {
                f"output.{name}": total for name, total in sums.outputs.items()
            }

        tokens = measure(sums, "factors", tensors)
        counts = {name: torch.tensor(count, device=sums.inputs[name].device) for name, count in sums.counts.items()}
        all_reduce(counts, accelerator)
        for name, target in self.metadata["targets"].items():
            target["input"] = sums.leaders[name]
        with self._stage("eigh"):
            factors = {f"input.{name}": total.div_(counts[name]) for name, total in sums.inputs.items()}
            factors |= {f"output.{name}": total.div_(tokens) for name, total in sums.outputs.items()}
            # The sums let go of the factors: each is freed when its eigenvectors have taken its place.
            sums.inputs, sums.outputs = {}, {}
            self._decompose(factors, accelerator, progress)

    def _decompose(self, factors: dict[str, Tensor], accelerator, progress: bool):
        """Eigendecompose each factor on one process and give all the same bits of it."""
        from tqdm.auto import tqdm

        rank, size = rank_and_size(accelerator)
        labels = {name: f"the {name.split('.', 1)[0]} factor of {name.split('.', 1)[1]}" for name in factors}
        # Checked by all before any goes on: the factors are reduced, so all raise together.
        for name, factor in factors.items():
            check_finite(factor, labels[name])
        owners = assign({name: float(len(factor)) ** 3 for name, factor in factors.items()}, size)
        mine = [name for name in sorted(factors) if owners[name] == rank]
        for name in tqdm(mine, desc="eigh", unit="factor", disable=not progress or rank != 0):
            self.tensors[f"values.{name}"], vectors = eigendecompose(mirror_(factors[name]), labels[name])
            self.tensors[f"vectors.{name}"] = factors[name] = vectors
        if size > 1:
            for name in sorted(factors):
                vectors = factors[name]
                values = self.tensors.get(f"values.{name}", torch.empty_like(vectors[0]))
                torch.distributed.broadcast(values, owners[name])
                torch.distributed.broadcast(vectors, owners[name])
                self.tensors[f"values.{name}"], self.tensors[f"vectors.{name}"] = values, vectors

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
        q_in, q_out = self._bases(name)
        return q_out.T @ matrix @ q_in

    def _unrotate(self, name: str, matrix: Tensor) -> Tensor:
        q_in, q_out = self._bases(name)
        return q_out @ matrix @ q_in.T

    def _check_damping(self, names: Iterable[str], damping: float):
        if self._warned:
            return
        largest = {name: self._largest(name) for name in names}
        largest = {name: float(value) for name, value in largest.items() if value.dtype == torch.float32}
        worst = max(largest, key=largest.get, default=None)
        if worst is not None and damping < 1e-7 * largest[worst]:
            self._warned = True
            warnings.warn(
                f"damping {damping:g} lies below 1e-7 of the largest eigenvalue {largest[worst]:.3g} of {worst}: at "
                "fp32 rounding errors set the step; raise damping or use an fp64 model",
                stacklevel=4,
            )

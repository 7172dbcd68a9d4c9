# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Kinds of curvature, from the simplest on: identity, diagonal, K-FAC, EK-FAC. Each states what it holds and costs."""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import InputError
from ..runtime.files import sha256_json
from .artifact import KINDS
from .base import Curvature
from .costs import factor_costs, measured_stage, square_cost
from .linalg import eigendecompose, mirror_
from .sums import KroneckerSums, SquareSums


class Identity(Curvature):
    """The identity over the targets: natural gradient becomes plain gradient.

    Fitting reads no data; it only records the weights.
    """

    kind = "identity"

    @classmethod
    def entries(cls, group):
        return 0

    @classmethod
    def costs(cls, work):
        return []

    def fill(self, targets):
        self.tensors |= {
            f"eigenvalues.{name}": torch.ones((), dtype=target.dtype, device=target.device)
            for name, target in targets.items()
        }

    def make_sums(self, description, targets, leaders):
        raise TypeError("the identity is not measured")


class Diagonal(Curvature):
    """diag(G) = (1 / N) sum over sequences of the squared gradient of the sequence, N predicted tokens.

    The squares are of per-sequence (per-sample) gradients; the square of a batch's gradient is another quantity. With
    `fisher="empirical"` and a classifier this is the empirical Fisher information of SPE-Unlearn (eq. 3).

    Example:
        >>> retained = Diagonal().fit(model, everything, fisher="empirical").minus(
        ...     Diagonal().fit(model, forgotten, fisher="empirical")
        ... )
    """

    kind = "diagonal"
    passes = ("diagonal",)

    @classmethod
    def entries(cls, group):
        return group.weight_entries

    @classmethod
    def costs(cls, work):
        return [square_cost("diagonal", work)]

    def make_sums(self, description, targets, leaders):
        return SquareSums(targets)

    @torch.no_grad()
    def minus(self, part: "Diagonal") -> "Diagonal":
        """The diagonal over the rows of this fit that are not in `part`, a fit on some of these rows.

        (N F - N_part F_part) / (N - N_part), where rounding left less than 0 set to 0: what a fit on the rest gives,
        without reading the rest. That `part` has only rows of this fit is for the caller to see to.

        Args:
            part (`Diagonal`): of the same model, weights, mask and kind of Fisher.

        Returns:
            `Diagonal`: a new one; both that it is made of stay as they are.

        Raises:
            InputError: the fits differ in one of these, their labels were drawn (a draw depends on a row's place in
                the data, so they are not those of the same rows), or `part` is not smaller than this.
        """
        told = "one diagonal cannot be taken from the other: they differ in"
        if not isinstance(part, Diagonal) or self.names != part.names:
            raise InputError(f"{told} kind or targets; fit both alike")
        for what in ("model_config_sha256", "weights_sha256", "fisher"):
            if self.metadata[what] != part.metadata[what]:
                raise InputError(f"{told} {what}; fit both alike")
        masks = [[about["kept_sha256"] for about in one.metadata["targets"].values()] for one in (self, part)]
        if masks[0] != masks[1]:
            raise InputError(f"{told} the mask; fit both alike")
        if self.owners != part.owners:
            raise InputError(f"{told} the processes that hold them; fit or load both alike")
        if self.metadata["fisher"] not in ("empirical", "exact"):
            raise InputError(
                f"labels of a {self.metadata['fisher']} Fisher are drawn anew in every fit, so one diagonal cannot be "
                "taken from the other: fit both with fisher='empirical' or 'exact'"
            )
        counts = {key: self.metadata[key] - part.metadata[key] for key in ("sequences", "predicted_tokens")}
        if min(counts.values()) < 1:
            raise InputError(
                f"a diagonal of {part.metadata['sequences']} rows cannot be taken from one of "
                f"{self.metadata['sequences']}: it must be of fewer rows, all of them among the others"
            )
        rest = Diagonal()
        rest.processes, rest.owners = self.processes, dict(self.owners)
        rest.metadata = copy.deepcopy(self.metadata) | counts | {"stages": {}}
        digests = [diagonal.metadata["data_sha256"] for diagonal in (self, part)]
        rest.metadata["data_sha256"] = sha256_json({"of": digests[0], "without": digests[1]})
        whole, less, left = (about["predicted_tokens"] for about in (self.metadata, part.metadata, counts))
        for key, tensor in self.tensors.items():
            if key.startswith("eigenvalues."):
                taken = part.tensors[key].to(tensor.device)
                tensor = ((tensor * (whole / left)).sub_(taken, alpha=less / left)).clamp_(min=0)
            rest.tensors[key] = tensor
        for found in rest.processes.gather({name: rest.extent(name) for name in rest.names if rest.holds(name)}):
            for name, about in found.items():
                rest.metadata["targets"][name] |= about
        return rest


class KFAC(Curvature):
    """G = S (x) A for each weight (d_out, d_in) (Martens & Grosse 2015, arXiv 1503.05671).

    A (d_in, d_in) is the mean of a a^T over the rows that can reach a label, S (d_out, d_out) the sum of g g^T over
    all rows divided by the number of predicted tokens. Kept are the eigendecompositions, not the factors: damping is
    then exact, (S (x) A + damping I)^-1, and changes without refitting.
    """

    kind = "kfac"
    passes = ("factors",)
    has_factors = True

    @classmethod
    def entries(cls, group):
        return sum(width**2 + width for width in group.factors)  # a matrix, and its eigenvalues

    @classmethod
    def work(cls, group):
        return sum(float(width) ** 3 for width in group.factors)

    @classmethod
    def costs(cls, work):
        return factor_costs(work)

    @classmethod
    def solve_flops(cls, d_out, d_in):
        return 4 * d_out * d_in * (d_out + d_in)

    def make_sums(self, description, targets, leaders):
        return KroneckerSums(targets, leaders)

    def take(self, sums, tokens, show):
        """Divide the factors and put the eigendecomposition of each in its place, one after another."""
        from tqdm.auto import tqdm

        with measured_stage("eigh", self.metadata["stages"]) as measured:
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

    def _both(self, part: str, name: str, device=None) -> tuple[Tensor, Tensor]:
        """The `part` ("values", "vectors") of A and of S."""
        keys = f"{part}.input.{self.metadata['targets'][name]['input']}", f"{part}.output.{name}"
        return tuple(self.tensors[key].to(device) for key in keys)

    def _eigenvalues(self, name: str) -> Tensor:
        values_in, values_out = self._both("values", name)
        return torch.outer(values_out, values_in)

    def _largest(self, name: str) -> Tensor:
        values_in, values_out = self._both("values", name)
        return values_out.max() * values_in.max()

    def _rotate(self, name: str, matrix: Tensor) -> Tensor:
        q_in, q_out = self._both("vectors", name, matrix.device)
        return q_out.T @ matrix @ q_in

    def _unrotate(self, name: str, matrix: Tensor) -> Tensor:
        q_in, q_out = self._both("vectors", name, matrix.device)
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


class EKFAC(KFAC):
    """G = (Q_S (x) Q_A) diag(L) (Q_S (x) Q_A)^T, L = (1 / N) sum over sequences of (Q_S^T D Q_A)^2.

    The bases are those of K-FAC. D is the gradient (d_out, d_in) of one sequence, so L is the exact diagonal of the
    per-sequence Fisher in the eigenbasis (George et al. 2018, arXiv 1806.03884). The second pass draws equal labels.
    """

    kind = "ekfac"
    passes = ("factors", "correction")

    @classmethod
    def entries(cls, group):
        return super().entries(group) + group.weight_entries

    @classmethod
    def costs(cls, work):
        return [*super().costs(work), square_cost("correction", work, rotated=True)]

    def make_sums(self, description, targets, leaders):
        if description == "factors":
            return super().make_sums(description, targets, leaders)
        return SquareSums(targets, {name: self._both("vectors", name) for name in targets})

    def take(self, sums, tokens, show):
        # Squares in the eigenbasis are eigenvalues as they are.
        (Curvature if isinstance(sums, SquareSums) else KFAC).take(self, sums, tokens, show)

    # Measured, not products of the factors' values.
    _eigenvalues, _largest = Curvature._eigenvalues, Curvature._largest


def make_curvature(kind: str | Curvature) -> Curvature:
    """A new curvature of a kind, or the one that is given.

    Args:
        kind (`str` or `Curvature`): `"ekfac"`, `"kfac"`, `"diagonal"`, `"identity"`, or that of a subclass elsewhere.

    Raises:
        InputError: no class has this kind.
    """
    if isinstance(kind, Curvature):
        return kind
    if kind not in KINDS:
        raise InputError(
            f"curvature must be one of {', '.join(reversed(KINDS))}, a fitted Curvature, or the folder or repository "
            f"of one, not {kind!r}"
        )
    return KINDS[kind]()

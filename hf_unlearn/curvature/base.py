# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Base of every curvature: what a kind states, solve, norm."""

import abc
import functools
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..errors import InputError, NumericalError
from ..runtime.processes import Processes
from ..runtime.sharded import whole
from .artifact import CurvatureFiles
from .costs import StageCost, Workload
from .fit import CurvatureFit
from .layout import Group
from .linalg import check_finite, matmul_precision
from .targets import Target


class Curvature(CurvatureFit, CurvatureFiles, abc.ABC):
    """A positive semi-definite matrix G over some weights of a model, block-diagonal over the weights.

    G is per predicted token: G = (1 / N) sum over sequences, N predicted tokens (samples for classifiers and
    regressions, ends of spans), so that for a small step v the mean KL between the model's predictions before and
    after is v^T G v / 2 nats a token. Biases are in it only where a fit asks for them. Every block is diagonal in a
    Kronecker product of two orthogonal bases; a subclass says which.

    A fit may be given a mask: rows and columns of the weights that are kept. G is then over these entries alone, at
    the cost of these: gradients come whole and are cut, steps come whole and are 0 outside of the mask.

    After a fit on several processes each holds the tensors of its own weights only. Then `fit`, `solve`, `norm`,
    `save_pretrained` and `push_to_hub` are collective: all processes call them with equal arguments, for equal bits.

    A subclass with a `kind` is known to `make_curvature`, `plan` and `from_pretrained` as soon as it is defined.

    Attributes:
        kind (`str`): name of the class in files and arguments.
        passes (`tuple[str, ...]`): names of the passes over the data; a last one adds up eigenvalues.
        has_factors (`bool`): whether a block is a product of two square factors, which are decomposed.
        names (`list[str]`): `state_dict` names of the weights (and biases).
        metadata (`dict`): JSON-able account of the fit; the same on all processes but for seconds and memory.
        tensors (`dict[str, Tensor]`): what this process holds.
        owners (`dict[str, int]`): name -> rank of the process that holds its tensors; empty when this one holds all.

    Example:
        >>> curvature = EKFAC().fit(model, dataloader)
        >>> steps = curvature.solve(gradients, damping=1e-6)
        >>> predicted_kl = curvature.norm(steps) ** 2 / 2
    """

    kind: str
    passes: tuple[str, ...] = ()
    has_factors: bool = False

    def __init__(self):
        self.metadata, self.tensors, self.owners = {}, {}, {}
        self.processes = Processes()
        self._warned = False  # once, not at every refit

    @property
    def names(self) -> list[str]:
        return list(self.metadata.get("targets", {}))

    @property
    def largest(self) -> float:
        """The largest eigenvalue of all blocks, on every process: the scale of a damping."""
        return max(target["largest"] for target in self.metadata["targets"].values())

    # ---- what a subclass states and measures
    @classmethod
    @abc.abstractmethod
    def entries(cls, group: Group) -> int:
        """Numbers held of the weights of a group while they are measured: factors, eigenvectors, eigenvalues."""

    @classmethod
    def work(cls, group: Group) -> float:
        """Work of the process that owns a group; its unit is the same for all groups."""
        return float(cls.entries(group))

    @classmethod
    @abc.abstractmethod
    def costs(cls, work: Workload) -> list[StageCost]:
        """Costs of the stages of a fit, beyond the forwards and backwards of its passes."""

    @classmethod
    def solve_flops(cls, d_out: int, d_in: int) -> int:
        """FLOPs of one solve with one weight."""
        return d_out * d_in

    def fill(self, targets: Mapping[str, Target]):
        """Set `self.tensors` without data, in kinds that make no pass."""
        raise TypeError(f"{type(self).__name__} makes passes over the data")

    @abc.abstractmethod
    def make_sums(self, description: str, targets: Mapping[str, Target], leaders: Mapping[str, str]):
        """What the pass of that name adds up for these targets: `KroneckerSums`, `SquareSums`, or the like."""

    def take(self, sums, tokens: int, show: bool):
        """Make tensors of the sums of a pass over `tokens` predicted tokens."""
        for name, total in sums.squares.items():
            check_finite(total, f"the {self.passes[-1]} of {name}")
            self.tensors[f"eigenvalues.{name}"] = total.div_(tokens)

    def extent(self, name: str) -> dict:
        """Largest eigenvalue and type of a weight's tensors, for those that do not hold them."""
        largest = self._largest(name)
        return {"largest": float(largest), "dtype": str(largest.dtype).removeprefix("torch.")}

    def _eigenvalues(self, name: str) -> Tensor:
        """Eigenvalues of the block, (d_out, d_in) of what is kept or a scalar, in the basis of `_rotate`."""
        return self.tensors[f"eigenvalues.{name}"]

    def _largest(self, name: str) -> Tensor:
        return self._eigenvalues(name).max()

    def _rotate(self, name: str, matrix: Tensor) -> Tensor:
        """The kept matrix (d_out, d_in) in the block's eigenbasis; the identity unless a subclass has bases."""
        return matrix

    def _unrotate(self, name: str, matrix: Tensor) -> Tensor:
        return matrix

    def solve(self, gradients: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """(G + damping I)^-1 applied to gradients of some of the weights.

        Args:
            gradients (`Mapping[str, Tensor]`): name -> gradient, shaped like the weight, whatever a mask keeps of it.
            damping (`float`): not negative, in the units of G's eigenvalues.

        Returns:
            `dict[str, Tensor]`: name -> step, shaped like the weight and 0 outside of the mask, fp32 (fp64 for an fp64
            model), on the device of its gradient.

        Raises:
            InputError: a name or shape that was not fitted, a negative damping.
            NumericalError: the step is not finite.
        """
        return next(self.solve_many(gradients, [damping]))[0]

    def solve_many(
        self, gradients: Mapping[str, Tensor], dampings: Iterable[float]
    ) -> Iterator[tuple[dict[str, Tensor], float]]:
        """For each damping the step and its `norm`; the gradients are rotated into the eigenbasis only once."""
        self.processes.doing = "a curvature solve"
        rotated, devices = {}, {}
        for name in sorted(gradients):
            self._check(name, gradients[name])
            # All processes take part in gathering a sharded gradient; its owner alone keeps it.
            gradient, devices[name] = whole(gradients[name]), gradients[name].device
            if self.holds(name):
                with torch.no_grad(), matmul_precision("highest"):
                    rotated[name] = self._to_basis(name, gradient)
        for damping in dampings:
            if not damping >= 0:
                raise InputError(f"damping must not be negative, got {damping}")
            self._check_damping(gradients, damping)
            steps: dict[str, Tensor] = {}
            norm = _root(self.processes.share(functools.partial(self._solve_own, rotated, damping, steps)))
            for name in sorted(gradients) if self.owners else ():
                if name not in steps:
                    target = self.metadata["targets"][name]
                    dtype = getattr(torch, target["dtype"])
                    steps[name] = torch.empty(target["shape"], dtype=dtype, device=devices[name])
                self.processes.broadcast(steps[name], self.owners[name])
            yield {name: steps[name] for name in gradients}, norm

    def _solve_own(self, rotated: Mapping[str, Tensor], damping: float, steps: dict[str, Tensor]) -> dict[str, float]:
        """Put the steps of rotated gradients into `steps`; the square of each one's norm."""
        squares = {}
        with torch.no_grad(), matmul_precision("highest"):
            for name, matrix in rotated.items():
                values = self._eigenvalues(name).to(matrix.device)
                matrix = matrix / (values + damping)
                squares[name] = _quadratic(matrix, values)
                steps[name] = self._from_basis(name, matrix).contiguous()
                if not torch.isfinite(steps[name]).all():
                    raise NumericalError(f"the step of {name} is not finite at damping {damping:g}; raise damping")
        return squares

    def norm(self, steps: Mapping[str, Tensor]) -> float:
        """sqrt(v^T G v) over all the steps together, without damping; what lies outside of the mask is not in G."""
        self.processes.doing = "a norm under the curvature"
        squares = {}
        for name in sorted(steps):
            self._check(name, steps[name])
            step = whole(steps[name])
            if self.holds(name):
                with torch.no_grad(), matmul_precision("highest"):
                    matrix = self._to_basis(name, step)
                    squares[name] = _quadratic(matrix, self._eigenvalues(name).to(matrix.device))
        return _root(self.processes.gather(squares))

    def spectrum(self, name: str) -> dict:
        """Spectrum of one weight's block, whose tensors this process holds.

        `size` is d_out * d_in of what is kept, `effective_rank` (sum of eigenvalues)^2 / sum of their squares,
        `condition` the `largest` eigenvalue / the smallest positive one.
        """
        size = math.prod(self.metadata["targets"][name]["kept"])
        values = self._eigenvalues(name).double().reshape(-1).expand(size)  # the identity has one value for all
        positive = values[values > 0]
        largest = float(values.max())
        return {
            "size": size,
            "largest": largest,
            "effective_rank": float(values.sum() ** 2 / values.square().sum()) if largest > 0 else 0.0,
            "condition": largest / float(positive.min()) if len(positive) else math.inf,
        }

    def holds(self, name: str) -> bool:
        """Whether this process has the tensors of a weight."""
        return self.owners.get(name, self.processes.rank) == self.processes.rank

    def _check(self, name: str, matrix: Tensor):
        target = self.metadata.get("targets", {}).get(name)
        if target is None:
            masks = [about["kept_sha256"] for about in self.metadata.get("targets", {}).values()]
            masked = " and a mask that keeps part of it" if any(masks) else ""
            raise InputError(f"{name} has no curvature: fit it with target_modules that cover it{masked}")
        if list(matrix.shape) != target["shape"]:
            raise InputError(f"{name}: expected shape {target['shape']}, got {list(matrix.shape)}")

    def _to_basis(self, name: str, matrix: Tensor) -> Tensor:
        """What is kept, in the eigenbasis, on the matrix's own device, to which one weight's bases come at a time."""
        target = self.metadata["targets"][name]
        matrix = matrix.to(self._eigenvalues(name).dtype)
        matrix = matrix.T if target["transposed"] else matrix.reshape(len(matrix), -1)
        for dim, index in self._kept(name, matrix.device):
            matrix = matrix.index_select(dim, index)
        return self._rotate(name, matrix)

    def _from_basis(self, name: str, matrix: Tensor) -> Tensor:
        target, matrix = self.metadata["targets"][name], self._unrotate(name, matrix)
        d_out, d_in = target["shape"][::-1] if target["transposed"] else (*target["shape"], 1)[:2]
        for dim, index in reversed(self._kept(name, matrix.device)):
            size = (d_out, matrix.shape[1]) if dim == 0 else (matrix.shape[0], d_in)
            matrix = matrix.new_zeros(size).index_copy_(dim, index, matrix)
        return matrix.T.contiguous() if target["transposed"] else matrix.reshape(target["shape"])

    def _kept(self, name: str, device: torch.device) -> list[tuple[int, Tensor]]:
        """(0, places of the kept rows) and (1, those of the columns), where these are not all."""
        found = ((dim, self.tensors.get(f"{side}.{name}")) for dim, side in enumerate(("rows", "columns")))
        return [(dim, index.to(device)) for dim, index in found if index is not None]

    def _check_damping(self, names: Iterable[str], damping: float):
        """Warn of a damping too small for the eigenvalues, in kinds whose eigenvalues have rounding errors."""


def _quadratic(matrix: Tensor, values: Tensor) -> float:
    return float((matrix.square() * values).sum(dtype=torch.float64))


def _root(squares: list[Mapping[str, float]]) -> float:
    """Root of the sum of all squares, in order of the names: the same bits for any number of processes."""
    found = {name: square for part in squares for name, square in part.items()}
    return sum(found[name] for name in sorted(found)) ** 0.5

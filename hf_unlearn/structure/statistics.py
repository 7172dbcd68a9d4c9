# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Statistics of mask gradients: their sum over rows, their squares row by row, and products within a layer.

A mask multiplies what structures put into the projection behind them. With x that input and dx its gradient,
d loss / d m at m = 1 is the sum over positions, and over a head's width, of x * dx: one backward of a batch gives it
for every row. No mask stands in the forward, attention may be fused, and weights need no gradients.
"""

import contextlib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import InputError, NumericalError
from ..runtime.modules import measuring, model_device
from ..runtime.processes import Processes
from .heads import Site, Structures
from .mask import StructureMask
from .rows import Counts, Rows, forward, sample_losses, walk


class MaskGradients:
    """Within the context, each backward through the model leaves every row's gradient of every mask.

    It changes no setting of the model and works beside other hooks, so these come out of the same backward as
    gradients of weights, or a curvature: Algorithm 1 in one pass. What is differentiated is what was called `backward`
    on: the sum of the rows' losses gives each row its own gradient, the mean a B-th of it.

    Args:
        model (`nn.Module`): a transformer.
        structures (`Structures`): of the model; its sites are those that are reported.

    Example:

    ```python
    with MaskGradients(model, structures) as masks:
        losses(model, batch).sum().backward()
        gradients = masks.take()  # key of a site -> (rows, structures)
    ```
    """

    def __init__(self, model: nn.Module, structures: Structures):
        self.model, self.structures = model, structures
        self._found: dict[str, Tensor] = {}
        self._rows = 0  # of the batch: OPT's feed-forward block sees its positions in one row

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            for site in self.structures.sites.values():
                module = self.model.get_submodule(site.module)
                stack.callback(module.register_forward_pre_hook(functools.partial(self._hook, site)).remove)
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._hooks.close()
        self._found = {}

    def take(self) -> dict[str, Tensor]:
        """Key of a site -> (rows, structures), in fp32 or better, of what ran backward since the last call.

        Raises:
            InputError: a site got no gradient: its layer did not run, or nothing was differentiated.
        """
        found, self._found = self._found, {}
        if missing := [site.module for key, site in self.structures.sites.items() if key not in found]:
            raise InputError(
                f"{missing[0]} received no gradient ({len(missing)} such projections): every layer must run, and a "
                "backward come before its mask gradients are taken"
            )
        return {key: found[key] for key in self.structures.sites}

    def _hook(self, site: Site, module: nn.Module, args: tuple):
        if not torch.is_grad_enabled():
            return
        x = args[0]
        if x.dim() > 2:
            self._rows = len(x)
        elif not self._rows or len(x) % self._rows:
            raise InputError(
                f"{site.module} gets inputs of shape {tuple(x.shape)}, in which rows of the batch cannot be told "
                "apart: mask gradients need (rows, positions, width)"
            )
        if not x.requires_grad:
            x.requires_grad_()  # here the graph begins, when weights are frozen
        x.register_hook(functools.partial(self._add, site, self._rows, x.detach()))

    def _add(self, site: Site, rows: int, x: Tensor, gradient: Tensor):
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, gradient = (one.reshape(rows, -1, one.shape[-1]) for one in (x, gradient.detach()))
        each = torch.linalg.vecdot(x.to(dtype), gradient.to(dtype), dim=1)
        found = each.unflatten(1, (site.count, site.width)).sum(2)
        self._found[site.key] = self._found[site.key] + found if site.key in self._found else found


class GramSum:
    """The sum of g g^T over vectors g (n,), kept as the vectors while these are fewer than n, then as a matrix.

    A request has fewer rows than a wide layer has filters: 400 vectors of 11,008 are 18 MB, their matrix is 485.
    """

    def __init__(self, size: int):
        self.size, self.vectors, self.square = size, [], None

    def add(self, vectors: Tensor):
        """Vectors (k, n)."""
        self.vectors.append(vectors)
        if self.square is not None or sum(map(len, self.vectors)) > self.size:
            self.square, self.vectors = self.matrix(), []

    def merge(self, other: "GramSum"):
        for vectors in other.vectors:
            self.add(vectors)
        if other.square is not None:
            self.square, self.vectors = self.matrix() + other.square.to(self.matrix()), []

    def matrix(self) -> Tensor:
        """(n, n)."""
        total = torch.zeros(self.size, self.size) if self.square is None else self.square
        if self.vectors:
            stacked = torch.cat(self.vectors)
            total = torch.addmm(total.to(stacked), stacked.T, stacked)
        return total


@dataclass
class MaskStatistics:
    """Sums over rows of their mask gradients g = d loss / d m at m = 1, and of products of them.

    Args:
        gradients (`dict[str, Tensor]`): key of a site -> the sum of g, (count,).
        squares (`dict[str, Tensor]`): key of a site -> the sum of g^2, (count,).
        blocks (`dict[str, GramSum]`): key of a site -> the sum of g g^T, where it was asked for.
        counts (`Counts`): the rows.
    """

    gradients: dict[str, Tensor]
    squares: dict[str, Tensor]
    blocks: dict[str, GramSum] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)

    @classmethod
    def empty(cls, structures: Structures, blocks: bool = False, device: str | torch.device = "cpu"):
        """Of no rows; with `blocks` to hold products within each site."""
        zeros = lambda: {key: torch.zeros(site.count, device=device) for key, site in structures.sites.items()}
        grams = {key: GramSum(site.count) for key, site in structures.sites.items()} if blocks else {}
        return cls(zeros(), zeros(), grams)

    def add(self, gradients: Mapping[str, Tensor]):
        """Add rows' gradients, key -> (rows, count), of `MaskGradients.take`.

        Raises:
            NumericalError: one is not finite.
        """
        for key, rows in gradients.items():
            self.gradients[key] = self.gradients[key] + rows.sum(0)
            self.squares[key] = self.squares[key] + rows.square().sum(0)
            if not bool(self.squares[key].isfinite().all()):
                raise NumericalError(f"the mask gradients of {key} are not finite: check the model and its precision")
            if key in self.blocks:
                self.blocks[key].add(rows)
        self.counts.samples += len(rows)

    def merge(self, other: "MaskStatistics"):
        """Add the sums of other rows."""
        for key in self.gradients:
            self.gradients[key] = self.gradients[key] + other.gradients[key].to(self.gradients[key])
            self.squares[key] = self.squares[key] + other.squares[key].to(self.squares[key])
        for key, block in self.blocks.items():
            block.merge(other.blocks[key])
        self.counts = Counts(*(sum(pair) for pair in zip(astuple(self.counts), astuple(other.counts))))

    def minus(self, part: "MaskStatistics") -> "MaskStatistics":
        """The statistics of the rows that are left when those of `part`, which are among them, go: F of D minus D_f.

        Raises:
            InputError: these are not more rows than those of `part`.
        """
        if part.counts.samples >= self.counts.samples:
            raise InputError(
                f"{part.counts.samples} rows cannot be taken from {self.counts.samples} with some left: give rows "
                "that are among those of the statistics"
            )
        left = MaskStatistics({}, {}, counts=replace(self.counts, samples=self.counts.samples - part.counts.samples))
        for key in self.gradients:
            left.gradients[key] = self.gradients[key] - part.gradients[key].to(self.gradients[key])
            # Rounding may leave less than nothing of what a part has all of.
            left.squares[key] = (self.squares[key] - part.squares[key].to(self.squares[key])).clamp(min=0)
        for key, block in self.blocks.items():
            left.blocks[key] = GramSum(block.size)
            left.blocks[key].square = block.matrix() - part.blocks[key].matrix().to(block.matrix())
        return left

    def fisher(self, key: str) -> Tensor:
        """The empirical diagonal Fisher of a site's masks (eq. 3): the mean over rows of g^2, (count,)."""
        return self.squares[key] / self.counts.samples

    def block(self, key: str) -> Tensor:
        """The empirical Fisher of a site's masks: the mean over rows of g g^T, (count, count)."""
        return self.blocks[key].matrix() / self.counts.samples


def mask_statistics(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    structures: Structures,
    *,
    blocks: bool = False,
    accelerator=None,
    show: bool = False,
) -> MaskStatistics:
    """Measure the mask gradients of every row in one pass: a forward and one backward, of activations, for a batch.

    The loss is that of a row, summed over its tokens (`structure.rows.sample_losses`). Rows of nothing but padding, or
    with nothing to predict, are left out and counted.

    Args:
        model (`nn.Module`): a transformer.
        dataloader (`Iterable[Mapping]`): dicts that the model takes, with `labels`, or `start_positions` and
            `end_positions`; not prepared by an accelerator: with several processes all read the same.
        structures (`Structures`): of the model.
        blocks (`bool`, *optional*, defaults to `False`): keep products within each site too, for eq. 9 and 19.
        accelerator (`accelerate.Accelerator`, *optional*, defaults to `None`): whose processes share the batches; all
            get the same sums.
        show (`bool`, *optional*, defaults to `False`): a progress bar.

    Raises:
        InputError: as `structure.rows.walk`; a layer that does not run.
        NumericalError: a gradient is not finite.
    """
    processes = Processes(accelerator, "the statistics of masks")
    own = MaskStatistics.empty(structures, blocks, model_device(model))
    with measuring(model), MaskGradients(model, structures) as masks:

        def compute(rows: Rows, counted: bool):
            sample_losses(model, forward(model, rows), rows).sum().backward()
            gradients = masks.take()
            if counted:
                own.add(gradients)

        counts = walk(model, dataloader, compute, processes=processes, description="statistics of masks", show=show)
    total, *others = processes.gather(own)
    for other in others:
        total.merge(other)
    total.counts = counts
    return total


def summed_gradients(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    names: Iterable[str],
    *,
    mask: StructureMask | None = None,
    accelerator=None,
    show: bool = False,
) -> dict[str, Tensor]:
    """The gradient of the rows' summed loss with respect to parameters, by name; in fp32 or better.

    With a `mask` what it keeps of each (`StructureMask.select`). The gradient of one parameter at a time is there as a
    whole, however many there are.

    Raises:
        InputError: as `structure.rows.walk`.
    """
    processes = Processes(accelerator, "the gradients of structures")
    chosen = {name: model.get_parameter(name) for name in names}
    select = (lambda name, tensor: tensor) if mask is None else mask.select
    own: dict[str, Tensor] = {}
    counted = True

    def take(parameter: nn.Parameter, name: str):
        part = select(name, parameter.grad)
        parameter.grad = None
        if counted:
            fine = part.to(torch.promote_types(part.dtype, torch.float32))
            own[name] = own[name].add_(fine) if name in own else fine

    with contextlib.ExitStack() as stack:
        stack.enter_context(measuring(model, chosen.values()))
        for name, parameter in chosen.items():
            stack.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None
            hook = functools.partial(take, name=name)
            stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)

        def compute(rows: Rows, is_counted: bool):
            nonlocal counted
            counted = is_counted
            sample_losses(model, forward(model, rows), rows).sum().backward()

        walk(model, dataloader, compute, processes=processes, description="gradients of structures", show=show)
    for name, parameter in chosen.items():
        if name not in own:  # of a process without a batch
            part = select(name, parameter.detach())
            own[name] = torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))
        processes.add(own[name])
    return own

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Search for the heads and filters that an update may change: importances, one ranking, one round of swaps."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import InputError
from .heads import KINDS, Structures
from .mask import StructureMask, check_kinds, highest, kept_count
from .statistics import MaskStatistics


# Name -> what is measured of which rows: sums of mask gradients, their products, gradients of weights.
IMPORTANCES = {
    "mlr": {"gradients": "forget", "products": "retain"},  # minimise the loss of the remaining rows, eq. 8
    "mlf": {"gradients": "retain", "products": "forget"},  # maximise the loss of the forget rows, eq. 18
    "fisher": {"gradients": "forget", "products": "retain"},  # eq. 13, where the forget rows are few
    "norm": {"weights": "forget"},  # appendix B
}


def choose_mask(
    structures: Structures,
    importance: str,
    sparsity: float,
    *,
    kinds: Iterable[str] = KINDS,
    forget: MaskStatistics | None = None,
    retain: MaskStatistics | None = None,
    weights: Mapping[str, Tensor] | None = None,
    rearrange: bool = True,
) -> StructureMask:
    """Choose the structures of the highest importance over all layers, and swap within each.

    With d = 1 - m the structures that are frozen, each importance is what a second-order expansion of a loss around
    m = 1 loses when one of them is masked:

    - `"mlr"`, eq. 8: minimise d . g(forget) + 1/2 d^2 . F(retain);
    - `"mlf"`, eq. 18: maximise d . g(retain) + 1/2 d^2 . F(forget), so the *smallest* are kept, as printed;
    - `"fisher"`, eq. 13: minimise d^2 . F(retain), F of all rows where the forget rows are few among them;
    - `"norm"`, appendix B: the L2 norm of the gradient of the forget rows' summed loss over all entries of parameters
      that a structure owns (`summed_gradients`), keys and values of a group counted for each of its heads.

    g are sums over rows, and F means over rows of g^2 (eq. 3), as printed. So the first outweighs the second as soon
    as a request has some rows: the Hessian in eq. 6, of the summed loss, is F times the number of retain rows.
    Heads and filters stand in one ranking, as in the paper, though a head, which is many times as wide as a filter,
    has the larger gradients and squares. At a sparsity of 0.9 a tuned BERT keeps a larger share of its heads than of
    its filters under `"mlr"`, most of them under `"mlf"`, and all of them under `"fisher"` and `"norm"`; a random mask
    to compare with is `StructureMask.shuffled`. `kinds` chooses one of the two.

    The swaps (eq. 9, 19) take F with the products of structures of a site, the heads or the filters of a layer: a head
    is swapped for a head of its layer. They keep the number of structures at each site. `"norm"` approximates no loss
    and has none; those of `"fisher"` take `forget`, if it is given, into account, as section 3.3.2 has it.

    Args:
        structures (`Structures`): of the model.
        importance (`str`): of `IMPORTANCES`.
        sparsity (`float`): the share of structures that stay frozen (eq. 4).
        kinds (`Iterable[str]`, *optional*, defaults to `("heads", "filters")`): of structures to choose from.
        forget, retain (`MaskStatistics`, *optional*, defaults to `None`): of the rows, for all but `"norm"`.
        weights (`Mapping[str, Tensor]`, *optional*, defaults to `None`): of the forget rows, for `"norm"`.
        rearrange (`bool`, *optional*, defaults to `True`): swap; needs statistics with `blocks`.

    Raises:
        InputError: an unknown importance, sparsity or kind; statistics that the importance needs are not there.
    """
    if importance not in IMPORTANCES:
        raise InputError(f"importance is {importance!r}: choose one of {', '.join(IMPORTANCES)}")
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    count = kept_count(check_kinds(structures, kinds), sparsity)
    sites = [key for key, site in structures.sites.items() if site.kind in kinds]
    if importance == "norm":
        if weights is None:
            raise InputError("importance 'norm' needs the gradients of weights: summed_gradients of the forget rows")
        scores = gradient_norms(structures, weights)
        chosen, swaps = highest({key: scores[key] for key in sites}, count), None
    else:
        sign = -1 if importance == "mlf" else 1
        linear, products = (forget, retain) if sign == 1 else (retain, forget)
        if products is None or (linear is None and importance != "fisher"):
            raise InputError(f"importance {importance!r} needs the statistics of masks on forget and on retain rows")
        ranked = importance != "fisher"
        slope = lambda key: 0 if linear is None else sign * linear.gradients[key].double().cpu()
        scores = {key: (slope(key) if ranked else 0) + sign * products.fisher(key).double().cpu() / 2 for key in sites}
        chosen, swaps = highest(scores, count), 0 if rearrange else None
        if rearrange and not products.blocks:
            raise InputError("swaps need products within layers: measure the statistics with blocks=True")
        for key in sites if rearrange else ():
            if chosen[key].any() and not chosen[key].all():
                block = sign * products.block(key).cpu()
                chosen[key], made = swap_round(
                    slope(key) + torch.zeros(len(scores[key])), block, scores[key], chosen[key]
                )
                swaps += made
    settings = {"importance": importance, "sparsity": sparsity, "structures": list(kinds), "swaps": swaps}
    return StructureMask(structures, chosen, settings=settings)


def objective(linear: Tensor, block: Tensor, kept: Tensor) -> float:
    """d . linear + 1/2 d^T block d with d = 1 - m, what eq. 9 minimises over the masks m of a site.

    Args:
        linear (`Tensor`): (n,).
        block (`Tensor`): (n, n), symmetric; of any sign.
        kept (`Tensor`): bool (n,).
    """
    frozen = (~kept).double()
    return float(frozen @ linear.double() + frozen @ (block.double() @ frozen) / 2)


def swap_round(linear: Tensor, block: Tensor, scores: Tensor, kept: Tensor) -> tuple[Tensor, int]:
    """One round of swaps of a kept structure for a frozen one, each of which lowers `objective`; never a higher one.

    The kept ones are tried from the least important on, each against the frozen one whose swap gains most (Kwon et al.
    2022, arXiv 2204.09656, mask rearrangement). O(n) for each that is kept, since the product of the block and what is
    frozen is carried along.

    Args:
        linear, block, kept: as of `objective`.
        scores (`Tensor`): importances, (n,).

    Returns:
        The structures that are kept then, and the number of swaps.
    """
    kept, linear, swaps = kept.clone(), linear.double(), 0
    diagonal = block.diagonal().double()
    carried = (block @ (~kept).to(block)).double()
    order = scores.masked_fill(~kept, float("inf")).argsort(stable=True)[: int(kept.sum())]
    for one in order.tolist():
        frozen = (~kept).nonzero()[:, 0]
        row = block[one].double()
        freeze = linear[one] + carried[one] + diagonal[one] / 2
        gains = freeze - linear[frozen] - carried[frozen] + diagonal[frozen] / 2 - row[frozen]
        best = int(gains.argmin())
        # Below what rounding of these sums may be: a swap to and fro of equals is none.
        if gains[best] < -1e-12 * (freeze.abs() + carried.abs().max()):
            other = int(frozen[best])
            kept[one], kept[other] = False, True
            carried += row - block[other].double()
            swaps += 1
    return kept, swaps


def gradient_norms(structures: Structures, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key of a site -> the L2 norm (count,) of a gradient over all that each structure owns or shares.

    Raises:
        InputError: a parameter of the structures has no gradient.
    """
    if missing := [name for name in structures.owners if name not in weights]:
        raise InputError(
            f"{missing[0]} has no gradient ({len(missing)} such parameters): give those of all structures"
        )
    norms = {}
    for key, site in structures.sites.items():
        squares = torch.zeros(site.count + 1, dtype=torch.float64)
        for name, part in site.parts.items():
            each = weights[name].detach().double().square()
            each = (each if each.dim() == 1 else each.sum(1 - part.dim)).cpu()
            # A step up at each entry's first structure, and down behind its last.
            squares.index_add_(0, part.first, each).index_add_(0, part.last, -each)
        norms[key] = squares.cumsum(0)[:-1].clamp(min=0).sqrt()
    return norms

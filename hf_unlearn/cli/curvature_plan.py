# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn curvature plan`: what a fit and a step of each kind will take, with and without a mask."""

import dataclasses
from collections.abc import Sequence

from torch import nn

from ..curvature import Plan, plan
from ..curvature.costs import format_widths
from ..errors import InputError
from ..methods.masking import MaskSettings, kept_entries, planned_mask, tell_planned
from ..report.tables import markdown_table
from ..runtime.cost import format_bytes, format_flops
from ..runtime.loading import load_outline
from ..structure.mask import StructureMask
from .console import Result


COMPARED = ("kfac", "ekfac", "diagonal")


def run_curvature_plan(options) -> Result:
    """The stages of one kind, and a table of all kinds; with a sparsity beside the same weights without a mask.

    Raises:
        InputError: numbers that are none, no such model or kind, a mask that the model cannot have.
    """
    for name in ("sequences", "length", "num_processes"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}: give 1 or more")
    if options.structures and options.sparsity is None:
        raise InputError("--structures says what a mask chooses from: give its --sparsity too")
    model = load_outline(options.model)
    about = {
        "target_modules": options.target_modules,
        "sequences": options.sequences,
        "sequence_length": options.length,
        "num_processes": options.num_processes,
        "max_factor_memory": options.max_factor_memory,
    }
    asked = {"sparsity": options.sparsity} | ({"structures": options.structures} if options.structures else {})
    mask = None if options.sparsity is None else planned_mask(dataclasses.asdict(MaskSettings.read(asked)), model)
    kinds = dict.fromkeys((options.kind, *COMPARED))
    plans = compare_plans(model, tuple(kinds), mask, **about)
    size = sum(parameter.numel() for parameter in model.parameters())
    lines = [f"{type(model).__name__}: {size / 1e6:,.1f} M parameters, on the meta device"]
    if mask is not None:
        lines.append(tell_planned(mask, chosen_later=True))
    lines += ["", str(plans[options.kind, mask is not None]), "", plan_table(plans)]
    facts = {"parameters": size, "plans": [plan_facts(cost, masked) for (_, masked), cost in plans.items()]}
    return Result("\n".join(lines), facts | ({} if mask is None else {"mask": {**asked, "entries": mask.entries}}))


def compare_plans(
    model: nn.Module, kinds: Sequence[str], mask: StructureMask | None, **about
) -> dict[tuple[str, bool], Plan]:
    """(kind, whether masked) -> its plan. Without a mask, those that are compared are of the weights that it names.

    Args:
        model: on the meta device.
        mask: what is kept; None for plans without a mask alone.
        about: further arguments of `plan`.
    """
    if mask is None:
        return {(kind, False): plan(model, kind=kind, **about) for kind in kinds}
    every = StructureMask.all(mask.structures, mask.kinds)
    sides = {False: kept_entries(every), True: kept_entries(mask)}
    return {(kind, side): plan(model, kind=kind, kept=kept, **about) for kind in kinds for side, kept in sides.items()}


def plan_table(plans: dict[tuple[str, bool], Plan]) -> str:
    """A table of plans, a line each."""
    body = [
        [
            kind,
            "masked" if masked else "whole",
            f"{cost.parameters / 1e6:,.1f} M",
            format_widths(cost.widths) or "none",
            format_bytes(cost.factor_bytes),
            format_flops(cost["eigh"].flops) if cost.widths else "none",
            format_flops(cost.fit_flops),
            format_flops(cost["solve"].flops),
        ]
        for (kind, masked), cost in plans.items()
    ]
    header = ["curvature", "weights", "parameters", "factors", "held", "decompositions", "fit", "step"]
    return markdown_table(header, body, align="llrlrrrr")


def plan_facts(cost: Plan, masked: bool) -> dict:
    """What `--json` prints of a plan."""
    return {
        "kind": cost.kind,
        "masked": masked,
        "weights": len(cost.targets),
        "parameters": cost.parameters,
        "factors": {str(width): count for width, count in sorted(cost.widths.items(), reverse=True)},
        "factor_bytes": cost.factor_bytes,
        "blocks": cost.blocks,
        "fit_flops": cost.fit_flops,
        "stages": [dataclasses.asdict(stage) for stage in cost.stages],
    }

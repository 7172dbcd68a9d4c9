# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fit of a curvature on retain rows of a run: longest first, planned aloud, resumed where it was killed."""

import time
from pathlib import Path

from ..curvature import Curvature, plan
from ..curvature.targets import Kept
from ..data.rows import longest_first, sample_rows
from ..runtime.sharded import is_sharded
from .base import Run


IN_PROGRESS = "curvature-in-progress"


def fit_on_retain(
    run: Run,
    curvature: Curvature,
    dataset,
    *,
    target_modules: str | list[str] | None = None,
    kept: Kept | None = None,
    fisher: str = "sampled",
    rows: int | None = None,
    seed: int = 0,
) -> Curvature:
    """Fit `curvature` on (a seeded choice of `rows` of) retain rows, longest first, at the weights as they are.

    The plan is printed before the first fit. A fit that is killed goes on from `curvature-in-progress/` in the output
    folder when the run is started again.
    """
    args = run.args
    dataset, lengths = longest_first(sample_rows(dataset, rows, args.seed))
    started = time.perf_counter()
    model = run.accelerator.unwrap_model(run.model)
    # One forward of two tokens tells what shares an input: a model that is sharded itself would need all processes.
    shown = args.process_index == 0 and not args.disable_tqdm and not is_sharded(model)
    if shown and lengths and "fit_seconds" not in run.cost:
        from tqdm.auto import tqdm

        cost = plan(
            model,
            kind=curvature.kind,
            target_modules=target_modules,
            kept=kept,
            sequences=len(lengths),
            sequence_length=round(sum(lengths) / len(lengths)),
            num_processes=args.world_size,
            max_factor_memory=args.max_factor_memory,
        )
        tqdm.write(str(cost))
    curvature.fit(
        model,
        run.loader(dataset, args.curvature_batch_size),
        target_modules=target_modules,
        kept=kept,
        fisher=fisher,
        seed=seed,
        accelerator=run.accelerator,
        progress=not args.disable_tqdm,
        max_factor_memory=args.max_factor_memory,
        checkpoint_dir=Path(args.output_dir) / IN_PROGRESS if args.curvature_save_steps else None,
        checkpoint_every=args.curvature_save_steps,
    )
    run.cost["fit_seconds"] = run.cost.get("fit_seconds", 0.0) + time.perf_counter() - started
    return curvature

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A curvature fitted on a trainer's retain rows: which rows, in which order, what it will cost, and where it is saved."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..curvature import KINDS, plan
from ..data.rows import sample_rows
from ..runtime.sharded import is_sharded


if TYPE_CHECKING:
    from ..trainer.trainer import UnlearnTrainer

IN_PROGRESS = "curvature-in-progress"


def fit_on_retain(trainer: "UnlearnTrainer", curvature, *, target_modules, fisher: str, rows: int | None, seed: int):
    """See `UnlearnTrainer.fit_curvature`."""
    args, lengths = trainer.args, []
    dataset = sample_rows(trainer.retain_dataset, rows, args.seed)
    if "input_ids" in dataset.column_names:
        # Rows of one length together: a third of the time went into padding. The longest come first, so that a batch
        # too large for the memory fails at once.
        lengths = [len(ids) for ids in dataset["input_ids"]]
        dataset = dataset.select(sorted(range(len(lengths)), key=lambda row: -lengths[row]))
    started = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    # One forward of two tokens tells what shares an input: a model that is sharded itself would need all processes for it.
    shown = trainer.is_world_process_zero() and not args.disable_tqdm and not is_sharded(model)
    if shown and lengths and curvature.kind in KINDS and "fit_seconds" not in trainer.cost:
        from tqdm.auto import tqdm

        tqdm.write(
            str(
                plan(
                    model,
                    kind=curvature.kind,
                    target_modules=target_modules,
                    sequences=len(lengths),
                    sequence_length=round(sum(lengths) / len(lengths)),
                    num_processes=args.world_size,
                    max_factor_memory=args.max_factor_memory,
                )
            )
        )
    curvature.fit(
        model,
        trainer._loader(dataset, args.curvature_batch_size),
        target_modules=target_modules,
        fisher=fisher,
        seed=seed,
        accelerator=trainer.accelerator,
        progress=not args.disable_tqdm,
        max_factor_memory=args.max_factor_memory,
        checkpoint_dir=Path(args.output_dir) / IN_PROGRESS if args.curvature_save_steps else None,
        checkpoint_every=args.curvature_save_steps,
    )
    trainer.cost["fit_seconds"] = trainer.cost.get("fit_seconds", 0.0) + time.perf_counter() - started
    return curvature

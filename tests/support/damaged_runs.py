# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Runs that were killed after their second checkpoint, whose folders are damaged before they are resumed."""

import contextlib
import io
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.trainer.run_folder import RUN_FILE
from tests.support.fuzz import Outcomes, damage
from tests.support.trainers import make_trainer, trained_llama


def lora():
    from peft import LoraConfig

    return LoraConfig(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4)


# {a run: its method, and the adapter that it trains}.
RUNS: dict[str, tuple[Callable, Callable]] = {
    "npo": (lambda: FirstOrder("npo"), lambda: None),
    "npo with LoRA": (lambda: FirstOrder("npo"), lora),
    "kfade": (lambda: KFade(step_norm=0.05, curvature="diagonal", damping=1e-3, steps=3, refit=False), lambda: None),
}


def finish(run: str, folder: Path, resume: bool | str | None = None) -> str:
    """The hash of the update that a run makes, from the beginning or from what lies in its folder."""
    method, adapter = RUNS[run]
    steps = {} if run == "kfade" else {"max_steps": 3}
    trainer = make_trainer(
        trained_llama(), method(), folder, peft_config=adapter(), save_strategy="steps", save_steps=1,
        save_total_limit=3, learning_rate=1e-3, logging_strategy="no", **steps,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(resume_from_checkpoint=resume)
    return trainer.update_delta().sha256()


def files_of(folder: Path) -> list[Path]:
    """What a killed run left, and a next one reads."""
    files = [folder / RUN_FILE, *(file for file in folder.glob("checkpoint-*/*") if file.is_file())]
    return sorted(file.relative_to(folder) for file in files)


def resume_damaged(run: str, folder: Path, seeds: Iterable[int]) -> tuple[Outcomes, int]:
    """Damage a run's folder once for each seed, and resume: from what is whole, and from the last checkpoint by name.

    Each must be refused in one line, or end in the bits of the run that was never killed. Of every fourth both
    checkpoints are damaged. Returns the outcomes and the number of files that there are.
    """
    kept, now, outcomes = folder / "kept", folder / "run", Outcomes()
    expected = finish(run, kept)
    shutil.rmtree(kept / "checkpoint-3")
    (kept / "unlearning_log.jsonl").unlink()
    files = files_of(kept)
    random.Random(run).shuffle(files)
    for seed in seeds:
        for resume in (True, str(now / "checkpoint-2")):
            shutil.rmtree(now, ignore_errors=True)
            shutil.copytree(kept, now)
            rng, place = random.Random(f"{run} {seed}"), files[seed % len(files)]
            damage(now / place, rng)
            if seed % 4 == 3 and place.parts[0].startswith("checkpoint"):
                other = {"checkpoint-1": "checkpoint-2", "checkpoint-2": "checkpoint-1"}[place.parts[0]]
                damage(now / other / place.name, rng)
            case = f"{run}: {place} seed {seed}, {'by name' if resume is not True else 'the last whole one'}"
            outcomes.add(case, lambda resume=resume: finish(run, now, resume), expected.__eq__)
    return outcomes, len(files)

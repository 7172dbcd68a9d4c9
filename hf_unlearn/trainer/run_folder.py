# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One output folder, one run: its identity, its whole checkpoints, and the log of requests that it served."""

import contextlib
import json
import logging
import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import InputError
from ..runtime.files import read_json, write_json


logger = logging.getLogger(__name__)

RUN_FILE = "unlearn_run.json"
COMPLETE_FILE = "complete"
# Training arguments that change the result, and so belong to a run's identity.
IDENTITY_ARGUMENTS = (
    "seed data_seed per_device_train_batch_size gradient_accumulation_steps world_size max_steps num_train_epochs "
    "optim learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
    "bf16 fp16"
)


def claim_folder(folder: Path, identity: dict, write: bool):
    """Write `identity` into an output folder, or check that the one found there is the same.

    Raises:
        InputError: the folder holds another run.
    """
    identity = json.loads(json.dumps(identity, default=str))
    path = folder / RUN_FILE
    if path.is_file():
        found = read_json(path)
        if different := [key for key in identity if found.get(key) != identity[key]]:
            raise InputError(
                f"output_dir {folder} holds another run (another "
                f"{', '.join(name.replace('_', ' ') for name in different)}): choose another output_dir, or delete it"
            )
    elif folder.is_dir() and any(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")):
        raise InputError(f"output_dir {folder} holds checkpoints of another program: choose another output_dir")
    elif write:
        write_json(path, identity)


@contextlib.contextmanager
def whole_checkpoint(folder: Path):
    """Write a checkpoint here, or none: a full disk must not leave a folder that looks like one."""
    try:
        yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def seal_checkpoint(checkpoint: Path):
    """Mark a checkpoint whole. Trainer writes it file by file: the mark comes after all have reached the disk."""
    sizes = {}
    for file in sorted(checkpoint.rglob("*")):
        if file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
            sizes[file.relative_to(checkpoint).as_posix()] = file.stat().st_size
    write_json(checkpoint / COMPLETE_FILE, {"bytes": sizes})


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is marked whole and still is: a kill while an old one is deleted may leave the mark."""
    mark = checkpoint / COMPLETE_FILE
    if not mark.is_file():
        return False
    sizes = read_json(mark)["bytes"]
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == sizes[name] for name in sizes)


def checkpoint_to_resume(folder: Path, resume: str | Path | bool | None, clean: bool) -> str | None:
    """The checkpoint that `resume` asks for; with True the last whole one, or None when there is none yet.

    Args:
        clean: remove checkpoints that a kill left half written.

    Raises:
        InputError: a checkpoint was named that is not whole.
    """
    if resume is None or resume is False:
        return None
    if isinstance(resume, str | Path):
        if not is_whole(Path(resume)):
            raise InputError(
                f"{resume} is not a whole checkpoint (see its file '{COMPLETE_FILE}'): resume from another"
            )
        return str(resume)
    whole = {}
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not checkpoint.name.rsplit("-", 1)[1].isdigit():
            continue  # a person's copy, not one of Trainer's
        if is_whole(checkpoint):
            whole[int(checkpoint.name.rsplit("-", 1)[1])] = checkpoint
        elif clean:
            shutil.rmtree(checkpoint, ignore_errors=True)
    if not whole:
        logger.warning(f"no whole checkpoint in {folder}: the run starts from the beginning")
        return None
    return str(whole[max(whole)])

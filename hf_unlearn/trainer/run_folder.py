# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One output folder, one run: its identity, its whole checkpoints, and the log of requests that it served."""

import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ..errors import InputError
from ..runtime.files import read_json, sha256_file, write_json
from ..runtime.folders import settle, writing
from ..runtime.processes import Processes, held


logger = logging.getLogger(__name__)

RUN_FILE = "unlearn_run.json"
COMPLETE_FILE = "complete"
ASIDE = ".aside"
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
        found = read_json(path, {})
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
def run_alone(folder: Path, processes: Processes):
    """Keep other runs out of an output folder, and put back what a killed one had set aside in it. Collective.

    Raises:
        InputError: another run is at work there.
    """

    def put_back():
        for aside in folder.glob(f".{PREFIX_CHECKPOINT_DIR}-*{ASIDE}"):
            _put_back(aside)

    with held(folder, processes):
        processes.share(lambda: put_back() if processes.rank == 0 else None)
        yield


@contextlib.contextmanager
def whole_checkpoint(trainer, folder: Path):
    """Let Trainer write a checkpoint here, whole or not at all. Collective.

    Trainer writes file by file: the mark that it is whole comes after all have reached the disk, and older checkpoints
    go after that. One that is written again is set aside until the new one is whole.

    Raises:
        WriteError: it could not be written; the checkpoints are those of before.
    """
    args, aside = trainer.args, folder.with_name(f".{folder.name}{ASIDE}")
    limit, args.save_total_limit = args.save_total_limit, None
    with writing(folder):
        if args.should_save and folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    try:
        with writing(folder):
            trainer.accelerator.wait_for_everyone()
            yield
            trainer.accelerator.wait_for_everyone()  # each process writes its random state
            if args.should_save:
                seal_checkpoint(folder)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        if args.should_save and aside.is_dir():
            with contextlib.suppress(OSError):  # then the next run does it
                _put_back(aside)
        raise
    finally:
        args.save_total_limit = limit
    if args.should_save:
        shutil.rmtree(aside, ignore_errors=True)
        best = trainer.state.best_model_checkpoint
        rotate_checkpoints(str(folder.parent), limit, best_model_checkpoint=best, use_mtime=True)


def _put_back(aside: Path):
    """Give a checkpoint that was set aside its name again, unless the new one is whole."""
    folder = aside.with_name(aside.name[1:].removesuffix(ASIDE))
    if is_whole(folder):
        shutil.rmtree(aside, ignore_errors=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def seal_checkpoint(checkpoint: Path):
    """Mark a checkpoint whole, with sizes and hashes of its files, once they have reached the disk."""
    settle(checkpoint)
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file != checkpoint / COMPLETE_FILE]
    names = {file.relative_to(checkpoint).as_posix(): file for file in files}
    hashes = {name: sha256_file(file) for name, file in names.items()}
    sizes = {name: file.stat().st_size for name, file in names.items()}
    write_json(checkpoint / COMPLETE_FILE, {"bytes": sizes, "sha256": hashes})


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is marked whole and still has the files that it had, of their sizes.

    A kill while an old one is deleted may leave the mark.
    """
    return _lost(checkpoint, lambda file, size, _: file.stat().st_size == size) is None


def _lost(checkpoint: Path, is_kept: Callable[[Path, int, str], bool]) -> str | None:
    """What a checkpoint has not as it was marked: the name of a file."""
    try:
        mark = read_json(checkpoint / COMPLETE_FILE, {"bytes": {str: int}, "sha256": {str: str}})
    except InputError:
        return COMPLETE_FILE
    for name, size in mark["bytes"].items():
        file = checkpoint / name
        if not file.is_file() or not is_kept(file, size, mark["sha256"].get(name)):
            return name
    return None


def is_unchanged(checkpoint: Path) -> bool:
    """Whether a whole checkpoint has the very bytes that were written; a warning where it has not."""
    lost = _lost(checkpoint, lambda file, _, sha256: sha256_file(file) == sha256)
    if lost is not None:
        logger.warning(f"{checkpoint / lost} is not what was written: this checkpoint is not used")
    return lost is None


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
        if not is_whole(Path(resume)) or not is_unchanged(Path(resume)):
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
    last = next((whole[step] for step in sorted(whole, reverse=True) if is_unchanged(whole[step])), None)
    if last is None:
        logger.warning(f"no whole checkpoint in {folder}: the run starts from the beginning")
    return None if last is None else str(last)

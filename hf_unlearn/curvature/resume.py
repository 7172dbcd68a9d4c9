# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of a fit, which continues inside its pass: running sums and finished stages, in files of each process.

`checkpoint_dir/fit-<identity>/` holds, for stage S (counted over all blocks) and process P:
- `S-done-P.safetensors`: the tensors that stage S gave, when it is over;
- `S-ROUNDS-P.safetensors`: the sums after so many rounds of stage S. Each process writes a new one before it deletes
  the last but one, and has finished one before any begins the next, so all processes always have one set whole.
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import InputError
from ..runtime.files import open_safetensors, parse_json, read_tensors, sha256_tensors, write_safetensors
from ..runtime.processes import Processes
from .passes import Progress


logger = logging.getLogger(__name__)

SHAPE = {
    "progress": {"rounds": int, "sequences": int, "tokens": int, "digest": str},
    "counts": {str: int},
    "tensors": str,
}


class FitCheckpoint:
    """Files of a fit in progress; all methods do nothing without a folder.

    `identity` is a hash of all that the result depends on but the data, whose own is in `Progress`; `every` so many
    batches, of all processes together, sums are written, and never at 0.
    """

    def __init__(self, folder: str | Path | None, identity: str, processes: Processes, every: int):
        self.processes, self.every = processes, every
        self.rounds = max(1, every // processes.size)
        self.root = Path(folder) if folder is not None and every else None
        self.folder = self.root / f"fit-{identity[:16]}" if self.root is not None else None

    def find(self) -> tuple[int, int]:
        """(stage, rounds) of the furthest set that every process has; (0, 0) for none. Collective."""
        if self.folder is None:
            return 0, 0
        return max(set.intersection(*map(set, self.processes.share(self._positions))))

    def progress(self, stage: int, rounds: int | None) -> Progress:
        """What a file of this process says of the data that it holds."""
        return Progress(**self._about(self._file(stage, rounds))["progress"])

    def load(self, stage: int, rounds: int | None = None) -> tuple[dict[str, Tensor], dict]:
        """Tensors and counts of a set of sums, or of a finished stage (`rounds` None)."""
        file = self._file(stage, rounds)
        return read_tensors(file), self._about(file)["counts"]

    def after_round(self, stage: int, sums, progress: Progress):
        """Write the sums when it is time."""
        if self.folder is None or progress.rounds % self.rounds:
            return
        self._write(stage, progress.rounds, sums.tensors(), progress, sums.counts)
        older = sorted(position for position in self._sums() if position < (stage, progress.rounds))
        for position in older[:-1]:
            self._file(*position).unlink(missing_ok=True)

    def finish(self, stage: int, tensors: Mapping[str, Tensor], progress: Progress):
        """Write what a stage gave; a stage too short to have been written in between is not worth it."""
        if self.folder is not None and progress.rounds >= self.rounds:
            self._write(stage, None, tensors, progress, {})

    def remove(self):
        """Delete this fit's files: it is done, or its data has changed."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty, or gone
                self.root.rmdir()

    def remove_others(self):
        """Delete what fits with another identity left, which nothing can go on from."""
        for folder in self.root.glob("fit-*") if self.root is not None else []:
            if re.fullmatch(r"fit-[0-9a-f]{16}", folder.name) and folder != self.folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _write(self, stage: int, rounds: int | None, tensors, progress: Progress, counts: Mapping[str, int]):
        about = {"progress": dataclasses.asdict(progress), "counts": dict(counts), "tensors": sha256_tensors(tensors)}
        write_safetensors(self._file(stage, rounds), tensors, {"about": json.dumps(about)})

    def _file(self, stage: int, rounds: int | None) -> Path:
        middle = "done" if rounds is None else f"{rounds:08d}"
        return self.folder / f"{stage:03d}-{middle}-{self.processes.rank}.safetensors"

    def _sums(self) -> list[tuple[int, int]]:
        """Positions of this process's sets of sums."""
        found = []
        for file in self.folder.glob(f"*-{self.processes.rank}.safetensors"):
            stage, middle, _ = file.stem.split("-")
            if middle != "done" and self._is_whole(file):
                found.append((int(stage), int(middle)))
        return found

    def _positions(self) -> list[tuple[int, int]]:
        """Where this process could continue: within a stage, or at the start of one, when all before it are done."""
        done = 0
        while self._is_whole(self._file(done, None)):
            done += 1
        return [(stage, 0) for stage in range(done + 1)] + [place for place in self._sums() if place[0] <= done]

    def _is_whole(self, file: Path) -> bool:
        """Whether a file has the tensors that were written; one that has not is as good as none, and said so."""
        if not file.exists():
            return False
        try:
            if sha256_tensors(read_tensors(file)) == self._about(file)["tensors"]:
                return True
            raise InputError(f"{file} is not what was written")
        except InputError as error:
            logger.warning(f"sums of a fit that was cut short are not used: {error}")
            return False

    def _about(self, file: Path) -> dict:
        with open_safetensors(file) as opened:
            return parse_json((opened.metadata() or {}).get("about", ""), file, SHAPE)


def restore(sums, tensors: Mapping[str, Tensor], counts: Mapping[str, int]):
    """Put saved sums back into the accumulators, which keep their place on their device."""
    for name, total in sums.tensors().items():
        total.copy_(tensors[name])
    if counts:
        sums.counts.update(counts)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the finished stages of a search left behind: a search that is killed goes on after the last of them."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from ..deltas import UpdateDelta
from ..errors import InputError
from ..runtime.files import open_safetensors, read_sealed, sha256_file, write_safetensors, write_sealed


logger = logging.getLogger(__name__)

FOLDER, SHARED, STATE = "finished", "shared", "state.json"
KEPT = ("trainings", "stages", "rows", "path", "seconds", "peak_memory")
SHAPE = {"key": str, "trainings": int, "stages": int, "rows": [{}], "path": [{}], "seconds": float}
SHAPE |= {"peak_memory": float}
SHAPE |= {"best": (int, None), "tensors_sha256": (str, None)}


class FinishedStages:
    """How far a search has come, read from its folder. Every process reads; one writes while the others wait.

    A run of several stages takes hours on a large model, so all that the next stage starts from is kept: the weights
    in their own precision, the update so far in fp32, the candidates, and the best one's update.

    Attributes:
        trainings: those that are done.
        stages: stages of the next training that are done.
        rows: the candidates of the trainings that are done.
        path: numbers after each stage of the next training that is done, where the problem looks at them.
        best: index of the best of them and its update; None when there is none yet.
        seconds, peak_memory: of the next training's stages that are done, and of all of them.
    """

    def __init__(self, folder: Path, key: str):
        """`key` is the hash of all that decides what the stages do: what is found under another is not used."""
        self.folder, self.key = folder / FOLDER, key
        self.trainings, self.stages, self.seconds, self.peak_memory = 0, 0, 0.0, 0.0
        self.rows: list[dict] = []
        self.path: list[dict] = []
        self.best: tuple[int, UpdateDelta] | None = None
        self._written: int | None = None
        if not (self.folder / STATE).exists():
            return
        try:
            state = read_sealed(self.folder / STATE, SHAPE)
            if state["key"] != key:
                return
            if state["stages"]:
                file = self.folder / f"training-{state['trainings']}-stage-{state['stages']}.safetensors"
                if sha256_file(file) != state["tensors_sha256"]:
                    raise InputError(f"{file} is not what was written")
            if state["best"] is not None:
                self.best = state["best"], UpdateDelta.from_pretrained(self.folder / f"best-{state['best']}")
        except (InputError, OSError) as error:
            logger.warning(f"what is left of finished stages cannot be used, and they are repeated: {error}")
            self.best = None
            return
        self._written = state["best"]
        for name in KEPT:
            setattr(self, name, state[name])

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return self.trainings + self.stages > 0

    def tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Of the next training's stages that are done: the weights that they changed, and their update together."""
        parts = {"weights": {}, "update": {}}
        with open_safetensors(self.folder / self._stage_file) as file:
            for name in file.keys():
                part, weight = name.split("/", 1)
                parts[part][weight] = file.get_tensor(name)
        return parts["weights"], parts["update"]

    @property
    def _stage_file(self) -> str:
        return f"training-{self.trainings}-stage-{self.stages}.safetensors"

    def save(self, weights: Mapping[str, torch.Tensor], update: Mapping[str, torch.Tensor]):
        """Write the attributes, and what `tensors` returns. A full disk is no reason to lose what goes on in memory.

        The state is written last, and names what it belongs to: a kill leaves the old one, and its files.
        """
        wanted = {STATE}
        try:
            if self.stages:
                wanted.add(self._stage_file)
                parts = {f"weights/{name}": tensor for name, tensor in weights.items()}
                parts |= {f"update/{name}": tensor for name, tensor in update.items()}
                write_safetensors(self.folder / self._stage_file, parts)
            if self.best is not None:
                index, delta = self.best
                wanted.add(f"best-{index}")
                if index != self._written:
                    delta.save_pretrained(self.folder / f"best-{index}", dtype=torch.float32)
                    self._written = index
            state = {"key": self.key} | {name: getattr(self, name) for name in KEPT}
            state |= {"best": None if self.best is None else self.best[0]}
            state |= {"tensors_sha256": sha256_file(self.folder / self._stage_file) if self.stages else None}
            write_sealed(self.folder / STATE, state)
        except OSError as error:
            logger.warning(f"the finished stages could not be kept, and a killed run would repeat them: {error}")
            return
        for old in self.folder.iterdir():
            if old.name not in wanted:
                shutil.rmtree(old) if old.is_dir() else old.unlink()

    def clear(self):
        """Remove all else that the search's folder holds, and what was kept or is shared unless it is in use."""
        for old in self.folder.parent.glob("*"):
            if old.name not in (FOLDER, SHARED) or not self.begun:
                shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink()

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Comparison of methods with equal search budgets: lines x sizes x seeds, one table."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..data.rows import fingerprint_rows, hash_of_rows, row_hashes
from ..deltas import UpdateDelta
from ..errors import InputError
from ..evaluation.specificity import Approximation, KLResult
from ..report.card import write_card
from ..report.questions import Question, compare_answers
from ..runtime.checkpoints import needs_merging
from ..runtime.files import (
    read_sealed,
    read_tensors,
    sha256_file,
    sha256_json,
    sha256_tensors,
    write_safetensors,
    write_sealed,
)
from ..runtime.folders import staged_folder
from ..runtime.processes import on_main_process
from ..runtime.provenance import code_sha256
from ..runtime.published import MODEL_FILES
from ..trainer.publishing import save_alone
from ..trainer.records import update_context
from .finished_stages import FinishedStages
from .line import Line
from .problem import Problem, Stage, merge_stages
from .search import Search
from .settings import Experiment


logger = logging.getLogger(__name__)

KL_FILE = "kl.safetensors"
KL_TENSORS = ("per_token", "per_sequence", "sequence_tokens")


class Comparison:
    """Walks the lines of an experiment over all its sizes and seeds, and keeps what the report needs.

    Attributes:
        candidates: rows of all candidates.
        kl, sections, notes, facts, questions: {method: `KLResult`}, what the problem says, and what models say, of the
            first size and seed.
    """

    def __init__(self, experiment: Experiment, output_dir: str | Path, *, progress: bool = True):
        self.experiment, self.folder, self.progress = experiment, Path(output_dir), progress
        self.candidates: list[dict] = []

    def run(self, models: Path, before: Callable[["Cell"], None] = lambda cell: None) -> list[dict]:
        """All rows of the table; `before` is called with the first cell before its lines run.

        The best model of each cell is left below `models`, at the place that it shall have below the output folder.
        """
        experiment = self.experiment
        places = list(itertools.product(experiment.kind.sizes(experiment), experiment.seeds))
        rows = []
        for size, seed in places:
            problem = experiment.kind(experiment, size, seed, self.progress)
            key, about, folder = problem.vocabulary.size_key, {}, self.folder
            if key is not None or len(places) > 1:
                about = ({} if key is None else {key: size}) | {"seed": seed}
                folder = self.folder / "cells" / "-".join(str(value) for value in about.values())
            cell = Cell(
                problem, experiment.lines, folder, experiment.arguments, seed, about=about, progress=self.progress
            )
            first = not rows
            if first:
                before(cell)
            found = cell.run()
            rows += found + problem.extra_rows(cell)
            self.candidates += cell.candidates
            if first:
                self.kl, self.notes, self.facts = cell.kl, problem.notes(), problem.facts()
                self.sections = problem.extra_sections(cell, found)
                self.questions = cell.questions(found)
            best = cell.best(found)
            place = (cell.folder / "model").relative_to(self.folder)
            on_main_process(lambda cell=cell, found=found, place=place: cell.save_best(found, models / place))
            best["saved_as"] = place.as_posix()
        return rows


class Cell:
    """Runs every line on one problem, writes what it finds as it finds it, and goes on after a kill.

    Args:
        folder: finished lines are kept in `lines/`; a run that was killed goes on after the last of them, and within a
            line after its last finished stage.
        arguments, seed: fields of `UnlearnConfig` for every line.
        about: what tells the rows of this cell from those of others.

    Raises:
        InputError: a search that does not fit the problem's stages.
    """

    def __init__(
        self,
        problem: Problem,
        lines: Sequence[Line],
        folder: str | Path,
        arguments: Mapping,
        seed: int = 0,
        *,
        about: Mapping | None = None,
        progress: bool = True,
    ):
        self.problem, self.lines, self.seed, self.arguments = problem, list(lines), seed, arguments
        self.folder, self.about, self.progress = Path(folder), dict(about or {}), progress
        for line in self.lines:
            line.check([stage.size for stage in self.stages(line)])
        self.candidates: list[dict] = []
        self.kl: dict[str, KLResult] = {}
        self.said: dict[str, dict] = {}

    def stages(self, line: Line) -> list[Stage]:
        """What a line unlearns, in order."""
        return merge_stages(self.problem.stages) if line.stages == "together" else self.problem.stages

    def run(self) -> list[dict]:
        """All rows of the table: the references, and the chosen candidate of every line."""
        transformers_logging.disable_progress_bar()
        self.identity = self._identity()
        # The original is changed in place while methods run, so what it says must be remembered.
        self.problem.prepare(self.folder, self.identity)
        rows, original = [], self.problem.vocabulary.references[0]
        for label, reference in self.problem.references().items():
            logger.info(f"evaluate the {label} model")
            metrics, kl = self.problem.evaluate(reference.model)
            self.said[label] = self.problem.answers(reference.model)
            if kl is not None and label != original:  # zeros
                self.kl[label] = kl
            rows.append(self.row(label, metrics | reference.more, seconds=reference.seconds))
        total = sum(map(self.problem.candidates, self.lines))
        with tqdm(total=total, desc="candidates", unit="model", disable=not self.progress) as self.bar:
            return rows + [self._line_row(line) for line in self.lines]

    def _identity(self) -> str:
        return sha256_json(
            {
                "code": code_sha256(),
                "weights": sha256_tensors(self.problem.original.state_dict()),
                "arguments": self.arguments,
                "seed": self.seed,
                "stages": [
                    [stage.name, fingerprint_rows(stage.forget), fingerprint_rows(stage.retain)]
                    for stage in self.problem.stages
                ],
                **self.problem.identity(),
            }
        )

    def row(
        self,
        label: str,
        metrics: Mapping,
        settings: dict | None = None,
        seconds: float | None = None,
        memory: float | None = None,
    ) -> dict:
        """One row of `results.json`."""
        known = {"method": label, **self.about, **metrics}
        return known | {"seconds": seconds, "peak_memory_mb": memory, "settings": settings or {}}

    # ---- one line --------------------------------------------------------------------------------------------------
    def line_folder(self, label: str) -> Path:
        return self.folder / "lines" / sha256_json(label)[:12]

    def update(self, label: str) -> UpdateDelta:
        """The update of the candidate that a line's row shows."""
        return UpdateDelta.from_pretrained(self.line_folder(label) / "delta")

    def updated(self, label: str):
        """Context of the original model with a line's update inside; its own weights afterwards."""
        return self.update(label).applied_to(self.problem.original)

    def _line_row(self, line: Line) -> dict:
        key = sha256_json({"run": self.identity, "line": dataclasses.asdict(line)})
        folder = self.line_folder(line.label)
        done = folder / "line.json"
        finished = FinishedStages(folder, key)
        PartialState().wait_for_everyone()
        if (saved := read_line(done)) is not None and saved["key"] == key:
            logger.info(f"{line.label}: finished before, read from {folder}")
            self.candidates += saved["candidates"]
            self.bar.update(len(saved["candidates"]))
            if saved["kl"] is not None:
                self.kl[line.label] = read_kl(folder, saved["kl"])
            on_main_process(finished.remove)
            return saved["row"]
        PartialState().wait_for_everyone()  # until all have read
        on_main_process(finished.clear)
        search = Search(self, line, folder, finished)
        chosen, update = search.run()
        on_main_process(lambda: update.save_pretrained(folder / "delta", dtype=torch.float32))
        with self.updated(line.label) as model:
            metrics, kl = self.problem.evaluate(model, folder)
        # What the candidate's row says beyond the table's numbers (what its method did) stays; numbers are those of
        # the table.
        row = chosen | self.row(line.label, metrics, chosen["settings"], chosen["seconds"], search.peak_memory)
        row |= {"reached": self.problem.vocabulary.reached(row), "candidates": len(search.rows)}
        self.candidates += search.rows
        if kl is not None:
            self.kl[line.label] = kl

        def write():
            saved_kl = None if kl is None else write_kl(folder, kl)
            told = {"key": key, "row": row, "candidates": search.rows, "kl": saved_kl}
            write_sealed(done, told | {"kl_sha256": None if kl is None else sha256_file(folder / KL_FILE)})
            finished.remove()

        on_main_process(write)
        return row

    # ---- the best model --------------------------------------------------------------------------------------------
    def best(self, rows: Sequence[dict]) -> dict:
        """The row of the line whose model is saved."""
        vocabulary = self.problem.vocabulary
        methods = vocabulary.methods(rows)
        return methods[vocabulary.choose(methods, rows[0])]  # the original's row is the first

    def questions(self, rows: Sequence[dict]) -> list[Question]:
        """The problem's questions, answered by the original, by the model that is saved and by the retrained one."""
        best = self.best(rows)["method"]
        with self.updated(best) as model:
            said = {best: self.problem.answers(model)}
        original, *others = self.said
        return compare_answers({original: self.said[original], **said, **{name: self.said[name] for name in others}})

    def save_best(self, rows: Sequence[dict], folder: Path):
        """Save the chosen model of the best line: weights, tokenizer, `delta/`, a card with the table's numbers."""
        problem, best = self.problem, self.best(rows)
        line = next(line for line in self.lines if line.label == best["method"])
        method = line.make(line.trainings(len(self.stages(line)))[0].stages[0])
        delta = self.update(best["method"])
        with staged_folder(folder, MODEL_FILES) as staged, self.updated(best["method"]) as model:
            save_alone(model, staged, problem.tokenizer, needs_merging(model, method.own_update))
            delta.save_pretrained(staged / "delta")
            forget = [row for stage in problem.stages for row in row_hashes(stage.forget)]
            context = update_context(
                model,
                method,
                delta,
                problem.tokenizer,
                forget_rows=len(forget),
                forget_sha256=hash_of_rows(forget),
            )
            context |= {
                "model_name": f"{problem.name} unlearned with {best['method']}",
                "settings": best["settings"],
                "seed": self.seed,
                "original": rows[0],
                "unlearned": best,
                "retrained": next((row for row in rows if row["method"] == problem.vocabulary.references[1]), {}),
            }
            write_card(staged, context | problem.card(rows, best))


def read_line(file: Path) -> dict | None:
    """What a finished line wrote; None when there is none, or it is no longer what was written."""
    if not file.exists():
        return None
    shape = {"key": str, "row": {}, "candidates": [{}], "kl": ({}, None), "kl_sha256": (str, None)}
    try:
        saved = read_sealed(file, shape)
        if saved["kl"] is not None and sha256_file(file.with_name(KL_FILE)) != saved["kl_sha256"]:
            raise InputError(f"{file.with_name(KL_FILE)} is not what was written")
        return saved
    except (InputError, OSError) as error:
        logger.warning(f"a finished line cannot be used, and is run again: {error}")
        return None


def write_kl(folder: Path, kl: KLResult) -> dict:
    """Write the tensors of a result into a folder; returns its other fields, JSON-able."""
    fields = dataclasses.asdict(kl)
    write_safetensors(folder / KL_FILE, {name: fields.pop(name) for name in KL_TENSORS})
    return fields


def read_kl(folder: Path, fields: Mapping) -> KLResult:
    """The result that `write_kl` wrote."""
    parts = read_tensors(folder / KL_FILE, KL_TENSORS)
    approximation = fields["approximation"] and Approximation(**fields["approximation"])
    return KLResult(**{**fields, "interval": tuple(fields["interval"]), "approximation": approximation}, **parts)

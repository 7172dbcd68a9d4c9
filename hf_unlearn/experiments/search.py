# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Search of a line: trainings one after another, and the candidates that are evaluated while they run."""

import gc
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback

from ..deltas import UpdateDelta, delta_config
from ..errors import InputError, LimitError, NumericalError
from ..runtime.checkpoints import base_tensors, tied_names
from ..runtime.cost import peak_memory_mb, reset_peak_memory
from ..runtime.processes import on_main_process
from ..trainer.config import UnlearnConfig
from ..trainer.trainer import UnlearnTrainer
from .finished_stages import SHARED, FinishedStages
from .line import Line, Values
from .problem import Stage


logger = logging.getLogger(__name__)

# A search keeps no checkpoints: a training of minutes starts again, and finished lines are on disk.
QUIET = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "log_level": "error", "kl_rows": 0}


class Search:
    """The candidates of one line of a `Cell`."""

    def __init__(self, cell, line: Line, folder: Path, finished: FinishedStages):
        self.cell, self.line, self.folder, self.finished = cell, line, folder, finished
        self.problem, self.vocabulary = cell.problem, cell.problem.vocabulary
        self.stages = cell.stages(line)
        self.model = self.problem.original
        self.base = copy_weights(self.model)
        self.rows: list[dict] = list(finished.rows)
        self.best: tuple[int, UpdateDelta] | None = finished.best
        self.peak_memory = finished.peak_memory

    def run(self) -> tuple[dict, UpdateDelta]:
        """The row and the update of the best candidate.

        Raises:
            NumericalError: every candidate diverged.
        """
        trainings = self.line.trainings(len(self.stages))
        first = self.line.make(trainings[0].stages[0])
        # With stages each training starts from other weights, so no two share their work.
        swept = len(self.stages) == 1 and len(trainings) > 1 and first.sweeps(self.line.search)
        trainings = trainings[:1] if swept else trainings
        if self.finished.begun:
            logger.info(
                f"{self.line.label}: {self.finished.trainings} of {len(trainings)} trainings, and "
                f"{self.finished.stages} of {len(self.stages)} stages of the next, finished before"
            )
            self.cell.bar.update(len(self.rows))
        for values in trainings[self.finished.trainings :]:
            self._train(values, swept)
        if self.best is None:
            why = self.rows[-1]["note"]
            raise NumericalError(f"every candidate of {self.line.label} diverged ({why}): search lower values")
        index, update = self.best
        return self.rows[index], update

    def _train(self, values: Values, swept: bool):
        """All stages one after another, each by a trainer of its own; the model's weights are restored at the end."""
        self.values = values
        # The update of the stages that are done, in fp32 as it was made.
        self.done: dict[str, torch.Tensor] = {}
        self.path = list(self.finished.path)
        self.evaluation_seconds = 0.0
        self.started = time.perf_counter() - self.finished.seconds
        before = self.finished.stages
        try:
            if before:
                weights, self.done = self.finished.tensors()
                restore_weights(self.model, self.base | weights)
            for number, (stage, tried) in enumerate(zip(self.stages, values.stages, strict=True)):
                if number < before:
                    continue
                last = number == len(self.stages) - 1
                trainer = self._trainer(stage, tried, number, evaluated=last and not swept)
                reset_peak_memory()
                try:
                    if swept:
                        score = lambda model, about, trainer=trainer: self._score(trainer, about)
                        trainer.method.sweep_search(trainer, self.line.search, score, self.vocabulary.choose)
                    else:
                        trainer.train()
                    if last and not self.problem.every_evaluation and not swept:
                        self._score(trainer)
                    if not last and self.problem.every_stage:
                        self._look(number + 1)
                except (NumericalError, LimitError) as error:
                    # What was evaluated before stays a candidate; other values may do better.
                    self._failed(trainer, f"{stage.name}: {error}")
                    break
                if not last:
                    if trainer.method.own_update:
                        self.done = sum_updates(self.done, trainer.update_delta().tensors)
                    self._write_down(stages=number + 1)
        finally:
            restore_weights(self.model, self.base)
        self._write_down(stages=0)
        gc.collect()

    def _look(self, stages: int):
        """Add the numbers after so many stages to the path of the training."""
        now = time.perf_counter()
        seconds = now - self.started - self.evaluation_seconds
        self.path.append(self.problem.score_stage(self.model, stages) | {"seconds": seconds})
        self.evaluation_seconds += time.perf_counter() - now

    def _write_down(self, stages: int):
        """Keep what the training has come to after so many stages; after 0 of the next one, when it is done."""
        now = time.perf_counter()
        finished = self.finished
        finished.trainings, finished.stages = finished.trainings + (stages == 0), stages
        finished.seconds = now - self.started - self.evaluation_seconds if stages else 0.0
        finished.peak_memory = max(self.peak_memory, peak_memory_mb())
        if not stages:
            finished.rows, finished.best, self.path = list(self.rows), self.best, []
        finished.path = list(self.path)
        changed = {}
        if stages and PartialState().is_main_process:
            changed = {name: tensor.cpu().clone() for name, tensor in self._changed().items()}
        on_main_process(lambda: finished.save(changed, self.done))
        self.evaluation_seconds += time.perf_counter() - now

    def _changed(self) -> dict[str, torch.Tensor]:
        """Tensors of the model that are not what they were before the search."""
        state = self.model.state_dict()
        return {name: tensor for name, tensor in state.items() if not tensor.cpu().equal(self.base[name])}

    def _trainer(self, stage: Stage, tried: Mapping, number: int, evaluated: bool) -> UnlearnTrainer:
        cell, line, problem = self.cell, self.line, self.problem
        method = line.make(tried).sharing(self.folder / SHARED)
        arguments = {**QUIET, **cell.arguments, **line.arguments_of(tried, method)}
        if not evaluated:
            arguments["eval_strategy"] = "no"
        folder = str(self.folder / "run" / str(number))
        try:
            args = UnlearnConfig(output_dir=folder, seed=cell.seed, max_length=problem.max_length, **arguments)
            forget = stage.forget
            if method.alternatives and stage.questions is not None:
                # As text, so that other answers can be put to the questions.
                forget, args.template = stage.questions, stage.template
        except (TypeError, ValueError) as error:
            reason = str(error).split("__init__() ")[-1].splitlines()[0]
            raise InputError(f"{line.label}: arguments: {reason}; see UnlearnConfig") from error
        on_main_process(lambda: shutil.rmtree(args.output_dir, ignore_errors=True))
        watch = lambda model: {"stop": float(problem.should_stop(model))}
        trainer = UnlearnTrainer(
            self.model,
            method,
            args,
            forget,
            stage.retain if method.needs_retain else None,
            eval_dataset={} if args.eval_strategy != "no" else None,
            processing_class=problem.tokenizer,
            data_collator=problem.collator,
            evaluator=(lambda model: self._score(trainer)) if problem.every_evaluation else watch,
            callbacks=None if problem.every_evaluation else [StopEarly()],
        )
        # The bar over all candidates is what a person watches; a line per step would drown it.
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _score(self, trainer: UnlearnTrainer, about: Mapping | None = None) -> dict:
        """Evaluate the model as it stands, and keep its update if it is the best so far.

        `about` is what a sweep varies: its candidates are no steps of the trainer.
        """
        now = time.perf_counter()
        self.peak_memory = max(self.peak_memory, peak_memory_mb())
        seconds = now - self.started - self.evaluation_seconds
        settings = self._settings(trainer) | dict(about or {})
        try:
            metrics = dict.fromkeys(self.vocabulary.metrics) | self.problem.score_candidate(self.model)
        except NumericalError as error:
            metrics = dict.fromkeys(self.vocabulary.metrics)
            self._failed(trainer, str(error), settings, seconds)
        else:
            if self.problem.every_stage:
                last = self.problem.score_stage(self.model, len(self.problem.stages)) | {"seconds": seconds}
                metrics |= {"path": [*self.path, last]}
            self._add(self.cell.row(self.line.label, metrics, settings, seconds) | trainer.method.account())
            if self.vocabulary.choose(self.rows) == len(self.rows) - 1:
                self.best = len(self.rows) - 1, self._update(trainer, settings, swept=about is not None)
        reset_peak_memory()
        self.evaluation_seconds += time.perf_counter() - now
        return metrics

    def _add(self, row: dict):
        self.rows.append(row)
        self.cell.bar.set_postfix_str(self.line.label)
        self.cell.bar.update()

    def _failed(self, trainer: UnlearnTrainer, why: str, settings: dict | None = None, seconds: float | None = None):
        # A candidate that diverged is a result: it stands in the list, and can never be chosen.
        settings = settings or self._settings(trainer)
        metrics = dict.fromkeys(self.vocabulary.metrics)
        self._add(self.cell.row(self.line.label, metrics, settings, seconds) | {"note": why})

    def _update(self, trainer: UnlearnTrainer, settings: dict, swept: bool) -> UpdateDelta:
        about = {"base_model": trainer.model_id, "method": trainer.method.label, "settings": settings}
        about |= {"base_revision": trainer.base_revision, "seed": trainer.args.seed, "tied": tied_names(self.model)}
        if trainer.method.own_update and not swept:
            # What the weights' own precision rounded away is part of the update.
            tensors = sum_updates(self.done, trainer.update_delta().tensors)
            base = {name.removeprefix("base_model.model."): tensor for name, tensor in self.base.items()}
            base |= base_tensors(self.base)
            return UpdateDelta(tensors, delta_config({name: base[name] for name in tensors}, **about))
        changed = self._changed()
        return UpdateDelta.between({name: self.base[name] for name in changed}, changed, **about)

    def _settings(self, trainer: UnlearnTrainer) -> dict:
        settings = {key: value for key, value in trainer.method.settings().items() if value is not None}
        if len(self.problem.stages) > 1:
            settings |= {"stages": self.line.stages}
        return settings | self.values.shown | trainer.method.reached(trainer.state)


class StopEarly(TrainerCallback):
    """Ends a training when the evaluator says that it has done what it is for (`Problem.should_stop`)."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if (metrics or {}).get("eval_stop"):
            control.should_training_stop = True


def copy_weights(model) -> dict[str, torch.Tensor]:
    """All tensors of a model, copied to the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def restore_weights(model, weights: Mapping[str, torch.Tensor]):
    """Undo every change since `copy_weights`."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def sum_updates(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sum of two updates in new tensors; one that an update lacks did not change there."""
    total = {name: tensor.clone() for name, tensor in first.items()}
    for name, tensor in second.items():
        # Always a copy: the optimiser goes on adding to the tensors of its update.
        total[name] = total[name].add_(tensor) if name in total else tensor.clone()
    return total

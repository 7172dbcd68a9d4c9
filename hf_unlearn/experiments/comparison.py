# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One unlearning problem, several methods with equal search budgets, one table: what recipes and `hf-unlearn demo` run."""

import dataclasses
import gc
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from ..data.packing import check_enough
from ..data.rows import fingerprint_rows
from ..deltas import UpdateDelta, delta_config
from ..errors import InputError, NumericalError
from ..evaluation.specificity import Approximation, KLResult
from ..methods.base import Method
from ..methods.first_order import FirstOrder
from ..methods.kfade import KFade
from ..runtime.cost import peak_memory_mb, reset_peak_memory
from ..runtime.files import open_safetensors, sha256_json, sha256_tensors, write_json, write_safetensors
from ..runtime.processes import on_main_process
from ..trainer.config import UnlearnConfig
from ..trainer.trainer import UnlearnTrainer
from .finished_stages import FinishedStages
from .problem import Problem, Stage, StageSize, together


logger = logging.getLogger(__name__)

METHODS = {"kfade": KFade, "first_order": FirstOrder}
KL_TENSORS = ("per_token", "per_sequence", "sequence_tokens")


@dataclasses.dataclass
class Entry:
    """One line of the table: a method and the settings to search.

    Args:
        label: the line's name.
        method: "kfade" or "first_order".
        settings: fields of the method. K-FADE with `steps` above 1 is evaluated after every step, or `eval_steps`.
        search: values to try, one run each: `step_norm` (K-FADE) or `learning_rate` (first order); a list has one value
            for each stage of the problem.
        epochs: first order: epochs of each run, evaluated after each of them.
        arguments: other fields of `UnlearnConfig`.
        stages: "each": the problem's stages one after another, candidates are looked at during the last of them;
            "together": the rows of all stages as one.
    """

    label: str
    method: str
    settings: dict = dataclasses.field(default_factory=dict)
    search: list[float | list[float]] = dataclasses.field(default_factory=list)
    epochs: int = 1
    arguments: dict = dataclasses.field(default_factory=dict)
    stages: str = "each"

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"{self.label}: unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        if not isinstance(self.search, list) or not self.search:
            raise InputError(f"{self.label}: give search, the list of step norms or learning rates to try")
        if self.stages not in ("each", "together"):
            raise InputError(f"{self.label}: stages must be 'each' or 'together', not {self.stages!r}")

    def make(self, value: float) -> Method:
        """The method with its settings; `value` is the step norm to try, where the method has one.

        Raises:
            InputError: settings that the method does not have, or values out of range.
        """
        method = METHODS[self.method]
        known = {field.name for field in dataclasses.fields(method)}
        if unknown := set(self.settings) - known:
            raise InputError(
                f"{self.label}: settings: {', '.join(sorted(unknown))} is no setting of {self.method}; there are "
                f"{', '.join(sorted(known))}"
            )
        return method(**self.settings | ({"step_norm": value} if self.method == "kfade" else {}))

    def values(self, trial: float | list[float], stages: int) -> list[float]:
        """The value of each stage in one run.

        Raises:
            InputError: a list of another length than there are stages.
        """
        values = trial if isinstance(trial, list) else [trial] * stages
        if len(values) != stages:
            raise InputError(f"{self.label}: {len(values)} values in {trial} of its search, for {stages} stages")
        return values

    @property
    def candidates(self) -> int:
        """How many models this line may look at."""
        every = self.arguments.get("eval_steps", 1)
        if self.method == "kfade":
            return len(self.search) * (self.settings.get("steps", 1) // every)
        if "max_steps" in self.arguments:
            return len(self.search) * (self.arguments["max_steps"] // every)
        return len(self.search) * self.epochs


def check_entry(entry: Entry, stages: Sequence[StageSize]):
    """Refuse a line that could only fail once it runs.

    Raises:
        InputError: settings that the method does not have, a search that does not fit the stages, or fewer forget
            rows than the steps need, for the paper draws them without replacement.
    """
    for trial in entry.search:
        for stage, value in zip(stages, entry.values(trial, len(stages)), strict=True):
            method = entry.make(value)
            if isinstance(method, KFade) and method.forget_batch_size is not None:
                what = f"{entry.label}: the forget set of stage {stage.name}"
                check_enough(range(stage.forget_rows), method.steps, method.forget_batch_size, what)


class Comparison:
    """Runs every entry on one problem, writes what it finds as it finds it, and goes on after a kill.

    Args:
        problem: rows, models and what is measured.
        entries: the methods.
        output_dir: finished entries are kept in `entries/`; a run that was killed goes on after the last of them, and
            within an entry after its last finished stage.
        arguments: fields of `UnlearnConfig` for every entry.
        seed: of data order, sampled labels and choices of rows.

    Raises:
        InputError: two entries with one label, or a search that does not fit the problem's stages.
    """

    def __init__(
        self,
        problem: Problem,
        entries: list[Entry],
        output_dir: str | Path,
        arguments: dict,
        seed: int = 0,
        progress: bool = True,
    ):
        labels = [entry.label for entry in entries]
        if repeated := {label for label in labels if labels.count(label) > 1}:
            raise InputError(f"entries share a label: {', '.join(sorted(repeated))}; give every line its own")
        self.problem, self.entries, self.seed = problem, entries, seed
        self.folder = Path(output_dir)
        self.arguments = arguments
        for entry in entries:
            check_entry(entry, [stage.size for stage in self.stages(entry)])
        self.candidates: list[dict] = []
        self.progress = progress
        self.kl: dict[str, KLResult] = {}

    def stages(self, entry: Entry) -> list[Stage]:
        """What an entry unlearns, in order."""
        return together(self.problem.stages) if entry.stages == "together" else self.problem.stages

    def run(self) -> list[dict]:
        """All rows of the table: the references, and the chosen candidate of every entry."""
        transformers_logging.disable_progress_bar()
        self.identity = self._identity()
        # The original is changed in place while methods run, so what it says must be remembered.
        self.problem.prepare(self.folder, self.identity)
        rows = []
        for label, model in self.problem.references().items():
            logger.info(f"evaluate the {label} model")
            metrics, self.kl[label] = self.problem.measure(model)
            rows.append(table_row(label, metrics))
        del self.kl["original"]  # zeros
        total = sum(entry.candidates for entry in self.entries)
        with tqdm(total=total, desc="candidates", unit="model", disable=not self.progress) as self.bar:
            return rows + [self._entry_row(entry) for entry in self.entries]

    def _identity(self) -> str:
        return sha256_json(
            {
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

    # ---- one entry --------------------------------------------------------------------------------------------------
    def entry_folder(self, label: str) -> Path:
        return self.folder / "entries" / sha256_json(label)[:12]

    def update(self, label: str) -> UpdateDelta:
        """The update of the candidate that an entry's row shows."""
        return UpdateDelta.from_pretrained(self.entry_folder(label) / "delta")

    def updated(self, label: str):
        """Context of the original model with an entry's update inside; put back afterwards."""
        return self.update(label).applied_to(self.problem.original)

    def _entry_row(self, entry: Entry) -> dict:
        key = sha256_json({"run": self.identity, "entry": dataclasses.asdict(entry)})
        folder = self.entry_folder(entry.label)
        done = folder / "entry.json"
        finished = FinishedStages(folder, key)
        PartialState().wait_for_everyone()
        if done.is_file() and (saved := json.loads(done.read_text()))["key"] == key:
            logger.info(f"{entry.label}: finished before, read from {folder}")
            self.candidates += saved["candidates"]
            self.bar.update(len(saved["candidates"]))
            self.kl[entry.label] = read_kl(folder, saved["kl"])
            on_main_process(finished.remove)
            return saved["row"]
        PartialState().wait_for_everyone()  # until all have read
        on_main_process(finished.clear)
        search = _Search(self, entry, folder, finished)
        chosen, update = search.run()
        on_main_process(lambda: update.save_pretrained(folder / "delta", dtype=torch.float32))
        with self.updated(entry.label) as model:
            metrics, kl = self.problem.measure(model, folder)
        row = table_row(entry.label, metrics, chosen["settings"], chosen["seconds"], search.peak_memory)
        row |= {"reached": self.problem.results.reached(row), "candidates": len(search.rows)}
        self.candidates += search.rows
        self.kl[entry.label] = kl
        on_main_process(
            lambda: write_json(done, {"key": key, "row": row, "candidates": search.rows, "kl": write_kl(folder, kl)})
        )
        on_main_process(finished.remove)
        return row


def write_kl(folder: Path, kl: KLResult) -> dict:
    """Write the tensors of a result into a folder; returns its other fields, JSON-able."""
    write_safetensors(folder / "kl.safetensors", {name: getattr(kl, name) for name in KL_TENSORS})
    fields = (field.name for field in dataclasses.fields(kl) if field.name not in KL_TENSORS)
    approximation = kl.approximation and dataclasses.asdict(kl.approximation)
    return {name: getattr(kl, name) for name in fields} | {"approximation": approximation}


def read_kl(folder: Path, fields: Mapping) -> KLResult:
    """The result that `write_kl` wrote."""
    with open_safetensors(folder / "kl.safetensors") as tensors:
        parts = {name: tensors.get_tensor(name) for name in KL_TENSORS}
    approximation = fields["approximation"] and Approximation(**fields["approximation"])
    return KLResult(**{**fields, "interval": tuple(fields["interval"]), "approximation": approximation}, **parts)


def copy_weights(model) -> dict[str, torch.Tensor]:
    """All tensors of a model, copied to the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def restore_weights(model, weights: Mapping[str, torch.Tensor]):
    """Undo every change since `copy_weights`."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def table_row(
    label: str,
    metrics: Mapping,
    settings: dict | None = None,
    seconds: float | None = None,
    memory: float | None = None,
) -> dict:
    """One row of `results.json`."""
    return {
        "method": label,
        **metrics,
        "seconds": seconds,
        "peak_memory_mb": memory,
        "settings": settings or {},
    }


class _Search:
    """The candidates of one entry: runs of the trainer, looked at while they run."""

    def __init__(self, comparison: Comparison, entry: Entry, folder: Path, finished: FinishedStages):
        self.comparison, self.entry, self.folder, self.finished = comparison, entry, folder, finished
        self.results = comparison.problem.results
        self.stages = comparison.stages(entry)
        self.model = comparison.problem.original
        self.base = copy_weights(self.model)
        self.rows: list[dict] = list(finished.rows)
        self.best: tuple[int, UpdateDelta] | None = finished.best
        self.peak_memory = finished.peak_memory

    def run(self) -> tuple[dict, UpdateDelta]:
        entry = self.entry
        one_step = entry.method == "kfade" and entry.settings.get("steps", 1) == 1
        # Candidates of one step share its fit and its gradient; with stages, each run starts from other weights.
        runs = [entry.search[:1]] if one_step and len(self.stages) == 1 else [[trial] for trial in entry.search]
        if self.finished.begun:
            logger.info(
                f"{entry.label}: {self.finished.trials} of {len(runs)} runs, and {self.finished.stages} of "
                f"{len(self.stages)} stages of the next, finished before"
            )
            self.comparison.bar.update(len(self.rows))
        for (trial,) in runs[self.finished.trials :]:
            self._run_stages(trial, sweep=entry.search if len(runs) < len(entry.search) else None)
        if self.best is None:
            why = self.rows[-1]["note"]
            raise NumericalError(f"every candidate of {entry.label} diverged ({why}): lower the values of its search")
        index, update = self.best
        return self.rows[index], update

    def _run_stages(self, trial: float | list[float], sweep: list[float] | None = None):
        """All stages one after another, each by a trainer of its own; the model is put back at the end."""
        self.trial = self.entry.values(trial, len(self.stages))
        # The update of the stages that are done, in fp32 as it was made.
        self.done: dict[str, torch.Tensor] = {}
        self.looking = 0.0
        self.started = time.perf_counter() - self.finished.seconds
        before = self.finished.stages
        try:
            if before:
                weights, self.done = self.finished.tensors()
                restore_weights(self.model, self.base | weights)
            for number, (stage, value) in enumerate(zip(self.stages, self.trial, strict=True)):
                if number < before:
                    continue
                last = number == len(self.stages) - 1
                trainer = self._trainer(stage, value, number, looked_at=last and not sweep)
                reset_peak_memory()
                try:
                    if sweep:
                        look = lambda model, about, trainer=trainer: self._look(trainer, about)
                        trainer.method.sweep(trainer, sweep, evaluate=look, best=self.results.choose)
                    else:
                        trainer.train()
                except NumericalError as error:
                    # What was looked at before stays a candidate; other values may do better.
                    self._failed(trainer, f"{stage.name}: {error}")
                    break
                if not last:
                    if trainer.method.natural_gradient:
                        self.done = added(self.done, trainer.update_delta().tensors)
                    self._keep(stages=number + 1)
        finally:
            restore_weights(self.model, self.base)
        self._keep(stages=0)
        gc.collect()

    def _keep(self, stages: int):
        """Write down what the run has come to after so many stages; after 0 of the next one, when it is done."""
        now = time.perf_counter()
        finished = self.finished
        finished.trials, finished.stages = finished.trials + (stages == 0), stages
        finished.seconds = now - self.started - self.looking if stages else 0.0
        finished.peak_memory = max(self.peak_memory, peak_memory_mb())
        if not stages:
            finished.rows, finished.best = list(self.rows), self.best
        changed = {}
        if stages and PartialState().is_main_process:
            state = self.model.state_dict()
            changed = {name: tensor.cpu() for name, tensor in state.items()}
            changed = {name: tensor.clone() for name, tensor in changed.items() if not tensor.equal(self.base[name])}
        on_main_process(lambda: finished.save(changed, self.done))
        self.looking += time.perf_counter() - now

    def _trainer(self, stage: Stage, value: float, number: int, looked_at: bool) -> UnlearnTrainer:
        comparison, entry = self.comparison, self.entry
        method = entry.make(value)
        if entry.method == "kfade":
            arguments = {"eval_strategy": "steps", "eval_steps": 1}
        else:
            arguments = {"learning_rate": value, "num_train_epochs": entry.epochs, "eval_strategy": "epoch"}
        # A search keeps no checkpoints: a run of minutes starts again, and finished entries are on disk.
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "log_level": "error", "kl_rows": 0}
        arguments = {**quiet, **comparison.arguments, **arguments, **entry.arguments}
        if not looked_at:
            arguments["eval_strategy"] = "no"
        try:
            args = UnlearnConfig(
                output_dir=str(self.folder / "run" / str(number)),
                seed=comparison.seed,
                max_length=comparison.problem.max_length,
                **arguments,
            )
        except (TypeError, ValueError) as error:
            reason = str(error).split("__init__() ")[-1].splitlines()[0]
            raise InputError(f"{entry.label}: arguments: {reason}; see UnlearnConfig") from error
        on_main_process(lambda: shutil.rmtree(args.output_dir, ignore_errors=True))
        trainer = UnlearnTrainer(
            self.model,
            method,
            args,
            stage.forget,
            stage.retain if method.needs_retain else None,
            eval_dataset={} if args.eval_strategy != "no" else None,
            processing_class=comparison.problem.tokenizer,
            evaluator=lambda model: self._look(trainer),
        )
        # The bar over all candidates is what a person watches; a line per step would drown it.
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _look(self, trainer: UnlearnTrainer, about: Mapping = {}) -> dict:
        """Measure the model as it stands, and keep its update if it is the best so far.

        `about` is what a sweep varies: its candidates are no steps of the trainer.
        """
        now = time.perf_counter()
        self.peak_memory = max(self.peak_memory, peak_memory_mb())
        seconds = now - self.started - self.looking
        settings = self._settings(trainer) | about
        try:
            metrics = self.comparison.problem.look(self.model)
        except NumericalError as error:
            row = self._failed(trainer, str(error), settings, seconds)
        else:
            row = table_row(self.entry.label, metrics, settings, seconds)
            self._add(row)
            if self.results.choose(self.rows) == len(self.rows) - 1:
                self.best = (len(self.rows) - 1, self._update(trainer, settings, swept=bool(about)))
        reset_peak_memory()
        self.looking += time.perf_counter() - now
        return {key: row[key] for key in self.results.metrics}

    def _add(self, row: dict):
        self.rows.append(row)
        self.comparison.bar.set_postfix_str(self.entry.label)
        self.comparison.bar.update()

    def _failed(self, trainer: UnlearnTrainer, why: str, settings: dict | None = None, seconds: float | None = None):
        # A candidate that diverged is a result: it stands in the list, and can never be chosen.
        row = {
            "method": self.entry.label,
            "settings": settings or self._settings(trainer),
            "seconds": seconds,
            "note": why,
        }
        row |= dict.fromkeys(self.results.metrics)
        self._add(row)
        return row

    def _update(self, trainer: UnlearnTrainer, settings: dict, swept: bool) -> UpdateDelta:
        about = {"base_model": trainer.model_id, "method": trainer.method.label, "settings": settings}
        about |= {"base_revision": trainer.base_revision, "seed": trainer.args.seed}
        if trainer.method.natural_gradient and not swept:
            # What the weights' own precision rounded away is part of the update.
            tensors = added(self.done, trainer.update_delta().tensors)
            return UpdateDelta(tensors, delta_config({name: self.base[name] for name in tensors}, **about))
        return UpdateDelta.between(self.base, self.model, **about)

    def _settings(self, trainer: UnlearnTrainer) -> dict:
        settings = {key: value for key, value in trainer.method.settings().items() if value is not None}
        tried = self.trial[0] if len(self.stages) == 1 else self.trial
        if len(self.comparison.problem.stages) > 1:
            settings |= {"stages": self.entry.stages}
        if self.entry.method == "kfade":
            return settings | {"step_norm": tried, "steps": max(trainer.state.global_step, 1)}
        return settings | {"learning_rate": tried, "epochs": round(trainer.state.epoch or 0, 2)}


def added(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sum of two updates in new tensors; one that an update lacks did not change there."""
    total = {name: tensor.clone() for name, tensor in first.items()}
    for name, tensor in second.items():
        # Always a copy: the optimiser goes on adding to the tensors of its update.
        total[name] = total[name].add_(tensor) if name in total else tensor.clone()
    return total

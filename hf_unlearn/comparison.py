# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One unlearning problem, several methods with equal search budgets, one table: what recipes and `hf-unlearn demo` run."""

import contextlib
import dataclasses
import gc
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PrinterCallback
from transformers.utils import logging as transformers_logging

from .config import UnlearnConfig
from .cost import peak_memory_mb, reset_peak_memory
from .data.collators import CausalCollator
from .data.tofu import QATemplate, TofuSplits, tokenize_qa
from .deltas import UpdateDelta
from .errors import InputError, NumericalError
from .evaluation import tofu
from .evaluation.specificity import TokenKL
from .files import sha256_json, sha256_tensors, write_json
from .methods.base import Method
from .methods.first_order import FirstOrder
from .methods.kfade import KFade
from .trainer import UnlearnTrainer


logger = logging.getLogger(__name__)

METHODS = {"kfade": KFade, "first_order": FirstOrder}
SEARCH_METRICS = ("forget_truth_ratio", "forget_Q_A_Prob", "retain_Q_A_Prob")
REMEMBERED = 2**34  # bytes for the original model's log-probabilities
# What the table shows, without the membership scores that take one backward pass per row.
TABLE_METRICS = (
    *("forget_quality", "model_utility", "forget_Q_A_Prob", "forget_Q_A_ROUGE"),
    *("exact_memorization", "extraction_strength"),
)
FORGOTTEN = 0.05  # TOFU's line: a p-value above it cannot tell the model from the retrained one.


@dataclasses.dataclass
class Entry:
    """One line of the table: a method and the settings to search.

    Args:
        label: the line's name.
        method: "kfade" or "first_order".
        settings: fields of the method. K-FADE with `steps` above 1 is evaluated after every step, or `eval_steps`.
        search: values to try, one run each: `step_norm` (K-FADE) or `learning_rate` (first order).
        epochs: first order: epochs of each run, evaluated after each of them.
        arguments: other fields of `UnlearnConfig`.
    """

    label: str
    method: str
    settings: dict = dataclasses.field(default_factory=dict)
    search: list[float] = dataclasses.field(default_factory=list)
    epochs: int = 1
    arguments: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"{self.label}: unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        if not self.search:
            raise InputError(f"{self.label}: give search, the list of step norms or learning rates to try")

    def make(self, value: float) -> Method:
        """The method with its settings; `value` is the step norm to try, where the method has one."""
        searched = {"step_norm": value} if self.method == "kfade" else {}
        return METHODS[self.method](**{**self.settings, **searched})

    @property
    def candidates(self) -> int:
        """How many models this line may look at."""
        if self.method == "kfade":
            return len(self.search) * (self.settings.get("steps", 1) // self.arguments.get("eval_steps", 1))
        return len(self.search) * self.epochs


@dataclasses.dataclass
class Problem:
    """What is to be unlearnt, and what success is measured against.

    Args:
        original: the model that knows too much; changed while methods run, and left as it was.
        retrained: the model that never saw the forget rows, or None with `retain_log`, the log of such a model.
        sweep_rows: retain rows on which every candidate's KL and retained probability are measured.
    """

    splits: TofuSplits
    tokenizer: object
    original: torch.nn.Module
    retrained: torch.nn.Module | None
    retain_log: Mapping | None = None
    template: QATemplate = dataclasses.field(default_factory=QATemplate)
    max_length: int = 512
    max_new_tokens: int = 200
    batch_size: int = 32
    sweep_rows: int = 200

    def rows(self, split) -> object:
        return tokenize_qa(split, self.tokenizer, self.template, self.max_length)

    def evaluate(self, model, retain_log, metrics=None) -> dict:
        if metrics is None:
            metrics = TABLE_METRICS if self.splits.holdout is None else (*TABLE_METRICS, "privleak")
        log = tofu.evaluate(
            model,
            self.tokenizer,
            self.splits.evaluation(),
            template=self.template,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
            metrics=metrics,
            progress=False,
        )
        return tofu.summarize(log, retain_log) | {"log": log}


class Comparison:
    """Runs every entry on one problem, writes what it finds as it finds it, and goes on after a kill.

    Args:
        problem: models, rows and templates.
        entries: the methods.
        output_dir: finished entries are kept in `entries/`; a run that was killed goes on after the last of them.
        arguments: fields of `UnlearnConfig` for every entry.
        seed: of data order, sampled labels and choices of rows.

    Raises:
        InputError: two entries with one label.
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
        self.forget, self.retain = problem.rows(problem.splits.forget), problem.rows(problem.splits.retain)
        self.candidates: list[dict] = []
        total = sum(entry.candidates for entry in entries)
        self.bar = tqdm(total=total, desc="candidates", unit="model", disable=not progress)
        self.kl_samples: dict[str, torch.Tensor] = {}

    def run(self) -> list[dict]:
        """All rows of the table: original, retrained, and the chosen candidate of every entry."""
        problem = self.problem
        transformers_logging.disable_progress_bar()
        self.identity = self._identity()
        collator = CausalCollator(problem.tokenizer.pad_token_id)
        kl_rows = problem.rows(problem.splits.retain_eval).select(
            range(min(problem.sweep_rows, len(problem.splits.retain_eval)))
        )
        loader = DataLoader(kl_rows, batch_size=problem.batch_size, collate_fn=collator)
        # The original is changed in place while methods run, so what it says must be remembered.
        self.kl = TokenKL(problem.original, loader, cache_bytes=REMEMBERED)
        if not self.kl.cached:
            raise InputError(
                f"evaluation.sweep_rows={problem.sweep_rows} is too many to remember the original's answers: lower it"
            )

        rows = [*self._reference_rows(), *[self._entry_row(entry) for entry in self.entries]]
        self.bar.close()
        return rows

    def _identity(self) -> str:
        return sha256_json(
            {
                "weights": sha256_tensors(self.problem.original.state_dict()),
                "data": self.problem.splits.name,
                "arguments": self.arguments,
                "seed": self.seed,
                "template": self.problem.template.fingerprint(self.problem.tokenizer),
                "sweep_rows": self.problem.sweep_rows,
                "max_new_tokens": self.problem.max_new_tokens,
            }
        )

    # ---- original and retrained -------------------------------------------------------------------------------------
    def _reference_rows(self) -> list[dict]:
        problem = self.problem
        rows = []
        if problem.retrained is not None:
            logger.info("evaluate the retrained model")
            result = problem.evaluate(problem.retrained, None)
            problem.retain_log = result["log"]
            result = tofu.summarize(problem.retain_log, problem.retain_log)
            kl = self.kl(problem.retrained)
            self.kl_samples["retrained"] = kl.per_token
            rows.append(table_row("retrained", result, kl))
        logger.info("evaluate the original model")
        original = problem.evaluate(problem.original, problem.retain_log)
        return [table_row("original", original, self.kl(problem.original)), *rows]

    # ---- one entry --------------------------------------------------------------------------------------------------
    def entry_folder(self, label: str) -> Path:
        return self.folder / "entries" / sha256_json(label)[:12]

    def update(self, label: str) -> UpdateDelta:
        """The update of the candidate that an entry's row shows."""
        return UpdateDelta.from_pretrained(self.entry_folder(label) / "delta")

    @contextlib.contextmanager
    def updated(self, label: str):
        """The original model with an entry's update, put back afterwards."""
        model = self.problem.original
        base = copy_of_weights(model)
        try:
            yield self.update(label).apply_to(model)
        finally:
            put_back(model, base)

    def _entry_row(self, entry: Entry) -> dict:
        key = sha256_json({"run": self.identity, "entry": dataclasses.asdict(entry)})
        folder = self.entry_folder(entry.label)
        done = folder / "entry.json"
        PartialState().wait_for_everyone()
        if done.is_file() and (saved := json.loads(done.read_text()))["key"] == key:
            logger.info(f"{entry.label}: finished before, read from {folder}")
            self.candidates += saved["candidates"]
            self.bar.update(len(saved["candidates"]))
            self.kl_samples[entry.label] = torch.tensor(saved["kl"])
            return saved["row"]
        on_main_process(lambda: shutil.rmtree(folder, ignore_errors=True))
        search = _Search(self, entry, folder)
        chosen, update = search.run()
        on_main_process(lambda: update.save_pretrained(folder / "delta", dtype=torch.float32))
        with self.updated(entry.label) as model:
            summary = self.problem.evaluate(model, self.problem.retain_log)
            kl = self.kl(model)
        log = summary.pop("log")
        on_main_process(lambda: tofu.write_log(folder / "TOFU_EVAL.json", log))
        row = table_row(entry.label, summary, kl, chosen["settings"], chosen["seconds"], search.peak_memory)
        row |= {"reached": reached(row), "candidates": len(search.rows)}
        self.candidates += search.rows
        self.kl_samples[entry.label] = kl.per_token
        result = {"key": key, "row": row, "candidates": search.rows, "kl": kl.per_token.tolist()}
        on_main_process(lambda: write_json(done, result))
        return row


def on_main_process(action: Callable[[], object]):
    """Let one process do what touches files; the others wait until it is done."""
    state = PartialState()
    if state.is_main_process:
        action()
    state.wait_for_everyone()


def copy_of_weights(model) -> dict[str, torch.Tensor]:
    """All tensors of a model, copied to the CPU."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def put_back(model, weights: Mapping[str, torch.Tensor]):
    """Undo every change since `copy_of_weights`."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def table_row(
    label: str,
    summary: Mapping,
    kl,
    settings: dict | None = None,
    seconds: float | None = None,
    memory: float | None = None,
) -> dict:
    """One row of `results.json`. Probabilities and ROUGE are means over rows, `retain_kl` is in nats per token."""
    return {
        "method": label,
        "forget_quality": summary["forget_quality"],
        "ks_statistic": summary["ks_statistic"],
        "n": summary["n"],
        "log10_forget_quality": summary["log10_forget_quality"],
        "model_utility": summary.get("model_utility"),
        "forget_probability": summary["forget_Q_A_Prob"],
        "retain_probability": summary["retain_Q_A_Prob"],
        "forget_truth_ratio": summary["forget_truth_ratio"],
        "forget_rouge": summary.get("forget_Q_A_ROUGE"),
        "retain_rouge": summary.get("retain_Q_A_ROUGE"),
        "extraction_strength": summary.get("extraction_strength"),
        "exact_memorization": summary.get("exact_memorization"),
        "privleak": summary.get("privleak"),
        "retain_kl": kl.mean,
        "seconds": seconds,
        "peak_memory_mb": memory,
        "settings": settings or {},
    }


def reached(row: Mapping) -> bool:
    """Whether a candidate passes TOFU's line: its truth ratios cannot be told from the retrained model's at 5 %."""
    return row["forget_quality"] is not None and row["forget_quality"] >= FORGOTTEN


def choose(rows: list[dict]) -> int:
    """The candidate to show: least retain KL among those that have forgotten, else the one that forgot most."""
    passing = [index for index, row in enumerate(rows) if reached(row)]
    if passing:
        return min(passing, key=lambda index: rows[index]["retain_kl"])
    finite = [index for index, row in enumerate(rows) if row["forget_quality"] is not None]
    return max(finite, key=lambda index: rows[index]["log10_forget_quality"]) if finite else 0


class _Search:
    """The candidates of one entry: runs of the trainer, looked at while they run."""

    def __init__(self, comparison: Comparison, entry: Entry, folder: Path):
        self.comparison, self.entry, self.folder = comparison, entry, folder
        self.model = comparison.problem.original
        self.base = copy_of_weights(self.model)
        self.rows: list[dict] = []
        self.best: tuple[int, UpdateDelta] | None = None
        self.peak_memory = 0.0

    def run(self) -> tuple[dict, UpdateDelta]:
        entry = self.entry
        if entry.method == "kfade" and entry.settings.get("steps", 1) == 1:
            self._train(entry.search[0], {}, sweep=entry.search)
        else:
            for value in entry.search:
                if entry.method == "kfade":
                    self._train(value, {"eval_strategy": "steps", "eval_steps": 1})
                else:
                    self._train(
                        value, {"learning_rate": value, "num_train_epochs": entry.epochs, "eval_strategy": "epoch"}
                    )
        if self.best is None:
            raise NumericalError(f"every candidate of {entry.label} diverged: lower the values of its search")
        index, update = self.best
        return self.rows[index], update

    def _train(self, value: float, arguments: dict, sweep: list[float] | None = None):
        comparison, entry = self.comparison, self.entry
        method = entry.make(value)
        # A search keeps no checkpoints: a run of minutes starts again, and finished entries are on disk.
        quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "log_level": "error", "kl_rows": 0}
        args = UnlearnConfig(
            output_dir=str(self.folder / "run"),
            seed=comparison.seed,
            max_length=comparison.problem.max_length,
            **{**quiet, **comparison.arguments, **arguments, **entry.arguments},
        )
        on_main_process(lambda: shutil.rmtree(args.output_dir, ignore_errors=True))
        self.looking = 0.0
        self.started = time.perf_counter()
        trainer = UnlearnTrainer(
            self.model,
            method,
            args,
            comparison.forget,
            comparison.retain if method.needs_retain else None,
            eval_dataset={} if args.eval_strategy != "no" else None,
            processing_class=comparison.problem.tokenizer,
            evaluator=lambda model: self._look(trainer),
        )
        # The bar over all candidates is what a person watches; a line per step would drown it.
        trainer.remove_callback(PrinterCallback)
        reset_peak_memory()
        try:
            if sweep:
                method.sweep(trainer, sweep, evaluate=lambda model, about: self._look(trainer, about), best=choose)
            else:
                trainer.train()
        finally:
            put_back(self.model, self.base)
        gc.collect()

    def _look(self, trainer: UnlearnTrainer, about: Mapping = {}) -> dict:
        """Measure the model as it stands, and keep its update if it is the best so far."""
        now = time.perf_counter()
        self.peak_memory = max(self.peak_memory, peak_memory_mb())
        seconds = now - self.started - self.looking
        comparison, problem = self.comparison, self.comparison.problem
        settings = self._settings(trainer) | about
        try:
            summary = problem.evaluate(self.model, problem.retain_log, SEARCH_METRICS)
            row = table_row(self.entry.label, summary, comparison.kl(self.model), settings, seconds)
        except NumericalError as error:
            # A candidate that diverged is a result: it stands in the list, and can never be chosen.
            row = {"method": self.entry.label, "settings": settings, "seconds": seconds, "note": str(error)}
            row |= dict.fromkeys(("forget_quality", "log10_forget_quality", "ks_statistic", "n", "model_utility"))
            row |= dict.fromkeys(("forget_probability", "retain_probability", "retain_kl"))
        self.rows.append(row)
        comparison.bar.set_postfix_str(self.entry.label)
        comparison.bar.update()
        if row["forget_quality"] is not None and choose(self.rows) == len(self.rows) - 1:
            self.best = (len(self.rows) - 1, self._update(trainer, settings))
        reset_peak_memory()
        self.looking += time.perf_counter() - now
        return {key: row[key] for key in ("forget_quality", "log10_forget_quality", "retain_probability", "retain_kl")}

    def _update(self, trainer: UnlearnTrainer, settings: dict) -> UpdateDelta:
        about = {"method": trainer.method.label, "settings": settings, "seed": trainer.args.seed}
        return UpdateDelta.between(self.base, self.model, base_model=trainer.model_id, **about)

    def _settings(self, trainer: UnlearnTrainer) -> dict:
        settings = {key: value for key, value in trainer.method.settings().items() if value is not None}
        if self.entry.method == "kfade":
            return settings | {"steps": max(trainer.state.global_step, 1)}
        return settings | {"learning_rate": trainer.args.learning_rate, "epochs": round(trainer.state.epoch or 0, 2)}

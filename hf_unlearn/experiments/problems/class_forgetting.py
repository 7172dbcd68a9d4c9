# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The protocol of Fast-NTK's tables: tune on all classes, forget one, compare with retraining; over sizes and seeds.

One cell is (images per class, seed). Its rows are Full, Max Loss, Random Label, Fast-NTK and Retrain, each with its
accuracy on D_r, D_f and the hold-out set and the epochs to relearn D_f.
"""

import copy
import functools
import itertools
import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, TrainerCallback, set_seed

from ...data.images import (
    ImageCollator,
    class_names,
    find_class,
    keep_classes,
    load_images,
    select_per_class,
    split_class,
)
from ...errors import InputError
from ...evaluation.images import accuracy, linear_probe, relearning_epochs
from ...methods.fast_ntk import FastNTK
from ...methods.first_order import FirstOrder
from ...report.aggregates import aggregate
from ...report.class_tables import class_sections, paper_figures
from ...report.vocabulary import FORGOTTEN, PROBE, TOLERANCE
from ...runtime.files import atomic_write, sha256_json, write_json, write_text
from ...runtime.provenance import record_run
from ...trainer.config import UnlearnConfig
from ...trainer.trainer import UnlearnTrainer
from ..problem import configured
from ..run import read_yaml
from .image_models import QUIET, add_tuner, check_images, head_name, load_start, tune


SECTIONS = {"title", "seeds", "data", "model", "tuner", "tuning", "methods", "relearning", "probe", "paper"}


@dataclass
class Images:
    """The section `data`.

    Args:
        train, test: sources of `load_images`, with their splits after a colon ("cifar10:train"); without `test` the share
            `holdout` of each class of `train` is set apart, the same for all seeds.
        forget: number or name of the class to forget.
        per_class: images per class of D, one column of the table each.
        classes: take this many classes only (a seeded choice that holds the forgotten one).
        image_size, mean, std: of `ImageCollator`.
        holdout_per_class: images per class of the hold-out set; all by default.
        data_dir: where sources that are folders lie.
    """

    train: str = "digits:train"
    test: str | None = "digits:test"
    holdout: float = 0.2
    forget: int | str = 0
    per_class: list[int] = field(default_factory=lambda: [40])
    classes: int | None = None
    image_size: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    holdout_per_class: int | None = None
    data_dir: str | None = None

    def __post_init__(self):
        if not self.per_class:
            raise InputError("data.per_class is empty: name the numbers of images per class")
        self.collator = ImageCollator(tuple(self.mean), tuple(self.std), self.image_size)

    def load(self, source: str) -> Dataset:
        place, _, split = source.partition(":")
        if self.data_dir is not None and (Path(self.data_dir) / place).exists():
            place = str(Path(self.data_dir) / place)
        return load_images(place, split or "train")

    def sets(self, per_class: int, seed: int) -> tuple[Dataset, Dataset, Dataset]:
        """(D_f, D_r, hold-out) of a cell; the forgotten class is the same in all.

        Raises:
            InputError: no such class, or too few images.
        """
        train = self.load(self.train)
        train, test = (train, self.load(self.test)) if self.test is not None else set_apart(train, self.holdout)
        forget = find_class(train, self.forget)
        if self.classes is not None:
            if not 2 <= self.classes <= len(class_names(train)):
                raise InputError(f"data.classes must lie between 2 and {len(class_names(train))}, not {self.classes}")
            others = [label for label in range(len(class_names(train))) if label != forget]
            order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).tolist()
            chosen = [forget, *(others[place] for place in order[: self.classes - 1])]
            train, test, forget = keep_classes(train, chosen), keep_classes(test, chosen), 0
        rows = select_per_class(train, per_class, seed)
        return *split_class(rows, forget), select_per_class(test, self.holdout_per_class, seed)


def set_apart(rows: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """(train, test): the share of each class that a fixed draw puts into the second.

    Raises:
        InputError: a share that leaves one of them empty.
    """
    if not 0 < share < 1:
        raise InputError(f"data.holdout must lie between 0 and 1, not {share}: it is the share of images set apart")
    split = rows.train_test_split(test_size=share, seed=0, stratify_by_column="labels")
    return split["train"], split["test"]


class Cell:
    """One (images per class, seed): tunes, retrains, unlearns and measures; each model is made when a line first needs it."""

    def __init__(self, config: Mapping, per_class: int, seed: int, folder: Path):
        self.config, self.per_class, self.seed, self.folder = config, per_class, seed, folder
        self.images = configured(Images, "data", config["data"])
        self.collator = self.images.collator

    def lines(self) -> Iterator[tuple[dict, Callable[[], list[dict]]]]:
        """(what a line depends on beside the cell, what makes its rows), in the order of the paper's tables."""
        methods = self.config["methods"]
        yield {"line": "Full"}, lambda: [self._row("Full", *self._full)]
        for entry in methods:
            yield entry, lambda entry=entry: [self._method(dict(entry))]
        yield {"line": "Retrain"}, lambda: [self._row("Retrain", *self._tuned(self.retain))]
        if self.config.get("probe"):
            # They look at the model of the line "Fast-NTK" too.
            yield {"line": "probes", "methods": methods}, lambda: list(self._probes())

    @functools.cached_property
    def sets(self) -> tuple[Dataset, Dataset, Dataset]:
        return self.images.sets(self.per_class, self.seed)

    forget = property(lambda self: self.sets[0])
    retain = property(lambda self: self.sets[1])
    holdout = property(lambda self: self.sets[2])

    @functools.cached_property
    def everything(self) -> Dataset:
        return concatenate_datasets([self.retain, self.forget])

    @functools.cached_property
    def start(self) -> nn.Module:
        """The pretrained model with its tuner."""
        start = load_start(self.config, self.images, len(class_names(self.retain)), self.seed)
        start = add_tuner(start, self.config["tuner"])
        check_images(start, self.everything, self.collator)
        return start

    @functools.cached_property
    def _full(self) -> tuple[nn.Module, dict, float]:
        return self._tuned(self.everything)

    def _tuned(self, rows: Dataset) -> tuple[nn.Module, dict, float]:
        """The model tuned on some rows, what `_training_rows` finds of it, and seconds."""
        fixed = {"model": copy.deepcopy(self.start), "rows": rows, "collator": self.collator, "seed": self.seed}
        settings = tuning_settings(self.config, self.per_class)
        model, seconds = timed(lambda: configured(tune, "tuning", settings, **fixed))
        return model, self._training_rows(model), seconds

    def _training_rows(self, model: nn.Module) -> dict:
        """Accuracies on D_r and D_f, and `relearn`, which gives the epochs to relearn D_f: dear, so at most once."""
        return {
            "retain": self._accuracy(model, self.retain),
            "forget": self._accuracy(model, self.forget),
            "relearn": functools.cache(lambda: self._relearning(model)),
        }

    def _row(self, label: str, model: nn.Module, found: Mapping, seconds: float) -> dict:
        """What the tables show of a model; `found` is what `_training_rows` gave."""
        return {
            "method": label,
            "per_class": self.per_class,
            "seed": self.seed,
            "retain": found["retain"],
            "forget": found["forget"],
            "holdout": self._accuracy(model, self.holdout),
            "relearning_epochs": None if label == "Full" else found["relearn"](),
            "seconds": seconds,
        }

    def _accuracy(self, model: nn.Module, rows: Dataset) -> float:
        return 100 * accuracy(model, rows, self.collator)

    def _relearning(self, model: nn.Module) -> int | None:
        settings = self.config.get("relearning")
        return settings and relearning_epochs(model, self.forget, self.collator, seed=self.seed, **settings)

    def _method(self, entry: dict) -> dict:
        """The row of the best candidate of one line, see `choose`."""
        label, kind, search = entry.pop("label"), entry.pop("method"), entry.pop("search", {})
        full, found, _ = self._full
        run = {"fast_ntk": self._fast_ntk, "first_order": self._first_order}.get(kind)
        if run is None:
            raise InputError(f"methods, {label}: unknown method {kind!r}: choose fast_ntk or first_order")
        candidates = []
        with tempfile.TemporaryDirectory() as self.runs:
            grams = str(Path(self.runs) / "grams")
            for values in itertools.product(*search.values()):
                chosen = dict(zip(search, values))
                trainer, seconds = run(copy.deepcopy(full), entry, chosen, grams)
                candidates.append(self._training_rows(trainer.model.eval()) | {"run": (trainer, seconds, chosen)})
        best = choose(candidates, found["retain"], bool(self.config.get("relearning")))
        trainer, seconds, chosen = best["run"]
        row = self._row(label, trainer.model, best, seconds) | {"settings": chosen}
        if kind == "fast_ntk":
            report = trainer.method.report
            row |= {"solve_seconds": report["solve_seconds"], "parameters": report["parameters"]}
            trainer.save_model(str(self._unlearned(label)))
        return row

    def _unlearned(self, label: str = "Fast-NTK") -> Path:
        """Where the model of a closed-form line is saved; the line "Fast-NTK" needs no name."""
        name = "" if label == "Fast-NTK" else "-" + re.sub(r"\W+", "-", label.lower()).strip("-")
        return self.folder / f"model-{self.per_class}-{self.seed}{name}"

    def _trainer(self, model, method, evaluator=None, **arguments) -> UnlearnTrainer:
        args = UnlearnConfig(output_dir=tempfile.mkdtemp(dir=self.runs), seed=self.seed, **{**QUIET, **arguments})
        if not torch.cuda.is_available():
            args.use_cpu = True
        trainer = UnlearnTrainer(
            model, method, args, self.forget, self.retain if method.needs_retain else None,
            eval_dataset={} if evaluator else None, data_collator=self.collator, evaluator=evaluator,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _fast_ntk(self, model, entry, chosen, grams):
        method = configured(FastNTK, "methods, Fast-NTK", {**entry.get("settings", {}), **chosen}, gram_cache=grams)
        trainer = self._trainer(model, method, per_device_train_batch_size=min(64, len(self.forget)))
        _, seconds = timed(trainer.train)
        return trainer, seconds

    def _first_order(self, model, entry, chosen, grams):
        """Epoch after epoch until nothing of D_f is left, as the paper's baselines end at 0 %."""
        if "learning_rate" not in chosen:
            raise InputError("methods, first_order: name learning rates to try, search: {learning_rate: [1.0e-3]}")
        method = configured(FirstOrder, "methods, first_order", entry.get("settings"))
        evaluator = lambda model: {"forget_accuracy": accuracy(model, self.forget, self.collator)}
        trainer = self._trainer(
            model,
            method,
            evaluator,
            eval_strategy="epoch",
            num_train_epochs=entry.get("epochs", 20),
            learning_rate=chosen["learning_rate"],
            lr_scheduler_type="constant",
            per_device_train_batch_size=entry.get("batch_size", 32),
        )
        trainer.add_callback(StopWhenForgotten())
        _, seconds = timed(trainer.train)
        return trainer, seconds

    def _probes(self) -> Iterator[dict]:
        """Table III: a new head on the frozen features of the pretrained model, of one drawn at random, and of Fast-NTK's."""
        head, start = head_name(self.config), self.start
        unseen, _ = split_class(self.holdout, self.forget["labels"][0])
        unlearned = self._unlearned()
        random = copy.deepcopy(start)
        set_seed(self.seed)
        for module in random.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.LayerNorm):
                module.reset_parameters()
        models = {"Pre-trained": start, "Random-init": random}
        if unlearned.is_dir():
            from peft import PeftModel

            models["Fast-NTK"] = PeftModel.from_pretrained(copy.deepcopy(start).unload(), unlearned)
        for name, model in models.items():
            sets = [self.retain, self.forget, unseen]
            scores = linear_probe(model, self.everything, sets, self.collator, head, self.seed)
            named = {key: 100 * score for key, score in zip(("retain", "forget", "holdout"), scores)}
            yield {"method": f"{PROBE}{name}", "per_class": self.per_class, "seed": self.seed, **named}


def tuning_settings(config: Mapping, per_class: int) -> dict:
    """The section `tuning`; its `epochs` may be a mapping from images per class.

    Raises:
        InputError: a mapping without this number of images.
    """
    settings = dict(config.get("tuning") or {})
    if isinstance(epochs := settings.get("epochs"), Mapping):
        if per_class not in epochs:
            raise InputError(f"tuning.epochs has no entry for {per_class} images per class")
        settings["epochs"] = epochs[per_class]
    return settings


def choose(candidates: Sequence[dict], full: float, relearning: bool) -> dict:
    """The candidate of a line, by training rows alone and without the retrained model.

    At most `FORGOTTEN` % right on D_f counts as forgotten, and `TOLERANCE` points of D_r less than the tuned model as kept; of those
    alike in both the one that takes longest to relearn D_f, then the one that keeps most of D_r.

    Args:
        candidates: with "forget" and "retain" (%) and "relearn", called without arguments for the epochs (None: too many).
        full: accuracy of the tuned model on D_r (%).
        relearning: whether to look at the epochs.
    """
    scores = [(-max(row["forget"], FORGOTTEN), min(row["retain"], full - TOLERANCE)) for row in candidates]
    alike = [row for row, score in zip(candidates, scores) if score == max(scores)]
    if len(alike) == 1 or not relearning:
        return max(alike, key=lambda row: row["retain"])
    epochs = [math.inf if (count := row["relearn"]()) is None else count for row in alike]
    return max(zip(epochs, alike), key=lambda pair: (pair[0], pair[1]["retain"]))[1]


class StopWhenForgotten(TrainerCallback):
    """Ends training once the evaluator finds that no forget row is classified rightly."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if (metrics or {}).get("eval_forget_accuracy") == 0:
            control.should_training_stop = True


def timed(action: Callable):
    began = time.perf_counter()
    return action(), time.perf_counter() - began


def run_class_forgetting(config: Mapping, output_dir: str | Path, *, progress: bool = True) -> list[dict]:
    """All lines of all cells of a configuration; finished ones are read from `cells/`, so a run that was killed goes on.

    Raises:
        InputError: unknown sections or settings, data or models that cannot be had.
    """
    _check_sections(config)
    images = configured(Images, "data", config["data"])
    folder = Path(output_dir)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    cells = list(itertools.product(images.per_class, config.get("seeds", [0])))
    rows = []
    for per_class, seed in tqdm(cells, desc="cells", unit="cell", disable=not progress):
        others = {
            key: value for key, value in config.items() if key not in ("title", "seeds", "paper", "methods", "probe")
        }
        settings = others | {"data": {**config["data"], "per_class": per_class}}
        for line, make in Cell(config, per_class, seed, folder).lines():
            file = folder / "cells" / f"{sha256_json({'settings': settings, 'seed': seed, 'line': line})[:16]}.json"
            if not file.is_file():
                write_json(file, make())
            rows += json.loads(file.read_text(encoding="utf-8"))
    return rows


def _check_sections(config: Mapping, place: str = ""):
    if unknown := sorted(set(config) - SECTIONS):
        raise InputError(f"{place}no section {', '.join(unknown)}; there are {', '.join(sorted(SECTIONS))}")


def read_protocol(path: str | Path | None = None) -> dict:
    """The settings of a YAML; without a path the embedded default.

    Raises:
        InputError: no such file, not YAML, or sections that do not exist or are missing.
    """
    config = read_yaml(path, "fast_ntk_demo.yaml")
    _check_sections(config, f"{path}: ")
    if missing := sorted({"data", "model", "tuner", "methods"} - set(config)):
        raise InputError(f"{path}: the section {missing[0]} is missing")
    return {"title": Path(path or "Fast-NTK").stem, "seeds": [0]} | config


def publish(
    config: Mapping, rows: Sequence[Mapping], output_dir: str | Path, record_to: str | Path | None = None
) -> str:
    """Write results.json, report.md and table.png, and with `record_to` the rows with command, versions and machine.

    Returns the tables in Markdown.
    """
    table, sections = aggregate(rows, "per_class"), class_sections(rows, paper_figures(config.get("paper")))
    folder = Path(output_dir)
    parts = [text for part in sections if part.table for text in (f"**{part.title}**", part.text, part.markdown_table)]
    tables = "\n\n".join(filter(None, parts))
    figure = next(part.figure for part in sections if part.figure is not None)
    atomic_write(folder / "table.png", lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
    write_json(folder / "results.json", {"rows": list(rows), "table": table})
    notes = (
        f"Candidates of a line are chosen on the training rows, without Retrain: of those with at most {FORGOTTEN:g} % on D_f that "
        f"keep D_r within {TOLERANCE:g} points of Full, the one that takes longest to relearn. The hold-out set has all classes, the forgotten one too. A linear probe says what the features still tell."
    )
    write_text(folder / "report.md", f"# {config['title']}\n\n{tables}\n\n![table](table.png)\n\n{notes}\n")
    if record_to is not None:
        data = {key: value for key, value in config["data"].items() if key != "data_dir"}
        record_run(
            record_to,
            {"seeds": config["seeds"], "config": dict(config) | {"data": data}, "table": table, "rows": list(rows)},
        )
    return tables

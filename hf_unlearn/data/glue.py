# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""GLUE (Wang et al. 2018): sentences, or pairs of them, with one label each, from files or the Hub, and as tokens.

SPE-Unlearn's four tasks: MNLI, QQP, SST-2 and STS-B. GLUE keeps the labels of its test rows, so its validation rows
are the test set here, as in the papers; for MNLI those of the training genres (matched).
"""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from ..errors import InputError
from .formats import SUFFIXES
from .prompts import check_columns
from .sources import read_rows


logger = logging.getLogger(__name__)

HUB = "nyu-mll/glue"
# Where rows come from other files than the Hub's, the label has one of these names.
LABEL_COLUMNS = ("label", "labels", "score")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task: its columns of text, its classes in the order of their numbers, and what is measured."""

    name: str  # as the Hub's configurations
    columns: tuple[str, ...]  # one sentence, or a pair
    classes: tuple[str, ...]  # names by number; none where the label is a number to be predicted
    metric: str  # that the papers' tables show: "accuracy" or "spearman"
    test: tuple[str, ...] = ("validation",)  # splits that are the test set, the first that there is
    most: float | None = None  # of a number to be predicted, which begins at 0

    @property
    def regression(self) -> bool:
        return not self.classes

    @property
    def outputs(self) -> int:
        """Numbers that a model of the task puts out for a row."""
        return len(self.classes) or 1


TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            "accuracy",
            ("validation_matched", "validation"),
        ),
        GlueTask("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), "accuracy"),
        GlueTask("sst2", ("sentence",), ("negative", "positive"), "accuracy"),
        GlueTask("stsb", ("sentence1", "sentence2"), (), "spearman", most=5.0),
    )
}


def find_task(name: str) -> GlueTask:
    """The task of a name, which may be written as the papers do ("SST-2").

    Raises:
        InputError: there is none.
    """
    found = TASKS.get(str(name).lower().replace("-", "").replace("_", ""))
    if found is None:
        raise InputError(f"unknown GLUE task {name!r}: choose one of {', '.join(TASKS)}")
    return found


def load_glue(task: GlueTask, source: str | Path = HUB) -> tuple[Dataset, Dataset]:
    """(training rows, test rows) of a task: its columns of text, and `label`, a class or a number.

    Args:
        task ([`GlueTask`]): of `TASKS`.
        source (`str` or `Path`, *optional*, defaults to `"nyu-mll/glue"`): a dataset on the Hub, or a folder with
            files of a split: `sst2_train.jsonl`, `sst2/train.parquet` or, as a clone of the Hub's repository has them,
            `sst2/train-00000-of-00001.parquet`; any suffix that rows are read from, and `_sub_` before the split for a
            part of the data.

    Raises:
        InputError: no such folder, file or column, a label that is none of the task's (hidden ones of GLUE's own test
            rows are -1), a text that is none; named by file and line.
    """
    return _read(task, source, ("train",)), _read(task, source, task.test)


def _read(task: GlueTask, source: str | Path, splits: Sequence[str]) -> Dataset:
    places = _files(Path(source), task, splits) if Path(source).is_dir() else [f"{source}:{task.name}:{splits[0]}"]
    found = [(where, row) for place in places for where, row in read_rows(place)]
    if wrong := [where for where, row in found if not isinstance(row, dict)]:
        raise InputError(f"{wrong[0]} is not an object: a row needs {', '.join(task.columns)} and label")
    check_columns([row for _, row in found], task.columns, str(places[0]))
    first = found[0][1]
    column = next((name for name in LABEL_COLUMNS if name in first), None)
    if column is None:
        raise InputError(f"{places[0]} has no column label; it has: {', '.join(first)}")
    rows = []
    for where, row in found:
        for name in task.columns:
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{where}: column {name!r} is no text: leave the row out, or mend it")
        rows.append({name: row[name] for name in task.columns} | {"label": _label(task, row.get(column), where)})
    return Dataset.from_list(rows)


def _files(folder: Path, task: GlueTask, splits: Sequence[str]) -> list[Path]:
    """The files of the first split that the folder has."""
    suffixes = [f"{suffix}{packed}" for suffix in SUFFIXES for packed in ("", ".gz")]
    for split in splits:
        for stem in (f"{task.name}_{split}", f"{task.name}_sub_{split}", f"{task.name}/{split}"):
            for suffix in suffixes:
                if (file := folder / f"{stem}{suffix}").is_file():
                    return [file]
        if shards := sorted(folder.glob(f"{task.name}/{split}-*.parquet")):
            return shards
    present = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))[:12]
    raise InputError(
        f"{folder} has no {' or '.join(splits)} rows of {task.name}: give a file such as "
        f"{task.name}_{splits[-1]}.jsonl; it has: {', '.join(present) or 'nothing'}"
    )


def _label(task: GlueTask, value, where: str) -> int | float:
    """A class's number, given by number or name, or a number to be predicted.

    Raises:
        InputError: it is none of the task's.
    """
    if value in task.classes:
        return task.classes.index(value)
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if task.regression and 0 <= number <= task.most:
        return number
    if not task.regression and number in range(len(task.classes)):
        return int(number)
    if task.regression:
        wanted = f"a number from 0 to {task.most:g}"
    else:
        wanted = ", ".join(f"{index} ({name})" for index, name in enumerate(task.classes))
    raise InputError(f"{where}: the label {value!r} is none of {task.name}'s: give {wanted}")


def tokenize_glue(rows: Dataset, task: GlueTask, tokenizer, max_length: int = 128) -> Dataset:
    """Rows as an encoder takes them: `input_ids`, `attention_mask`, `token_type_ids` where it has them, and `labels`.

    Pairs are one text to the tokenizer, which marks the second; the longer of the two is cut first. All rows go
    through one call. Rows that are cut are counted in the log.

    Args:
        max_length (`int`, *optional*, defaults to 128): most tokens of a row, as BERT's own runs on GLUE.

    Raises:
        InputError: a length that no row fits into.
    """
    least = tokenizer.num_special_tokens_to_add(pair=len(task.columns) > 1) + len(task.columns)
    if max_length < least:
        raise InputError(f"max_length={max_length}: a row of {task.name} needs {least} at least; 128 is usual")
    encoded = tokenizer(*(list(rows[name]) for name in task.columns), truncation=True, max_length=max_length)
    if cut := sum(bool(one.overflowing) for one in encoded.encodings or ()):
        logger.warning(f"{cut} of {len(rows)} rows are cut to max_length={max_length} tokens")
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    return Dataset.from_dict({name: encoded[name] for name in names} | {"labels": list(rows["label"])})

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows as people give them: a dataset, one split of several, a list of dicts or a file; checked cell by cell."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset, IterableDatasetDict

from ..errors import InputError, first_line
from .sources import read_rows


logger = logging.getLogger(__name__)

# What a row may be, the first whose columns are all there; what comes with `input_ids` is optional.
KINDS = {
    "pixel_values": ("pixel_values", "labels"),
    "image": ("image", "labels"),
    "input_ids": ("input_ids",),
    "sentence": ("text", "label"),  # for classifiers alone
    "messages": ("messages",),
    "question": ("question", "answer"),
    "text": ("text",),
}
IMAGES = ("pixel_values", "image")
MODEL_COLUMNS = ("input_ids", "attention_mask", "labels", *IMAGES)
# What may come with a kind. Labels of a row are one for each token, or one class or value; the places of a span's ends
# stand in two columns, as in transformers.
BESIDE = {
    "input_ids": ("labels", "attention_mask", "token_type_ids", "start_positions", "end_positions"),
    "sentence": ("text_pair",),
}
# The roles of a chat that templates know, in any order behind a system's turn; the last turn is the assistant's.
ROLES = ("system", "user", "assistant", "tool")


def read_dataset(rows, what: str, classified: bool = False) -> tuple[Dataset, str]:
    """The rows as a `datasets.Dataset` in plain lists, and their kind (a key of `KINDS`).

    Args:
        rows: a `datasets.Dataset`, a `DatasetDict` with one split, a list of dicts, or a path or name as
            `sources.read_rows` takes it (a text file is one row with the column `text`).
        what (`str`): the set's name for messages: "forget", "retain" ...
        classified (`bool`, *optional*, defaults to `False`): whether rows of `text` are for a classifier, which needs
            their `label` (a class, or a number for a regression) and takes a `text_pair`.

    Raises:
        InputError: nothing, no rows, several splits, a stream, another type, no usable columns, or a cell of another
            type. The message names row, counted from 1, and column.
    """
    if rows is None:
        raise InputError(f"no {what} dataset was given: pass {what}_dataset")
    if isinstance(rows, Mapping) and rows and all(isinstance(split, Dataset) for split in rows.values()):
        if len(rows) > 1:
            first = next(iter(rows))
            raise InputError(f"the {what} set has the splits {', '.join(rows)}: pass one, such as dataset[{first!r}]")
        rows = next(iter(rows.values()))
    if isinstance(rows, IterableDataset | IterableDatasetDict):
        raise InputError(
            f"the {what} set is a stream, whose rows are not known before: pass "
            "Dataset.from_list(list(stream.take(n))), or load it with streaming=False"
        )
    if isinstance(rows, str | Path):
        rows = [_named(where, row) for where, row in read_rows(rows)]
        named = [where for where, _ in rows]
        rows = [row for _, row in rows]
    elif isinstance(rows, list | tuple):
        named = [f"{what} row {number}" for number in range(1, len(rows) + 1)]
        for where, row in zip(named, rows):
            if not isinstance(row, Mapping):
                raise InputError(f"{where} is a {type(row).__name__}, not a dict of columns")
    elif isinstance(rows, Dataset):
        named = None
    else:
        raise InputError(
            f"the {what} set is of type {type(rows).__name__}: give a Dataset, a list of dicts or a file's path"
        )
    if len(rows) == 0:
        raise InputError(f"the {what} set is empty: give it at least one row")
    if named is None:
        # Plain lists, whatever format (torch, numpy) the caller reads them in.
        rows = rows.with_format(None)
        kind = _kind(rows.column_names, f"the {what} set", classified)
        rows = rows.select_columns(_columns_of(kind, rows.column_names))
        if kind not in IMAGES:
            _check(kind, ((f"{what} row {number}", row) for number, row in enumerate(rows, 1)))
        return rows, kind
    kind = _kind(list(rows[0]), f"the {what} set", classified)
    columns = _columns_of(kind, list(rows[0]))
    for where, row in zip(named, rows):
        if missing := [name for name in columns if name not in row]:
            raise InputError(f"{where} has no column {missing[0]}; it has: {', '.join(map(str, row)) or 'none'}")
    if kind not in IMAGES:
        _check(kind, zip(named, rows))
    try:
        return Dataset.from_list([{name: row[name] for name in columns} for row in rows]), kind
    except (TypeError, ValueError) as error:  # what Arrow cannot hold in one column
        raise InputError(f"the {what} set cannot be read as columns: {first_line(error)}") from error


def _named(where: str, row) -> tuple[str, Mapping]:
    if isinstance(row, str):
        return where, {"text": row}
    if not isinstance(row, Mapping):
        raise InputError(f"{where} is a {type(row).__name__}, not an object with columns")
    return where, row


def _kind(columns: list[str], what: str, classified: bool) -> str:
    others = ("messages", "question", "text") if classified else ("sentence",)
    for kind, needed in KINDS.items():
        if kind not in others and set(needed) <= set(columns):
            return kind
    if classified:
        raise InputError(
            f"{what} has the columns {', '.join(sorted(map(str, columns)))}: a classifier needs text and label (and "
            "text_pair for pairs), or input_ids and labels"
        )
    raise InputError(
        f"{what} has the columns {', '.join(sorted(map(str, columns)))}: it needs input_ids and labels, or "
        "messages, or question and answer, or text"
    )


def _columns_of(kind: str, columns: list[str]) -> list[str]:
    """What is read of rows of this kind: the columns that it needs, and those that may come beside token ids."""
    if kind in IMAGES:
        return [name for name in MODEL_COLUMNS if name in columns]
    return [*KINDS[kind], *(name for name in BESIDE.get(kind, ()) if name in columns)]


def _check(kind: str, rows: Iterator[tuple[str, Mapping]]):
    check = {"input_ids": _check_ids, "messages": _check_messages, "sentence": _check_sentence}.get(kind, _check_texts)
    for where, row in rows:
        check(where, {name: row[name] for name in _columns_of(kind, list(row))})


def _check_texts(where: str, row: Mapping):
    for column, value in row.items():
        if not isinstance(value, str):
            raise InputError(f"{where}, column {column}: it must be text, not {_described(value)}")


def _check_sentence(where: str, row: Mapping):
    _check_texts(where, {name: value for name, value in row.items() if name != "label"})
    _check_label(where, "label", row["label"])


def _check_label(where: str, column: str, label):
    if isinstance(label, bool) or not isinstance(label, int | float | np.number) or not np.isfinite(label):
        raise InputError(f"{where}, column {column}: it must be a class or a finite number, not {_described(label)}")
    if int(label) == label and label < 0 and label != -100 and isinstance(label, int | np.integer):
        raise InputError(f"{where}, column {column}: a class is a whole number from 0 (-100 for none), not {label}")


def _check_places(where: str, row: Mapping):
    for column in ("start_positions", "end_positions"):
        place, length = row.get(column), len(row["input_ids"])
        if isinstance(place, bool) or not isinstance(place, int | np.integer) or not 0 <= place < length:
            raise InputError(
                f"{where}, column {column}: it must be the place of one of the {length} tokens, not "
                f"{_described(place)}; a span has both a start and an end"
            )


def _check_ids(where: str, row: Mapping):
    allowed: dict[str, tuple[Callable, str]] = {
        "input_ids": (lambda ids: (ids >= 0).all(), "whole numbers from 0"),
        "labels": (lambda ids: ((ids >= 0) | (ids == -100)).all(), "whole numbers from 0, or -100"),
        "attention_mask": (lambda ids: np.isin(ids, (0, 1)).all(), "0 or 1"),
        "token_type_ids": (lambda ids: (ids >= 0).all(), "whole numbers from 0"),
    }
    if "start_positions" in row or "end_positions" in row:
        _check_places(where, row)
    if "labels" in row and isinstance(row["labels"], int | float | np.number):
        _check_label(where, "labels", row["labels"])
    for column, value in row.items():
        if column not in allowed or column == "labels" and isinstance(value, int | float | np.number):
            continue
        fits, wanted = allowed[column]
        if not isinstance(value, list | tuple | np.ndarray):
            raise InputError(f"{where}, column {column}: it must be a list of {wanted}, not {_described(value)}")
        try:
            ids = np.asarray(value)
        except (ValueError, OverflowError):  # lists of unequal lengths
            ids = np.asarray(None)
        if ids.ndim != 1 or len(ids) and (ids.dtype.kind not in "iu" or not fits(ids)):
            raise InputError(f"{where}, column {column}: it must hold {wanted}, one for each token")
        if len(ids) != len(row["input_ids"]):
            raise InputError(f"{where}: {len(row['input_ids'])} input_ids and {len(ids)} {column}: one for each token")


def _check_messages(where: str, row: Mapping):
    turns = row["messages"]
    if not isinstance(turns, list | tuple) or not turns:
        raise InputError(f"{where}, column messages: it must be a list of turns, not {_described(turns)}")
    for number, turn in enumerate(turns, 1):
        place = f"{where}, turn {number}"
        if not isinstance(turn, Mapping) or not {"role", "content"} <= set(turn):
            raise InputError(f"{place}: a turn is an object with role and content, not {_described(turn)}")
        if turn["role"] not in ROLES:
            raise InputError(f"{place}: role must be one of {', '.join(ROLES)}, not {_described(turn['role'])}")
        if not isinstance(turn["content"], str):
            raise InputError(f"{place}: content must be text, not {_described(turn['content'])}")
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise InputError(
            f"{where}: the last turn is {turns[-1]['role']}'s; it must be an assistant's answer to another"
        )


def _described(value) -> str:
    if value is None:
        return "nothing (null)"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:40] + '...'}"


def drop_empty(rows: Dataset, kind: str, what: str) -> tuple[Dataset, int]:
    """The rows that hold something, and the number of others, which is said.

    Raises:
        InputError: no row is left.
    """
    if kind in IMAGES:
        return rows, 0
    empty = {
        "input_ids": lambda row: not len(row["input_ids"]),
        "messages": lambda row: not row["messages"][-1]["content"].strip(),
        "sentence": lambda row: not row["text"].strip(),
    }.get(kind, lambda row: not all(value.strip() for value in row.values()))
    kept = [number for number, row in enumerate(rows) if not empty(row)]
    dropped = len(rows) - len(kept)
    if not kept:
        raise InputError(f"all {len(rows)} rows of the {what} set are empty: give rows with text")
    if dropped:
        logger.warning(f"{dropped} of {len(rows)} rows of the {what} set are empty and left out")
    return (rows.select(kept) if dropped else rows), dropped

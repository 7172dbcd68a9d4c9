# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of forget and retain sets: checked, tokenised, paired and fingerprinted."""

import hashlib
import logging

import torch
from datasets import Dataset, Image

from ..errors import InputError
from .prompts import tokenize_qa


logger = logging.getLogger(__name__)

MODEL_COLUMNS = ("input_ids", "attention_mask", "labels", "pixel_values", "image")


def prepare_rows(rows: Dataset | None, what: str, tokenizer, max_length: int) -> Dataset:
    """Rows as a model takes them: `labels` with `input_ids` and `attention_mask`, with `pixel_values` or with `image`.

    Args:
        rows (`Dataset` or `None`): with these columns, or with `question` and `answer` (labels on the answer and its
            EOS), or with `text` (labels on every token).
        what (`str`): the set's name for messages: "forget", "retain" ...
        tokenizer: needed for rows of text; may be None for others.
        max_length (`int`): rows of text are cut to this many tokens.

    Raises:
        InputError: no dataset, no rows, no usable columns, text without a tokenizer, no label that a model predicts.
    """
    if rows is None:
        raise InputError(f"no {what} dataset was given: pass {what}_dataset")
    if len(rows) == 0:
        raise InputError(f"the {what} set is empty: give it at least one row")
    # Plain lists, whatever format (torch, numpy) the caller reads them in.
    rows = rows.with_format(None)
    columns = set(rows.column_names)
    if {"pixel_values", "labels"} <= columns or {"image", "labels"} <= columns:
        return rows.select_columns([name for name in MODEL_COLUMNS if name in columns])
    if "input_ids" not in columns:
        if not ({"question", "answer"} <= columns or "text" in columns):
            raise InputError(
                f"the {what} set has the columns {', '.join(sorted(columns))}: it needs input_ids and labels, "
                "or question and answer, or text"
            )
        if tokenizer is None:
            raise InputError(f"the {what} set holds text: pass processing_class, the model's tokenizer")
        if {"question", "answer"} <= columns:
            rows = tokenize_qa(rows, tokenizer, max_length=max_length)
        else:
            rows = rows.map(
                lambda batch: tokenizer(batch["text"], truncation=True, max_length=max_length),
                batched=True,
                remove_columns=rows.column_names,
                desc=f"tokenise {what}",
            )
        columns = set(rows.column_names)
    if "attention_mask" not in columns:
        rows = rows.add_column("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
    if "labels" not in columns:
        pairs = zip(rows["input_ids"], rows["attention_mask"])
        rows = rows.add_column(
            "labels", [[token if real else -100 for token, real in zip(ids, mask)] for ids, mask in pairs]
        )
    unlabelled = sum(
        all(label == -100 for label in (labels[1:] if isinstance(labels, list) else [labels]))
        for labels in rows["labels"]
    )
    if unlabelled == len(rows):
        raise InputError(f"every label of the {what} set is ignored (-100): give rows whose answer carries labels")
    if unlabelled:
        logger.warning(f"{unlabelled} of {len(rows)} rows of the {what} set have no label: they teach nothing")
    return rows.select_columns(["input_ids", "attention_mask", "labels"])


def sample_rows(rows: Dataset, count: int | None, seed: int = 0) -> Dataset:
    """At most `count` rows: a choice without replacement that depends on the seed and the number of rows alone.

    The rows chosen stay in their order; `count` None takes all.

    Raises:
        InputError: `count` is below 1.
    """
    check_limit(count)
    if count is None or count >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.select(sorted(order[:count].tolist()))


def check_limit(limit: int | None):
    """Refuse a number of rows below 1; None stands for all of them."""
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: give at least 1, or leave it out for all rows")


def row_hashes(rows: Dataset) -> list[str]:
    """SHA-256 of what each row teaches: inputs and labels, whatever else its columns hold."""
    columns = [name for name in ("input_ids", "pixel_values", "image", "labels") if name in rows.column_names]
    if "image" in columns:
        # The encoded file stands for the picture: decoding it to hash pixels would cost many times as much.
        rows = rows.cast_column("image", Image(decode=False))
    return [
        hashlib.sha256(repr([values[name] for name in columns]).encode()).hexdigest()
        for values in rows.select_columns(columns)
    ]


def fingerprint_rows(rows: Dataset) -> str:
    """SHA-256 of all rows, in order."""
    return hashlib.sha256("".join(row_hashes(rows)).encode()).hexdigest()


def count_overlap(forget: Dataset, retain: Dataset) -> int:
    """Number of forget rows that are retain rows too."""
    known = set(row_hashes(retain))
    return sum(row in known for row in row_hashes(forget))


class PairedRows(torch.utils.data.Dataset):
    """Every forget row with a retain row: `{"forget": ..., "retain": ...}`.

    Retain rows are drawn without replacement, in an order that depends on the seed and the epoch alone (not on
    workers or processes), and one epoch goes on where the last one stopped, so all of them are used.
    """

    def __init__(self, forget: Dataset, retain: Dataset, seed: int):
        self.forget, self.retain, self.seed = forget, retain, seed
        # In shared memory: a persistent worker keeps the copy of this object that it was started with.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._orders: dict[int, list[int]] = {}

    def set_epoch(self, epoch: int):
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> dict:
        return {"forget": self.forget[index], "retain": self.retain[self._partner(index)]}

    def _partner(self, index: int) -> int:
        cycle, position = divmod(int(self._epoch) * len(self.forget) + index, len(self.retain))
        if cycle not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + cycle)
            self._orders = {cycle: torch.randperm(len(self.retain), generator=generator).tolist()} | (
                self._orders if len(self._orders) < 4 else {}
            )
        return self._orders[cycle][position]

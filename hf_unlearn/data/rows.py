# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of forget and retain sets: chosen, paired and fingerprinted."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from datasets import Dataset, Image

from ..errors import InputError
from ..runtime.labels import POSITIONS


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


def longest_first(rows: Dataset) -> tuple[Dataset, list[int]]:
    """The rows, those of most tokens first, and how many each of them (in the order given) has; none of images.

    Rows of one length come together: padding is half of the work where lengths differ. A batch that is too large for
    the memory is the first one.
    """
    if "input_ids" not in rows.column_names:
        return rows, []
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(lengths)), key=lambda row: -lengths[row])), lengths


def split_rows(rows: Dataset, forget: Sequence[int]) -> tuple[Dataset, Dataset]:
    """(forget rows, retain rows) by row number.

    Raises:
        InputError: nothing or everything is to be forgotten, or no such row.
    """
    chosen = set(forget)
    if not chosen:
        raise InputError("no row is to be forgotten: name at least one")
    if wrong := [row for row in chosen if not 0 <= row < len(rows)]:
        raise InputError(f"there is no row {wrong[0]}: the data has {len(rows)}")
    if len(chosen) == len(rows):
        raise InputError("every row is to be forgotten, so nothing is left to retain: train a new model instead")
    return rows.select(sorted(chosen)), rows.select([row for row in range(len(rows)) if row not in chosen])


def draw_request(rows: Dataset, forget: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(forget rows, retain rows): `forget` rows drawn at random, each side in the data's order.

    Raises:
        InputError: no row, or not fewer than there are.
    """
    if not 1 <= forget < len(rows):
        raise InputError(f"forget={forget}: give 1 to {len(rows) - 1}, for there are {len(rows)} training rows")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return split_rows(rows, order[:forget])


def check_limit(limit: int | None):
    """Refuse a number of rows below 1; None stands for all of them."""
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: give at least 1, or leave it out for all rows")


def is_token_labels(labels) -> bool:
    """Whether the labels of a row are one for each token, not one for the row or those of a span's ends."""
    return isinstance(labels, list) and not isinstance(labels[0], list)


def with_span_labels(rows: Dataset) -> Dataset:
    """The ends of spans as collators take them: `labels` (2, 1) in the place of `start_positions`, `end_positions`."""
    spans = [[[first], [last]] for first, last in zip(*(rows[name] for name in POSITIONS), strict=True)]
    gone = [name for name in ("labels", *POSITIONS) if name in rows.column_names]
    return rows.remove_columns(gone).add_column("labels", spans)


def row_hashes(rows: Dataset) -> list[str]:
    """SHA-256 of what each row teaches: inputs and labels, whatever else its columns hold."""
    inputs = ("input_ids", "token_type_ids", "pixel_values", "image", "labels", *POSITIONS)
    columns = [name for name in inputs if name in rows.column_names]
    if "image" in columns:
        # The encoded file stands for the picture: decoding it to hash pixels would cost many times as much.
        rows = rows.cast_column("image", Image(decode=False))
    return [
        hashlib.sha256(repr([values[name] for name in columns]).encode()).hexdigest()
        for values in rows.select_columns(columns)
    ]


def fingerprint_rows(rows: Dataset) -> str:
    """SHA-256 of all rows, in order."""
    return hash_of_rows(row_hashes(rows))


def hash_of_rows(hashes: Iterable[str]) -> str:
    """SHA-256 of rows whose own hashes are given."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def count_overlap(forget: Dataset, retain: Dataset) -> int:
    """Number of forget rows that are retain rows too."""
    known = set(row_hashes(retain))
    return sum(row in known for row in row_hashes(forget))


class PairedRows(torch.utils.data.Dataset):
    """Every forget row with a retain row: `{"forget": ..., "retain": ...}`, and its `"alternative"` if there are any.

    Retain rows are drawn without replacement, in an order that depends on the seed and the epoch alone (not on
    workers or processes), and one epoch goes on where the last one stopped, so all of them are used.
    """

    def __init__(self, forget: Dataset, retain: Dataset, seed: int, alternative: Dataset | None = None):
        self.forget, self.retain, self.seed, self.alternative = forget, retain, seed, alternative
        # In shared memory: a persistent worker keeps the copy of this object that it was started with.
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._orders: dict[int, list[int]] = {}

    def set_epoch(self, epoch: int):
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, index: int) -> dict:
        pair = {"forget": self.forget[index], "retain": self.retain[self._partner(index)]}
        return pair if self.alternative is None else pair | {"alternative": self.alternative[index]}

    def _partner(self, index: int) -> int:
        cycle, position = divmod(int(self._epoch) * len(self.forget) + index, len(self.retain))
        if cycle not in self._orders:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + cycle)
            self._orders = {cycle: torch.randperm(len(self.retain), generator=generator).tolist()} | (
                self._orders if len(self._orders) < 4 else {}
            )
        return self._orders[cycle][position]

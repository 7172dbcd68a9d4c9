# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Collators that make padded batches of rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import InputError
from ..objectives import IGNORE, scored_labels
from ..runtime.loading import padding_id
from ..runtime.modules import positions_behind_padding, takes_positions
from .rows import is_token_labels


@dataclass(frozen=True)
class CausalCollator:
    """Pad rows of `input_ids` and `labels` (lists of equal length) to int64 tensors of shape [rows, longest row].

    Labels of another shape, those of text classifiers, become a tensor of their own: (rows,) of classes or, floating,
    of values, (rows, 2, 1) of the first and last token of a span. `token_type_ids`, where rows have them, are 0 at
    padding.

    The attention mask comes from the lengths, never from comparing ids with the padding id: where padding and
    end-of-sequence are one token, that would hide the end-of-sequence from the model. Labels of padding, and of tokens
    that only padding stands before, are -100.

    Raises:
        InputError: another side, or no id.
    """

    pad_token_id: int  # fills `input_ids` (see `runtime.loading.padding_id`)
    padding_side: str = "right"  # "left" or "right"

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise InputError(f"padding_side={self.padding_side!r}: choose left or right")
        if self.pad_token_id is None:
            raise InputError("no padding token id: set tokenizer.pad_token (the end-of-sequence token will do)")

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), width), self.pad_token_id),
            "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
            "labels": torch.full((len(rows), width), -100),
        }
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = torch.zeros(len(rows), width, dtype=torch.long)
        by_token = is_token_labels(rows[0]["labels"])
        if not by_token:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            place = slice(0, length) if self.padding_side == "right" else slice(width - length, width)
            batch["input_ids"][number, place] = torch.as_tensor(row["input_ids"])
            batch["attention_mask"][number, place] = torch.as_tensor(row.get("attention_mask", [1] * length))
            if "token_type_ids" in batch:
                batch["token_type_ids"][number, place] = torch.as_tensor(row["token_type_ids"])
            if by_token:
                batch["labels"][number, place] = torch.as_tensor(row["labels"])
            elif batch["labels"].dim() > 1:
                # Places in the row, which padding on the left moves.
                batch["labels"][number] += place.start * (batch["labels"][number] != IGNORE)
        if by_token:
            batch["labels"] = scored_labels(batch["labels"], batch["attention_mask"])
        return batch


@dataclass(frozen=True)
class RealTokens:
    """A collator of anyone's, with labels that real tokens predict, and positions where the model must be told them.

    Batches without an attention mask, and labels that are no tokens, stay as they are.
    """

    collator: Callable
    positions: bool  # whether the model is told the positions of rows that begin with padding

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.collator(rows)
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if mask is None or labels is None:
            return batch
        if labels.shape == mask.shape:
            batch["labels"] = scored_labels(labels, mask)
        return positions_behind_padding(batch) if self.positions else batch


def real_tokens(collator: Callable, model) -> RealTokens:
    """The collator for batches of this model."""
    return RealTokens(collator, takes_positions(model))


@dataclass(frozen=True)
class UnlearnCollator:
    """Rows `{"forget": row, "retain": row}` to `{"forget": batch, "retain": batch}`, each side made by `collator`."""

    collator: Callable

    def __call__(self, rows: list[dict]) -> dict[str, dict[str, torch.Tensor]]:
        return {side: self.collator([row[side] for row in rows]) for side in rows[0]}


def default_collator(model, processing_class) -> CausalCollator:
    """Pads with the tokenizer's or the model's padding id."""
    return CausalCollator(padding_id(processing_class, model))

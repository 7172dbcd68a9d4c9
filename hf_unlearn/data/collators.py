# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Collators that make padded batches of rows."""

from dataclasses import dataclass

import torch

from ..errors import InputError
from ..runtime.loading import padding_id


@dataclass(frozen=True)
class CausalCollator:
    """Pad rows of `input_ids` and `labels` (lists of equal length) to int64 tensors of shape [rows, longest row].

    The attention mask comes from the lengths, never from comparing ids with the padding id: where padding and
    end-of-sequence are one token, that would hide the end-of-sequence from the model. Padded labels are -100.

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
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            place = slice(0, length) if self.padding_side == "right" else slice(width - length, width)
            batch["input_ids"][number, place] = torch.as_tensor(row["input_ids"])
            batch["attention_mask"][number, place] = torch.as_tensor(row.get("attention_mask", [1] * length))
            batch["labels"][number, place] = torch.as_tensor(row["labels"])
        return batch


@dataclass(frozen=True)
class UnlearnCollator:
    """Rows `{"forget": row, "retain": row}` to `{"forget": batch, "retain": batch}`, each side made by `collator`."""

    collator: CausalCollator

    def __call__(self, rows: list[dict]) -> dict[str, dict[str, torch.Tensor]]:
        return {side: self.collator([row[side] for row in rows]) for side in rows[0]}


def default_collator(model, processing_class) -> CausalCollator:
    """Pads with the tokenizer's or the model's padding id."""
    return CausalCollator(padding_id(processing_class, model))

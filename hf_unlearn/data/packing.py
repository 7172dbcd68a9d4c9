# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Sequences of tokens that long texts are cut into: packed and counted."""

import logging

from datasets import Dataset, concatenate_datasets

from ..errors import InputError
from .prompts import one_bos


logger = logging.getLogger(__name__)

TOKENISED_TOGETHER = 256  # documents


def pack(texts, tokenizer, length: int = 512, *, min_tokens: int | None = None):
    """Token sequences of at most `length`, as a `datasets.Dataset` with `input_ids` and `labels` (the same ids).

    A document is tokenised with the special tokens that the tokenizer adds (a BOS stands at the document's beginning,
    not at every sequence's) and cut into pieces of `length` tokens. No sequence holds tokens of two documents. By
    default the last piece of a cut document is dropped when it is shorter than half of `length`, and a document that
    is shorter than `length` is kept whole. What was dropped is counted in the result's `info.description` and logged.

    Args:
        texts (`Dataset` or `list[str]`): a dataset with the column `text`, or strings.
        tokenizer: called on lists of texts.
        length (`int`, *optional*, defaults to 512): most tokens of a sequence.
        min_tokens (`int`, *optional*): drop every piece that is shorter, of whole documents too: `length` keeps full
            sequences alone.

    Raises:
        InputError: `length` below 2, `min_tokens` outside 1..`length`, no `text` column, or no sequence is left.
    """
    if length < 2 or not 1 <= (1 if min_tokens is None else min_tokens) <= length:
        raise InputError(
            f"length={length}, min_tokens={min_tokens}: sequences have at least 2 tokens, and min_tokens is from 1 "
            "to length"
        )
    if not isinstance(texts, list | tuple):
        if "text" not in texts.column_names:
            raise InputError(f"the corpus has the columns {', '.join(texts.column_names)}: pack needs `text`")
        texts = texts["text"]
    parts, dropped, dropped_tokens, kept_tokens = [], 0, 0, 0
    for start in range(0, len(texts), TOKENISED_TOGETHER):
        sequences = []
        # Not `verbose`: documents longer than the model's context are the rule here, and are cut.
        for ids in tokenizer(list(texts[start : start + TOKENISED_TOGETHER]), verbose=False)["input_ids"]:
            ids = one_bos(ids, tokenizer)
            least = min_tokens or (2 if len(ids) < length else length // 2)
            for piece in (ids[at : at + length] for at in range(0, len(ids), length)):
                if len(piece) >= max(least, 2):  # a lone token predicts nothing
                    sequences.append(piece)
                    kept_tokens += len(piece)
                else:
                    dropped, dropped_tokens = dropped + 1, dropped_tokens + len(piece)
        if sequences:
            parts.append(Dataset.from_dict({"input_ids": sequences, "labels": sequences}))
    if not parts:
        raise InputError(
            f"none of {len(texts)} documents has {max(min_tokens or 2, 2)} tokens: give longer texts, or lower "
            "min_tokens"
        )
    packed = concatenate_datasets(parts)
    packed.info.description = (
        f"{len(packed)} sequences of up to {length} tokens ({kept_tokens} tokens) from {len(texts)} documents; "
        f"{dropped} short pieces dropped ({dropped_tokens} tokens)"
    )
    logger.info(packed.info.description)
    return packed

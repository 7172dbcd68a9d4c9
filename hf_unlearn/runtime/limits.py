# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a model can read: rows of its embedding, positions, and the tokenizer that belongs to it."""

import logging

import torch

from ..errors import InputError


logger = logging.getLogger(__name__)


def token_rows(model: torch.nn.Module) -> int | None:
    """Rows of the embedding of tokens; None for a model without one."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # models of images
        return None
    weight = getattr(embedding, "weight", None)
    return None if weight is None else weight.shape[0]


def most_positions(model: torch.nn.Module) -> int | None:
    """Tokens of the longest row; None where nothing limits it (ALiBi, state space models)."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(config, "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def check_tokens(model: torch.nn.Module, longest: int, largest: int, what: str):
    """Refuse rows that the model cannot read; `what` names them in the message.

    Args:
        longest (`int`): tokens of the longest row.
        largest (`int`): the largest token id.

    Raises:
        InputError: a row longer than the model's positions, or an id beyond its embedding.
    """
    most, rows = most_positions(model), token_rows(model)
    if rows is not None and largest >= rows:
        raise InputError(
            f"{what} has the token id {largest} and the model's embedding {rows} rows: tokenise it with the model's "
            "own tokenizer"
        )
    if most is not None and longest > most:
        raise InputError(
            f"{what} has a row of {longest} tokens and the model {most} positions: lower max_length to {most}, or cut "
            "the rows"
        )


def check_tokenizer(tokenizer, model: torch.nn.Module):
    """Refuse a tokenizer with ids that the model's embedding does not have.

    Raises:
        InputError: the largest id of the tokenizer is not a row of the embedding.
    """
    rows = token_rows(model)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if rows is not None and largest >= rows:
        raise InputError(
            f"the tokenizer has ids up to {largest} but the model's embedding has {rows} rows: use the model's own "
            "tokenizer"
        )
    ours, theirs = tokenizer.bos_token_id, getattr(model.config, "bos_token_id", None)
    if ours is not None and isinstance(theirs, int) and ours != theirs:
        logger.warning(
            f"the tokenizer begins texts with id {ours} and the model's config says {theirs}: is it the model's own "
            "tokenizer?"
        )

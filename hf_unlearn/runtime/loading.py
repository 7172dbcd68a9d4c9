# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a trainer needs to know of a model: load it, pad for it, and see through its adapters."""

import logging

from ..errors import InputError


logger = logging.getLogger(__name__)


def load_model(model: str, processing_class=None, init_kwargs: dict | None = None):
    """A causal language model by name or folder, and its tokenizer (None when it has none and none is given).

    Raises:
        InputError: no such model, or not one that transformers can load.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, **(init_kwargs or {}))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"cannot load the model {model!r}: {first}") from error
    return loaded, processing_class or load_tokenizer(model, init_kwargs)


def load_tokenizer(model: str, init_kwargs: dict | None = None):
    """The tokenizer of a model by name or folder; None when it has none."""
    from transformers import AutoTokenizer

    # Of the same revision as the model, reached with the same rights.
    same = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code", "local_files_only")
    try:
        return AutoTokenizer.from_pretrained(model, **{k: v for k, v in (init_kwargs or {}).items() if k in same})
    except (OSError, ValueError):
        logger.info(f"{model} has no tokenizer: rows must hold input_ids")
        return None

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models and tokenizers by name or folder, and the id that pads their rows."""

import logging

from ..errors import InputError, first_line
from .hub import missing_folder


logger = logging.getLogger(__name__)


def load_model(model: str, processing_class=None, init_kwargs: dict | None = None):
    """A causal language model, of a name on the Hub or a folder, and its tokenizer; None when it has none.

    `processing_class` takes the tokenizer's place; `init_kwargs` are arguments of `from_pretrained`.

    Raises:
        InputError: no such model, or not one that transformers can load.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded = AutoModelForCausalLM.from_pretrained(model, **(init_kwargs or {}))
    except (OSError, ValueError) as error:
        raise _cannot_load(model, error) from error
    return loaded, processing_class or load_tokenizer(model, init_kwargs)


def load_tokenizer(model: str, init_kwargs: dict | None = None, *, required_for: str | None = None):
    """The tokenizer of a model, in the revision and with the rights of its `init_kwargs`; None when it has none.

    One that is `required_for` something, named in messages, pads with its end-of-sequence token where it has no other.

    Raises:
        InputError: a tokenizer is required, and the model has none or does not exist.
    """
    from transformers import AutoConfig, AutoTokenizer

    same = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code", "local_files_only")
    kwargs = {name: value for name, value in (init_kwargs or {}).items() if name in same}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, **kwargs)
    except (OSError, ValueError) as error:
        if required_for is None:
            logger.info(f"{model} has no tokenizer: rows must hold input_ids")
            return None
        try:
            AutoConfig.from_pretrained(model, **kwargs)
        except (OSError, ValueError) as absent:
            raise _cannot_load(model, absent) from absent
        raise InputError(
            f"{model} has no tokenizer: {required_for} needs the one it was trained with; save it beside the model"
        ) from error
    if required_for is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def padding_id(tokenizer, model=None) -> int:
    """The token id that fills short rows: the tokenizer's, else the model's, else the end of a sequence, else 0.

    Attention masks and labels of -100 hide it, so any id will do. Either of the two may be None.
    """
    config = getattr(model, "config", None)
    places = ((tokenizer, "pad_token_id"), (config, "pad_token_id"), (tokenizer, "eos_token_id"))
    ids = (getattr(owner, name, None) for owner, name in places)
    return next((number for number in ids if number is not None), 0)


def _cannot_load(model: str, error: Exception) -> InputError:
    if missing_folder(model):
        return InputError(f"cannot load the model: the folder {model} does not exist: correct the path")
    return InputError(f"cannot load the model {model!r}: {first_line(error)}")

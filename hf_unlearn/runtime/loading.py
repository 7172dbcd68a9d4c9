# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models and tokenizers by name or folder, and the id that pads their rows."""

import logging

from ..errors import InputError


logger = logging.getLogger(__name__)


def load_model(model: str, processing_class=None, init_kwargs: dict | None = None):
    """A causal language model and its tokenizer (`processing_class` where given; None when it has none).

    Args:
        model (`str`): a name on the Hub or a folder.
        processing_class (*optional*): the tokenizer to use in place of the model's own.
        init_kwargs (`dict`, *optional*): arguments of `from_pretrained`.

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
    """The tokenizer of a model; None when it has none and none is required.

    Args:
        model (`str`): a name on the Hub or a folder.
        init_kwargs (`dict`, *optional*): arguments with which the model is loaded; the tokenizer is looked for in the
            same revision, with the same rights.
        required_for (`str`, *optional*): what cannot do without a tokenizer, for the message. A tokenizer that is
            required pads with its end-of-sequence token where it has no padding token.

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
            f"{model} has no tokenizer: {required_for} needs the one that the model was trained with; save it beside "
            "the model"
        ) from error
    if required_for is not None and tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def padding_id(tokenizer, model=None) -> int:
    """The token id that fills short rows: the tokenizer's, else the model's, else the end of a sequence, else 0.

    Attention masks and labels of -100 hide it, so any id will do. Either of the two may be None.
    """
    config = getattr(model, "config", None)
    ids = (
        getattr(tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    )
    return next((number for number in ids if number is not None), 0)


def _cannot_load(model: str, error: Exception) -> InputError:
    return InputError(f"cannot load the model {model!r}: {str(error).strip().splitlines()[0]}")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models and tokenizers by name or folder, and the id that pads their rows."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import InputError, first_line
from .checkpoints import Shards, shorten
from .files import check_file, open_safetensors, read_json
from .folders import finish_move
from .hub import missing_folder


logger = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")
CLASSES, SPANS = "AutoModelForSequenceClassification", "AutoModelForQuestionAnswering"  # heads for rows
MOST = 2**40  # no number in a model's configuration is as large


def load_model(model: str, processing_class=None, init_kwargs: dict | None = None):
    """A causal language model, of a name on the Hub or a folder, and its tokenizer; None when it has none.

    `processing_class` takes the tokenizer's place; `init_kwargs` are arguments of `from_pretrained`.

    Raises:
        InputError: no such model, or not one that transformers can load.
    """
    from transformers import AutoModelForCausalLM

    if not Path(model).is_dir():
        with _loading(model):
            loaded = AutoModelForCausalLM.from_pretrained(model, **(init_kwargs or {}))
        return loaded, processing_class or load_tokenizer(model, init_kwargs)
    _check_folder(model)
    with _loading(model):
        loaded, about = AutoModelForCausalLM.from_pretrained(model, output_loading_info=True, **(init_kwargs or {}))
    if missing := sorted(about["missing_keys"]):
        raise InputError(
            f"the weights of {model} lack {shorten(missing)}, which would be random: download them again, or name a "
            "model whose weights are those of its config.json"
        )
    if unused := sorted(about["unexpected_keys"]):
        logger.warning(f"{model}: {len(unused)} tensors of its weights are no part of the model: {shorten(unused)}")
    return loaded, processing_class or load_tokenizer(model, init_kwargs)


def load_outline(model: str):
    """A model on the meta device, of the class and type that its configuration names, from that file alone.

    `model` is a name on the Hub, a folder, or a `config.json`. One whose configuration names no class is taken for a
    causal language model.

    Raises:
        InputError: no such configuration, or none that transformers can build a model of.
    """
    import transformers

    _check_folder(model)
    with _loading(model):
        config = transformers.AutoConfig.from_pretrained(model)
        named = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
                return named._from_config(config).eval()
            return transformers.AutoModelForCausalLM.from_config(config).eval()


def load_encoder(
    model: str, outputs: int | None = None, seed: int | None = None, *, head: str = CLASSES, meta: bool = False
):
    """An encoder with a head for rows, of a name on the Hub or a folder, in fp32 and eval mode.

    Args:
        outputs: of a head that is new, for a pretrained encoder without one; None: the model comes with its head.
        seed: that the new head is drawn from.
        head: the class of transformers that puts the head on.
        meta: on the meta device, from the configuration alone.

    Raises:
        InputError: no such model, weights that are missing beside those of a new head, or a head where a new one is
            wanted: it has been trained on something.
    """
    import transformers

    kind = getattr(transformers, head)
    sizes = {} if outputs is None else {"num_labels": outputs}
    _check_folder(model)
    with _loading(model):
        if meta:
            config = transformers.AutoConfig.from_pretrained(model, **sizes)
            with torch.device("meta"):
                return kind.from_config(config).eval()
        if seed is not None:
            transformers.set_seed(seed)
        with _quiet_loading():  # it would warn of the new head, which is wanted
            loaded, about = kind.from_pretrained(
                model,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=outputs is not None,
                **sizes,
            )
    body = f"{loaded.base_model_prefix}."
    missing = sorted(about["missing_keys"])
    # A pooler, which encoders that were pretrained without one lack, belongs to the head.
    lost = missing if outputs is None else [name for name in missing if name.startswith(body) and "pooler" not in name]
    if lost:
        raise InputError(f"the weights of {model} lack {shorten(lost)}, which would be random: name another model")
    if outputs is not None and not missing and not about["mismatched_keys"]:
        raise InputError(
            f"{model} has a head of {outputs} outputs already, which may know the rows: name the encoder without it"
        )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def load_tokenizer(model: str, init_kwargs: dict | None = None, *, required_for: str | None = None):
    """The tokenizer of a model, in the revision and with the rights of its `init_kwargs`; None when it has none.

    One that is `required_for` something, named in messages, pads with its end-of-sequence token where it has no other.

    Raises:
        InputError: a tokenizer is required, and the model has none or does not exist.
    """
    from transformers import AutoConfig, AutoTokenizer

    same = ("revision", "token", "cache_dir", "subfolder", "trust_remote_code", "local_files_only")
    kwargs = {name: value for name, value in (init_kwargs or {}).items() if name in same}
    _check_folder(model)
    try:
        with _loading(model):
            tokenizer = AutoTokenizer.from_pretrained(model, **kwargs)
    except InputError as error:
        if Path(model).is_dir() and any((Path(model) / name).exists() for name in TOKENIZER_FILES):
            raise  # it has one, which is damaged
        if required_for is None:
            logger.info(f"{model} has no tokenizer: rows must hold input_ids")
            return None
        with _loading(model):
            AutoConfig.from_pretrained(model, **kwargs)
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


def _check_folder(model: str, base: bool = False):
    """Refuse a local folder whose files cannot be true before transformers builds what they ask for.

    Raises:
        InputError: a configuration is no JSON, or names numbers of layers that its weights do not have; a safetensors
            file is cut short, or lies elsewhere; its files are half replaced (`finish_move`).
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    finish_move(folder)
    config = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            content = read_json(file, None if file.name in ("tokenizer.json", "vocab.json") else {})
            config = content if file.name == "config.json" else config
            below = content.get("base_model_name_or_path") if file.name == "adapter_config.json" and not base else None
            if isinstance(below, str) and "\0" not in below and Path(below).is_dir():
                _check_folder(below, base=True)
        elif file.exists() and not file.is_dir():
            check_file(file, inside=False)  # whoever opens a pipe waits for ever
    if (adapter := folder / "adapter_model.safetensors").exists():
        open_safetensors(adapter)
    if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    weights = Shards(folder, "model.safetensors")
    weights.headers(())  # reads those of all files
    tensors = len(weights.files)
    if (folder / "config.json").exists():
        for key, value in _numbers(config):
            if "layer" in key and value > tensors:
                raise InputError(f"{folder / 'config.json'}: {key} is {value}, and the weights are {tensors} tensors")
            if value > MOST:
                raise InputError(f"{folder / 'config.json'}: {key} is {value}, which is no model's")


def _numbers(config: dict) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


@contextlib.contextmanager
def _loading(model: str):
    """Turn whatever transformers, tokenizers and torch raise of files that they cannot take into an InputError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, InputError):
        raise
    except (Exception, RecursionError) as error:
        raise _cannot_load(model, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how a fault in Rust arrives
            raise
        raise _cannot_load(model, error) from error


@contextlib.contextmanager
def _quiet_loading():
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _cannot_load(model: str, error: BaseException) -> InputError:
    if missing_folder(model):
        return InputError(f"cannot load the model: the folder {model} does not exist: correct the path")
    cure = "" if Path(model).exists() else "; check the name, the connection and the access token"
    return InputError(f"cannot load the model {model!r}: {first_line(error).rstrip('.')}{cure}")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What a trainer needs to know of a model: load it, pad for it, and see through its adapters."""

import copy
import logging

import torch

from .data.collators import CausalCollator
from .deltas import base_tensors
from .dtensors import reshard, whole
from .errors import InputError


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


def default_collator(model, processing_class) -> CausalCollator:
    """Pads with the tokenizer's or the model's padding id; labels are -100 there, so any id will do."""
    pad = getattr(processing_class, "pad_token_id", None)
    for fallback in (getattr(model.config, "pad_token_id", None), getattr(processing_class, "eos_token_id", None), 0):
        pad = fallback if pad is None else pad
    return CausalCollator(pad)


def can_merge(model) -> bool:
    """Whether the adapters of a PEFT model are a change of its weights; prompts are none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return bool(layers) and not any(hasattr(layer, "cannot_merge") for layer in layers)


@torch.no_grad()
def merged_weights(model) -> dict[str, torch.Tensor]:
    """Weights of a PEFT model's tuned layers as merging its active adapters would leave them: {base name: fp32}.

    Collective for a sharded model.

    Raises:
        InputError: its adapter is none that can be merged (prompts).
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    merged = {}
    reshard(model)
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            # One layer at a time, in fp32: what merging would round away is part of the update.
            twin = copy.deepcopy(layer).float()
            twin.merge()
            tensors = twin.get_base_layer().named_parameters()
        elif isinstance(layer, ModulesToSaveWrapper):
            tensors = layer.modules_to_save[layer.active_adapters[0]].named_parameters()
        else:
            continue
        merged |= {f"{name}.base_layer.{key}": whole(tensor.detach()).float().cpu().clone() for key, tensor in tensors}
    if not merged:
        raise InputError("this adapter cannot be merged into weights, so there is no update to report: use LoRA")
    return base_tensors(merged)

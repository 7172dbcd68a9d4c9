# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The attention function that appends prompts, on transformers' attention interface."""

import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...errors import InputError


IMPLEMENTATION = "key_value_prompt"


@dataclass
class Prompts:
    """What a layer hands to the attention function through its module's keyword arguments."""

    keys: Tensor  # (heads, length, head size), or with a leading axis of samples
    values: Tensor  # likewise
    implementation: str  # the model's own attention, "sdpa" or "eager", which sees the longer keys and values
    used: bool = False  # set by the attention function: a module may drop its keywords, and so the prompts, in silence


def attention_forward(module: nn.Module):
    """The forward of a module that calls transformers' attention interface and hands on its keywords, or None."""
    forward = inspect.unwrap(type(module).forward)
    code = getattr(forward, "__code__", None)
    if code is None or "ALL_ATTENTION_FUNCTIONS" not in code.co_names or not code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    return forward


def prompted_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    key_value_prompts: Prompts,
    **kwargs,
):
    """Attention over [keys; p_K] and [values; p_V], every query seeing every prompt.

    Prompts come after the module has cached its keys and values, so they never enter the cache, and have no position.

    Args:
        query (`Tensor`): (B, heads, Q, D).
        key, value (`Tensor`): (B, key/value heads, K, D).
        attention_mask (`Tensor`, *optional*): True or 0 where a query sees a key, broadcasting to (B, heads, Q, K).
    """
    prompts = key_value_prompts
    prompts.used = True
    sdpa = prompts.implementation == "sdpa"
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if sdpa and attention_mask is None and causal and query.shape[2] > 1:
        # SDPA's own causal rule knows only keys that line up with the queries; cropped and written out as it does.
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        attention_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=key.device).tril()
    key, value = _append(key, prompts.keys, module), _append(value, prompts.values, module)
    length = prompts.keys.shape[-2]
    if attention_mask is not None:
        visible = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = F.pad(attention_mask, (0, length), value=visible)
    if kwargs.get("position_bias") is not None:
        kwargs["position_bias"] = F.pad(kwargs["position_bias"], (0, length))
    if sdpa:
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    else:
        attend = attention_forward(module).__globals__["eager_attention_forward"]
    return attend(module, query, key, value, attention_mask, **kwargs)


def _append(states: Tensor, prompts: Tensor, module: nn.Module) -> Tensor:
    if (prompts.shape[-3], prompts.shape[-1]) != (states.shape[1], states.shape[3]):
        raise InputError(
            f"{type(module).__name__} has {states.shape[1]} key/value heads of size {states.shape[3]}, prompts are "
            f"for {prompts.shape[-3]} of size {prompts.shape[-1]}: put it into exclude_modules"
        )
    if prompts.dim() == 4:
        # Attention over windows has several rows a sample, one sample after the other.
        prompts = prompts.repeat_interleave(len(states) // len(prompts), 0)
    return torch.cat([states, prompts.to(states).expand(len(states), -1, -1, -1)], 2)


AttentionInterface.register(IMPLEMENTATION, prompted_attention)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts appended to the keys and values of every attention block, on transformers' attention interface."""

import copy
import inspect
import zlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..errors import InputError
from .base import PromptConfig, UnmergeableLayer, UnmergeableTuner


IMPLEMENTATION = "key_value_prompt"


@dataclass
class KeyValuePromptConfig(PromptConfig):
    """Append learned keys p_K and values p_V in every attention block (Fast-NTK, arXiv:2312.14923, figure 1, right).

    Args:
        num_prompts (`int`, defaults to 10): Length of p_K and p_V, the paper's.
        init_std (`float`, defaults to 0.02): Standard deviation of the normal that they are drawn from.
        init_seed (`int`, defaults to 0): Seed of the draw, which also depends on the name of the block.
        target_modules (`list[str]` or `str`, *optional*): Names or a pattern of attention modules; all by default.
        exclude_modules (`list[str]` or `str`, *optional*): Names or a pattern of modules to leave alone.
        modules_to_save (`list[str]`, *optional*): Modules trained and saved too, as a rule the head: `["classifier"]`.

    Raises:
        InputError: no prompts, or a negative standard deviation.
    """

    num_prompts: int = 10
    init_std: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType.KEY_VALUE_PROMPT
        if self.num_prompts < 1:
            raise InputError(f"num_prompts must be at least 1, not {self.num_prompts}")


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


class KeyValuePromptLayer(nn.Module, UnmergeableLayer):
    """Runs an attention module with the prompts of the active adapters appended, in their order.

    The module reads its attention implementation from its config. While it is wrapped it has a shallow copy of that
    config, so the model's config, other models that share it and `set_attn_implementation` go on as before.
    """

    adapter_layer_names = ("key_value_prompt_keys", "key_value_prompt_values")
    other_param_names = ("key_value_prompt_initial_keys", "key_value_prompt_initial_values")
    cannot_merge = (
        "key/value prompts are inputs of attention, not a change of weights, and cannot be merged: keep the adapter, "
        "or unload() to get the base model"
    )

    def __init__(self, base_layer: nn.Module, name: str):
        super().__init__()
        self.base_layer, self.name = base_layer, name
        self.key_value_prompt_keys, self.key_value_prompt_values = nn.ParameterDict(), nn.ParameterDict()
        # Saved with the adapter: Fast-NTK linearises where training started.
        self.key_value_prompt_initial_keys = BufferDict(persistent=True)
        self.key_value_prompt_initial_values = BufferDict(persistent=True)
        self._active_adapter, self.merged_adapters = [], []
        self.model_config = base_layer.config
        base_layer.config = copy.copy(base_layer.config)
        self.train(base_layer.training)

    def update_layer(self, adapter_name: str, config: KeyValuePromptConfig):
        """Add an adapter: p_K and p_V (key/value heads, length, head size), drawn from N(0, init_std^2)."""
        heads, size = head_shape(self.base_layer)
        generator = torch.Generator().manual_seed((config.init_seed + zlib.crc32(self.name.encode())) % 2**63)
        for kind in ("keys", "values"):
            start = torch.randn(heads, config.num_prompts, size, generator=generator) * config.init_std
            getattr(self, f"key_value_prompt_{kind}")[adapter_name] = nn.Parameter(start)
            getattr(self, f"key_value_prompt_initial_{kind}")[adapter_name] = start.clone()
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def initial_parameters(self, adapter_name: str) -> dict[str, Tensor]:
        """The prompts that training started from, by the names of the tuned ones."""
        return {
            f"key_value_prompt_{kind}.{adapter_name}": getattr(self, f"key_value_prompt_initial_{kind}")[adapter_name]
            for kind in ("keys", "values")
        }

    def forward(self, *args, **kwargs):
        active = [name for name in self.active_adapters if name in self.key_value_prompt_keys]
        implementation = self.model_config._attn_implementation or "eager"
        if self.disable_adapters or not active:
            self._use(self.model_config._attn_implementation)
            return self.base_layer(*args, **kwargs)
        check_implementation(implementation, self.name, self.base_layer)
        self._use(IMPLEMENTATION)
        prompts = Prompts(
            torch.cat([self.key_value_prompt_keys[name] for name in active], -2),
            torch.cat([self.key_value_prompt_values[name] for name in active], -2),
            implementation,
        )
        output = self.base_layer(*args, key_value_prompts=prompts, **kwargs)
        if not prompts.used:
            raise InputError(
                f"{self.name} ({type(self.base_layer).__name__}) does not hand its keywords to the attention "
                "interface, so prompts have no effect: put it into exclude_modules"
            )
        return output

    def _use(self, implementation: str | None):
        if self.base_layer.config._attn_implementation_internal != implementation:
            self.base_layer.config._attn_implementation_internal = implementation

    def release(self):
        """The attention module leaves the wrapper with the config it came with."""
        self.base_layer.config = self.model_config

    def _get_base_layer_device_and_dtype(self, base_layer):
        weight = next(parameter for parameter in base_layer.parameters() if parameter.is_floating_point())
        return weight.device, weight.dtype

    def __getattr__(self, name):
        # Models ask their attention modules for things such as layer_idx.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def check_implementation(implementation: str, name: str, module: nn.Module):
    """Raise `InputError` for an attention that cannot take prompts."""
    eager = "eager_attention_forward" in attention_forward(module).__globals__
    if implementation != "sdpa" and not (implementation == "eager" and eager):
        raise InputError(
            f"{name} runs {implementation!r} attention, which takes no prompts: load the model with "
            "attn_implementation='sdpa'"
        )


def head_shape(module: nn.Module) -> tuple[int, int]:
    """(key/value heads, head size) of an attention module.

    Raises:
        InputError: it names neither as transformers' modules do.
    """
    sizes = [getattr(module, name, None) for name in ("head_dim", "attention_head_size", "key_value_proj_dim")]
    size = next((size for size in sizes if size), None)
    keys = next((getattr(module, name) for name in ("k_proj", "key", "k") if hasattr(module, name)), None)
    if size and isinstance(keys, nn.Linear):
        return keys.out_features // size, size
    # Fused projections (GPT-2, ModernBERT) do not show how many heads they have for keys.
    names = ("num_key_value_heads", "num_heads", "num_attention_heads")
    counts = [getattr(owner, name, None) for name in names for owner in (module, module.config)]
    heads = next((count for count in counts if count), None)
    if not size or not heads:
        raise InputError(f"{type(module).__name__} does not tell its key/value heads and their size: exclude it")
    return heads, size


class KeyValuePromptModel(UnmergeableTuner):
    """Wraps every attention module that goes through transformers' attention interface."""

    prefix = "key_value_prompt_"
    tuner_layer_cls = KeyValuePromptLayer
    targets = "attention on transformers' attention interface"

    @staticmethod
    def fits(module: nn.Module) -> bool:
        return attention_forward(module) is not None and hasattr(module, "config")

    def check_target(self, name: str, module: nn.Module):
        head_shape(module)
        layer = self.model.get_submodule(name)
        config = layer.model_config if isinstance(layer, BaseTunerLayer) else module.config
        check_implementation(config._attn_implementation or "eager", name, module)

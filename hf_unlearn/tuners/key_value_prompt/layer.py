# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""An attention module with prompts for its keys and values."""

import copy
import zlib

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import Tensor, nn

from ...errors import InputError
from ..base import UnmergeableLayer
from .attention import IMPLEMENTATION, Prompts, attention_forward
from .config import KeyValuePromptConfig


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

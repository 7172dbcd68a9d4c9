# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of a model's modules and parameters for a while: forwards, modes, which weights require gradients."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from .sharded import reshard


@contextlib.contextmanager
def replaced_forwards(forwards: Iterable[tuple[nn.Module, Callable]]):
    """Within the context every module of the pairs runs the given function as its `forward`; its own comes back."""
    before = [(module, vars(module).get("forward"), forward) for module, forward in forwards]
    for module, _, forward in before:
        module.forward = forward
    try:
        yield
    finally:
        for module, own, _ in before:
            del module.forward
            if own is not None:
                module.forward = own


@contextlib.contextmanager
def evaluation_mode(model, grad: bool = False):
    """eval() and (by default) no gradients inside; every module's own training flag afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.set_grad_enabled(grad):
            yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def trainable(model: nn.Module, parameters: Iterable[Tensor] = ()):
    """Inside, these parameters alone require gradients; every one's own flag afterwards, also after an error.

    Of a model sharded by FSDP2 the parameters are those in place on entry: `reshard` it before, and before leaving.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = set(map(id, parameters))
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextlib.contextmanager
def measuring(model: nn.Module, parameters: Iterable[Tensor] = ()):
    """Inside, in eval mode, a backward makes gradients of activations, and of these parameters; all comes back.

    Other weights are frozen: the graph begins where an activation is told to require gradients. Layers with gradient
    checkpointing are checkpointed all the same, non-reentrant whatever the user chose: reentrant checkpointing needs
    an input that requires gradients, and here the graph begins inside the layer.
    """
    reshard(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(trainable(model, parameters))
        # Before the flags are restored: the weights that FSDP2 has gathered are not the ones that were frozen.
        stack.callback(reshard, model)
        stack.enter_context(evaluation_mode(model, grad=True))
        stack.enter_context(checkpointed_in_eval_mode(model))
        yield


def is_peft(model: nn.Module) -> bool:
    """Whether a model is wrapped by PEFT, which is not imported to find out."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def model_device(model: nn.Module) -> torch.device:
    """Where inputs go, also under a device map: the device of the first weight that is not offloaded."""
    return next(parameter.device for parameter in model.parameters() if parameter.device.type != "meta")


@contextlib.contextmanager
def checkpointed_in_eval_mode(model):
    """Layers with gradient checkpointing are checkpointed in eval mode too, where transformers would not.

    Train mode for these layers alone is not the same: some of them (OPT) apply dropout in their own forward.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    known = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    layers = [layer for layer in known if layer.gradient_checkpointing]
    # No dropout runs, so no random state need be kept.
    saving = lambda layer: functools.partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    with replaced_forwards((layer, saving(layer)) for layer in layers):
        yield


def is_causal(model: nn.Module) -> bool:
    """Whether (B, T) labels are shifted by one, as transformers does for causal language models.

    Raises:
        InputError: an encoder-decoder model, whose two token grids this does not tell apart.
    """
    from transformers import PreTrainedModel

    model = model.get_base_model() if is_peft(model) else model
    if not isinstance(model, PreTrainedModel):
        return False
    if model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__} is an encoder-decoder; give a decoder or an encoder")
    # None stands for a class name that says nothing (GPT2LMHeadModel); transformers then takes the causal loss.
    return model.loss_type in (None, "ForCausalLM")


def takes_positions(model: nn.Module) -> bool:
    """Whether a decoder must be told the positions of rows that begin with padding.

    It counts from the row's beginning otherwise, where absolute positions (GPT-2) give a padded row another meaning.
    Models of RoBERTa's kind count from the padding id on and find positions by themselves.
    """
    import inspect

    config = getattr(model, "config", None)
    inner = model.get_base_model() if is_peft(model) else model
    takes = "position_ids" in inspect.signature(inner.forward).parameters
    by_itself = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
    return takes and not by_itself and not getattr(config, "is_encoder_decoder", False)


def positions_behind_padding(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with `position_ids` (B, T) that count real tokens from 0, where a row begins with padding.

    Other inputs, and those that have positions already, come back as they are.
    """
    mask = inputs.get("attention_mask")
    if mask is None or mask.dim() != 2 or "position_ids" in inputs or bool(mask[:, 0].all()):
        return dict(inputs)
    return {**inputs, "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch without its labels, on the model's device; images in the model's precision."""
    weight = next(model.parameters())
    return {
        name: value.to(weight.device, weight.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name != "labels"
    }

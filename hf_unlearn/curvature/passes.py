# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One pass over the data: forward, gradients at the outputs, backward; the same for every curvature."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from .batches import Batch, read_batch
from .capture import Capture
from .fisher import output_gradients
from .sharding import rank_and_size
from .targets import unwrap


def run_pass(
    model: nn.Module,
    dataloader: Iterable[Mapping],
    targets: Mapping[str, nn.Module],
    sums,
    *,
    fisher: str,
    seed: int,
    accelerator=None,
    description: str = "",
    progress: bool = True,
) -> Tensor:
    """Feed `sums` with every batch of this process; counts [sequences, predicted tokens] of this process.

    Each process iterates the same dataloader and takes the batches whose number is its rank modulo the number of
    processes; nothing is communicated here.
    """
    from tqdm.auto import tqdm

    rank, size = rank_and_size(accelerator)
    device = next(model.parameters()).device
    causal = is_causal(model)
    counts = torch.zeros(2, dtype=torch.long)
    first, body, head = 0, None, None
    bar = tqdm(dataloader, desc=description, unit="batch", disable=not progress or rank != 0)
    with Capture(model, targets, sums.on_input, sums.on_gradient) as capture, torch.enable_grad():
        for number, raw in enumerate(bar):
            start = first
            first += len(raw["labels"]) if "labels" in raw else 0
            if number % size != rank:
                continue
            batch = read_batch(raw, start, causal, device)
            if batch is None:
                continue
            if body is None:
                shifted = causal and len(batch.label_shape) == 2
                body, head = split_head(model, batch, targets) if shifted and fisher != "exact" else (model, None)
            sums.start(batch)
            with capture.recording():
                outputs = forward(body, batch.inputs, head is not None)
            if outputs.shape[:-1] != batch.label_shape:
                raise InputError(
                    f"the model gives outputs of shape {tuple(outputs.shape[:-1])} for labels of shape "
                    f"{tuple(batch.label_shape)}; curvature needs one output per label (no virtual prompt tokens)"
                )
            for gradient in output_gradients(outputs, head, batch, fisher, seed):
                outputs.backward(gradient, retain_graph=fisher == "exact")
            if not counts.any():
                capture.check_seen()
            counts += torch.tensor([len(batch.sequences), len(batch.labels)])
            del outputs
            sums.end()
    return counts


def is_causal(model: nn.Module) -> bool:
    """Whether (B, T) labels are shifted by one, as transformers does for causal language models.

    Raises:
        InputError: an encoder-decoder model, whose two token grids this does not tell apart.
    """
    from transformers import PreTrainedModel

    model = unwrap(model)
    if not isinstance(model, PreTrainedModel):
        return False
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder model; curvature needs a decoder or an encoder"
        )
    # None stands for a class name that says nothing (GPT2LMHeadModel); transformers then takes the causal loss.
    return model.loss_type in (None, "ForCausalLM")


def forward(body: nn.Module, inputs: Mapping, hidden: bool) -> Tensor:
    """Hidden states of a body, or logits of a model."""
    outputs = body(**inputs)
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.last_hidden_state if hidden else outputs.logits


def split_head(model: nn.Module, batch: Batch, targets: Mapping[str, nn.Module]):
    """(body, head) when the logits are exactly head(body's hidden states), else (model, None).

    Then logits can be made a few tokens at a time. Whether it holds (no soft-capping, scaling or prompt tokens) is
    tried on a few tokens rather than read from the configuration.
    """
    inner = unwrap(model)
    head, body = inner.get_output_embeddings(), inner.base_model
    if head is None or body is inner or head in targets.values():
        return model, None
    # The first real tokens of the first sequence: a whole one would cost as much as a batch on small data.
    tokens = batch.index[: min(8, batch.lengths[0])]
    one = {
        key: value[:1, tokens] if isinstance(value, Tensor) and value.shape[:2] == batch.shape else value
        for key, value in batch.inputs.items()
    }
    with torch.no_grad():
        whole, split = forward(model, one, False), head(forward(body, one, True))
    tolerance = 1e-2 if whole.dtype in (torch.bfloat16, torch.float16) else 1e-5
    same = whole.shape == split.shape and (whole - split).abs().max() <= tolerance * whole.abs().max()
    return (body, head) if same else (model, None)

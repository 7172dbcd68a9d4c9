# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Update of a run: what it changed, and whether the base model and that together are the model in memory."""

import contextlib
import itertools
import logging
import warnings
from collections.abc import Iterable

import torch

from ..deltas import UpdateDelta, delta_config
from ..errors import InputError, first_line
from ..objectives import logits_of
from ..optim import fp32_weights
from ..runtime.checkpoints import base_tensors, can_merge, merged_weights, tied_names, tuned_names
from ..runtime.modules import evaluation_mode, is_peft, model_inputs
from ..runtime.sharded import reshard, whole_on_cpu


logger = logging.getLogger(__name__)

# Rows of each side on which a saved update is tried.
TRIED = 2
# How far logits may be off, as a share of the largest: rounding of sums in another order, or to half precision.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


def moving_tensors(trainer) -> dict[str, torch.Tensor]:
    """What a run may change, by name: weights that require gradients, and the running statistics of BatchNorm."""
    moving = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    if trainer.method.own_update or is_peft(trainer.model):
        return moving
    for place, module in trainer.model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            moving |= {f"{place}.{name}": getattr(module, name) for name in ("running_mean", "running_var")}
    return moving


def merged_adapter(trainer) -> dict[str, torch.Tensor]:
    """Empty where what moves is compared as it is: no adapter, or one that changes no weights."""
    if not (is_peft(trainer.model) and can_merge(trainer.model)):
        return {}
    if trainer.method.own_update:
        tuned_names(trainer.model)  # which refuses what could not be saved, whatever the method changes
        return {}
    return merged_weights(trainer.model)


def changed_names(trainer) -> Iterable[str]:
    """The weights that a run may change, also by an adapter, by the base model's names."""
    if is_peft(trainer.model) and can_merge(trainer.model) and not trainer.method.own_update:
        return tuned_names(trainer.model)
    return trainer.base_weights


def update_of(trainer) -> UpdateDelta:
    """See `UnlearnTrainer.update_delta`."""
    about = {
        "base_model": trainer.model_id,
        "base_revision": trainer.base_revision,
        "method": type(trainer.method).__name__,
        "settings": trainer.method.settings(),
        "seed": trainer.args.seed,
        "tied": tied_names(trainer.model),
    }
    before = trainer.base_weights
    if trainer.method.own_update:
        return UpdateDelta(base_tensors(trainer.method.changes(trainer)), delta_config(base_tensors(before), **about))
    if trainer.merged_before:
        return UpdateDelta.between(trainer.merged_before, merged_adapter(trainer), **about)
    # An optimiser knows the parts of weights that FSDP2 may have put whole in their place.
    reshard(trainer.model)
    fp32 = fp32_weights(trainer.optimizer)
    named = itertools.chain(trainer.model.named_parameters(), trainer.model.named_buffers())
    now = {name: fp32.get(weight, weight) for name, weight in named if name in before}
    return UpdateDelta.between(before, whole_on_cpu(now) if trainer.is_sharded else now, **about)


def misfit(trainer, delta: UpdateDelta) -> str | None:
    """Why the base model and the update are not the model in memory, in a line; None where they are.

    Tried on a few rows of each side, in place and without a second model. A model that is spread over processes is
    not tried, nor one that does not run: a run that is done is not lost for that.
    """
    if trainer.is_sharded:
        return None
    sides = [rows for rows in (trainer.forget_dataset, trainer.retain_dataset) if rows is not None]
    rows = [side[number] for side in sides for number in range(min(TRIED, len(side)))]
    model = trainer.model
    batch = model_inputs(model, trainer.single_collator(rows))
    try:
        with evaluation_mode(model):
            wanted = logits_of(model(**batch), batch.get("attention_mask")).double()
            with _base_and_update(trainer, delta):
                gap = float((logits_of(model(**batch), batch.get("attention_mask")).double() - wanted).abs().max())
    except InputError as error:  # the update has no place in the base model
        return first_line(error)
    except Exception as error:
        logger.warning(f"the update could not be tried on rows ({first_line(error)}); delta/ is saved as it was made")
        return None
    largest = float(wanted.abs().max())
    share = TOLERANCES.get(next(model.parameters()).dtype, 1e-4)
    if gap <= share * max(largest, 1.0):
        return None
    return f"logits of the base model with the update differ by {gap:.3g} from those in memory (largest {largest:.3g})"


@contextlib.contextmanager
def _base_and_update(trainer, delta: UpdateDelta):
    model = trainer.model
    if not trainer.merged_before:
        # An adapter that is no change of weights, or one over weights that moved themselves, stays on.
        with trainer.weights_of_base(), delta.applied_to(model):
            yield
        return
    live = base_tensors(model)
    own = {name: live[name].clone() for name in trainer.merged_before}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Careful, disabling adapter layers")  # biases are put back here
        for name, tensor in trainer.merged_before.items():
            live[name].copy_(tensor)
        try:
            with model.disable_adapter(), delta.applied_to(model):
                yield
        finally:
            for name, tensor in own.items():
                live[name].copy_(tensor)

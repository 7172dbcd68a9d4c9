# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Methods with a setting `mask`: the mask of a run, what is told of it, and weights that it holds fixed."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ..optim import Part
from ..runtime.hub import public_name
from ..runtime.modules import trainable
from ..structure.mask import StructureMask
from .base import Method, Run
from .masking import check_mask, check_unfrozen, mask_of, planned_mask, tell_planned


class Masked(Method):
    """The part of a method that knows its `mask`; a method that has one names it among its own settings."""

    mask: StructureMask | Mapping | str | Path | None

    def __post_init__(self):
        super().__post_init__()
        check_mask(self.mask)
        self._mask: StructureMask | None = None

    def settings(self):
        # A mask of the model stands by its hash, so that a run with another one is another run; no local path does.
        if self._mask is not None:
            told = {name: getattr(self._mask, name) for name in ("hash", "sparsity", "share")} | {
                "chosen": self._mask.settings
            }
        elif isinstance(self.mask, StructureMask):
            told = {"hash": self.mask.hash}
        elif isinstance(self.mask, str | Path):
            told = {"of": public_name(self.mask)}
        else:
            told = None if self.mask is None else dict(self.mask)
        return super().settings() | {"mask": told}

    def prepare_mask(self, run: Run):
        """Take, load or choose the mask, on the weights as they are before the first step. Collective.

        Raises:
            InputError: a mask of another model, or of weights that the run may not change.
        """
        self._mask = None
        if self.mask is None:
            return
        model = run.accelerator.unwrap_model(run.model)
        self._mask = mask_of(self.mask, run, model)
        check_unfrozen(model, self._mask)

    def plan(self, model, stage):
        if self.mask is None:
            return super().plan(model, stage)
        mask = tell_planned(planned_mask(self.mask, model), chosen_later=isinstance(self.mask, Mapping))
        return [mask, *super().plan(model, stage)]


@contextlib.contextmanager
def masked_gradients(model: nn.Module, mask: StructureMask):
    """Inside, parameters of which the mask keeps nothing get no gradients, and the others none where it keeps nothing.

    So what clips or logs gradients sees those alone that count. Flags and hooks are as before afterwards.
    """
    chosen = {name: model.get_parameter(name) for name in mask.names}
    with contextlib.ExitStack() as stack:
        stack.enter_context(trainable(model, chosen.values()))
        for name, parameter in chosen.items():

            def cut(gradient: Tensor, name=name) -> Tensor:
                return mask.apply_(name, gradient.clone())

            stack.callback(parameter.register_hook(cut).remove)
        yield


def parts_of(mask: StructureMask) -> dict[str, Part]:
    """Name of a parameter -> the entries of it that an optimiser may change."""
    return {name: Part(*mask.kept(name), mask.elements.get(name)) for name in mask.names}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the first-order methods share: the original model's answers during a run, and how a paper is cited."""

import functools
import importlib.resources
import re

import torch
from torch import Tensor, nn

from ..objectives import logits_of
from ..runtime.modules import evaluation_mode
from ..runtime.sharded import is_sharded, placed_like, reshard, temporary_weights


class Reference:
    """The model as it is now, adapters included, for later: a copy of what may move, parameters and buffers."""

    def __init__(self, model: nn.Module):
        self.model = model
        moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        moving |= dict(model.named_buffers())
        self.tensors = {name: tensor.detach().clone() for name, tensor in moving.items()}

    def logits(self, inputs: dict) -> Tensor:
        """What the model said then, in evaluation mode and without a graph. Collective for a sharded model."""
        if not is_sharded(self.model):
            with evaluation_mode(self.model):
                outputs = torch.func.functional_call(self.model, self.tensors, kwargs=inputs)
            return logits_of(outputs, inputs.get("attention_mask"))
        # FSDP puts the gathered weights where a functional call puts its tensors, and the current ones would answer.
        reshard(self.model)
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        # Taken whole before the model was spread; each process needs its part alone.
        self.tensors.update({name: placed_like(tensor, named[name]) for name, tensor in self.tensors.items()})
        with temporary_weights(self.model, self.tensors), evaluation_mode(self.model):
            return logits_of(self.model(**inputs), inputs.get("attention_mask"))


@functools.cache
def cite(key: str) -> dict[str, str]:
    """`Method.paper` of an entry of `templates/papers.bib`: its title, arXiv id or place, and the entry."""
    text = (importlib.resources.files("hf_unlearn") / "templates" / "papers.bib").read_text(encoding="utf-8")
    entry = re.search(rf"^@article{{{key},\n.*?^}}", text, re.MULTILINE | re.DOTALL)[0]
    title, place = re.search(r"title = {(.*)}", entry)[1], re.search(r"journal = {(.*)}", entry)[1]
    return {"title": title, "id": place.removeprefix("arXiv preprint "), "bibtex": entry}

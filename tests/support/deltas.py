# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Models whose weights moved, and checkpoints, that tests of updates share."""

import copy

import torch


DOWN = "model.layers.0.mlp.down_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


def change(model, names=(DOWN, GATE), size=1e-3, seed=1):
    """A copy of the model whose named weights moved."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            weight = changed.get_parameter(name)
            weight += size * torch.randn(weight.shape, generator=generator).to(weight.dtype)
    return changed


def checkpoint(model, folder, **kwargs):
    """A saved model with files beside it that describe it as it is."""
    model.save_pretrained(folder, **kwargs)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("the base model's card")
    (folder / "pytorch_model.bin").write_text("other weights")
    return folder

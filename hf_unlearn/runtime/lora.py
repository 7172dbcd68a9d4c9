# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Low-rank adapter made from a change of weights: factors by singular values, written as PEFT reads them."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from .checkpoints import shorten
from .files import write_safetensors
from .folders import staged_folder


def low_rank(matrix: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The factors `(B, A)` of least rank with `|B A|^2 >= energy |matrix|^2`, and what they lack of |matrix|^2.

    By Eckart and Young (1936) no other matrices of that rank are nearer. Singular values are shared evenly, so both
    factors have the same scale.

    Args:
        matrix (`torch.Tensor`): of shape [m, n]; B is [m, rank] and A [rank, n], fp32. Zero gives rank 0.
        energy (`float`): share of the squared Frobenius norm to keep, above 0 and at most 1.
    """
    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    squares = s.double().square()
    kept, total = squares.cumsum(0), squares.sum()
    # Values that are rounding alone belong to no rank, whatever energy is asked for.
    real = int((s > s[0] * max(matrix.shape) * torch.finfo(torch.float32).eps).sum())
    rank = min(int((kept < energy * total).sum()) + 1, real)
    root = s[:rank].sqrt()
    lost = float(squares[rank:].sum()) if rank < real else 0.0
    return u[:, :rank] * root, root[:, None] * vh[:rank], lost


def save_lora(tensors: Mapping[str, torch.Tensor], model: nn.Module, folder: str | Path, energy: float) -> dict:
    """Write a LoRA adapter that changes `model` as adding `tensors` to its weights would, up to a share of energy.

    Every weight gets the least rank that holds its share; `lora_alpha` is the rank, so nothing is scaled. Memory: one
    decomposition beside the factors.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): {name in the model's state dict: change, of the weight's shape}.
        model (`nn.Module`): the base model; its layers' kinds are read, so it may be on the meta device.
        folder (`str` or `Path`): to make for the adapter; must not exist or be empty.
        energy (`float`): share of the sum of squares of all changes that the adapter holds, above 0 and at most 1.

    Returns:
        `{"lost": share of the sum of squares that is not in the adapter, "ranks": {module: rank}, "left_out": names of
        changes that no LoRA layer can hold (biases, norms, convolutions, fused experts)}`.

    Raises:
        InputError: `energy` outside its range; a tensor that the model lacks, or that is tied to another weight, whose
            layer LoRA would not change; what is left out exceeds what may be lost; a folder that holds files.
    """
    if not 0 < energy <= 1:
        raise InputError(f"energy={energy}: give the share of the update to keep, above 0 and at most 1")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an empty folder; choose another or remove it")
    if absent := [name for name in tensors if name not in model.state_dict()]:
        raise InputError(f"the model has no {shorten(absent)}: give the base model that the update was made for")
    squares = {name: float(tensor.double().square().sum()) for name, tensor in tensors.items()}
    total = sum(squares.values())
    if not total:
        raise InputError("the update is zero: there is nothing for an adapter to hold")
    layers = {name: _layer(model, name) for name in tensors}
    left_out = sorted(name for name, layer in layers.items() if layer is None and squares[name])
    outside = sum(squares[name] for name in left_out)
    # Summed over many terms, so energy 1 is met but for rounding.
    if outside > (1 - energy) * total * (1 + 1e-9):
        raise InputError(
            f"LoRA cannot hold {shorten(left_out)}, {100 * outside / total:.3g} % of the update: ask for an energy of "
            f"at most {1 - outside / total:.4g}, or publish the update itself"
        )
    share = min(1.0, energy * total / (total - outside))
    factors, ranks, lost = {}, {}, outside
    for name, layer in layers.items():
        if layer is None or not squares[name]:
            continue
        module = name.removesuffix(".weight")
        change = tensors[name]
        b, a, gone = low_rank(change if isinstance(layer, nn.Linear) else change.T, share)
        lost += gone
        ranks[module] = a.shape[0]
        part, end = ("lora_embedding_", "") if isinstance(layer, nn.Embedding) else ("lora_", ".weight")
        factors |= {f"base_model.model.{module}.{part}A{end}": a, f"base_model.model.{module}.{part}B{end}": b}
    _write(folder, model, factors, ranks)
    return {"lost": lost / total, "ranks": ranks, "left_out": left_out}


def _layer(model: nn.Module, name: str) -> nn.Module | None:
    """The layer whose weight this is, if LoRA can change it."""
    from transformers.pytorch_utils import Conv1D

    module, _, kind = name.rpartition(".")
    layer = model.get_submodule(module)
    if kind != "weight" or not isinstance(layer, nn.Linear | nn.Embedding | Conv1D):
        return None
    same = [other for other, weight in model.named_parameters(remove_duplicate=False) if weight is layer.weight]
    if len(same) > 1:
        raise InputError(
            f"{' and '.join(same)} are one tied weight, and LoRA on one of them leaves the other as it was: untie "
            "them, or publish the update itself"
        )
    return layer


def _write(folder: Path, model: nn.Module, factors: dict[str, torch.Tensor], ranks: dict[str, int]):
    from peft import LoraConfig, TaskType
    from transformers.pytorch_utils import Conv1D

    from .hub import public_name

    tasks = {"ForCausalLM": TaskType.CAUSAL_LM, "LMHeadModel": TaskType.CAUSAL_LM}
    tasks |= {"ForSequenceClassification": TaskType.SEQ_CLS, "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM}
    kind = type(model).__name__
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        # PEFT reads them as expressions: a dot in a name stands for itself.
        rank_pattern={f"^{module}$".replace(".", r"\."): rank for module, rank in ranks.items()},
        alpha_pattern={f"^{module}$".replace(".", r"\."): rank for module, rank in ranks.items()},
        target_modules=sorted(ranks),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(model.get_submodule(module), Conv1D) for module in ranks),
        task_type=next((task for end, task in tasks.items() if kind.endswith(end)), None),
        base_model_name_or_path=public_name(getattr(model.config, "_name_or_path", None)),
        inference_mode=True,
    )
    with staged_folder(folder) as building:
        write_safetensors(building / "adapter_model.safetensors", factors, {"format": "pt"})
        config.save_pretrained(building)

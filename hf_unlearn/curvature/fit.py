# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A fit from its first check to its last tensor: owners of the weights, block after block, pass after pass."""

import functools
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..runtime.files import sha256_json, sha256_tensor
from ..runtime.modules import model_device
from ..runtime.processes import Processes, own
from ..runtime.provenance import code_sha256
from ..runtime.sharded import whole
from ..version import __version__
from .batches import read_batch
from .costs import measured_stage
from .layout import make_layout, shared_inputs, tensor_weight
from .passes import Progress, data_digest, is_causal, run_pass
from .resume import FitCheckpoint, restore
from .targets import is_transposed, unwrap


NO_TOKENS = "no token to predict in the curvature data: the dataloader is empty or all labels are -100"


def run_fit(
    curvature,
    model: nn.Module,
    dataloader: Iterable[Mapping],
    targets: Mapping[str, nn.Module],
    *,
    fisher: str,
    seed: int,
    limit: int | None,
    checkpoint_dir: str | Path | None,
    checkpoint_every: int,
    show: bool,
):
    """Fill `curvature.tensors` and `curvature.metadata`; see `Curvature.fit`, whose arguments these are."""
    processes: Processes = curvature.processes
    checked = processes.size > 1 or checkpoint_dir is not None
    about, identity = own(processes, lambda: _identify(curvature, model, targets, fisher, seed, limit, checked))
    processes.agree(identity)
    curvature.tensors = {}
    curvature.metadata = {
        "kind": curvature.kind,
        "unit": "per predicted token",
        "fisher": fisher,
        "seed": seed,
        "targets": {
            name: {"shape": list(module.weight.shape), "transposed": is_transposed(module)}
            for name, module in targets.items()
        },
        "stages": {},
        "processes": processes.size,
        **about,
    }
    if not curvature.passes:
        curvature.metadata |= {"sequences": 0, "predicted_tokens": 0}
        curvature.fill(targets)
        return
    leaders = own(processes, lambda: _leaders(model, dataloader, targets))
    layout = make_layout(type(curvature), targets, leaders, processes.size, limit)
    for name, leader in leaders.items():
        curvature.metadata["targets"][name]["input"] = leader
    curvature.owners = {name: layout.owners[leader] for name, leader in leaders.items()} if processes.size > 1 else {}
    same_fit = sha256_json(identity | {"processes": processes.size})
    checkpoint = FitCheckpoint(checkpoint_dir, same_fit, processes, checkpoint_every)
    checkpoint.remove_others()
    at_stage, at_round = _position(checkpoint, dataloader)
    run = functools.partial(run_pass, model, dataloader, processes=processes, fisher=fisher, seed=seed, show=show)
    extents, stages = {}, itertools.count()
    for number, block in enumerate(layout.blocks, 1):
        of_blocks = f", block {number} of {len(layout.blocks)}" if len(layout.blocks) > 1 else ""
        members = {name for group in block for name in group.names}
        inside = {name: module for name, module in targets.items() if name in members}
        held = {name: module for name, module in inside.items() if curvature.holds(name)}
        earlier = set(curvature.tensors)
        for description, stage in zip(curvature.passes, stages):
            if stage < at_stage:
                progress = checkpoint.progress(stage, None)
                for key, tensor in checkpoint.load(stage)[0].items():
                    curvature.tensors[key] = tensor.to(targets[tensor_weight(key)].weight.device)
            else:
                rounds = at_round if stage == at_stage else 0
                run_one = functools.partial(
                    run, inside, leaders=layout.leaders, owners=layout.owners, description=f"{description}{of_blocks}"
                )
                progress = _run_stage(curvature, description, held, earlier, run_one, checkpoint, stage, rounds, show)
        extents |= {name: curvature.extent(name) for name in held}
        if len(layout.blocks) > 1:
            for key in set(curvature.tensors) - earlier:
                curvature.tensors[key] = curvature.tensors[key].cpu()
    curvature.metadata |= {
        "sequences": progress.sequences,
        "predicted_tokens": progress.tokens,
        "data_sha256": progress.digest,
    }
    for found in processes.gather(extents):
        for name, about in found.items():
            curvature.metadata["targets"][name] |= about
    checkpoint.remove()


def _run_stage(
    curvature, description, held, earlier, run, checkpoint, stage: int, rounds: int, show: bool
) -> Progress:
    """One pass and what is made of it, from `rounds` rounds on that are already in the checkpoint."""
    before, processes, progress = set(curvature.tensors), curvature.processes, Progress()
    with measured_stage(description, curvature.metadata["stages"]) as measured:
        leaders = {name: curvature.metadata["targets"][name]["input"] for name in held}
        sums = curvature.make_sums(description, held, leaders)
        if rounds:
            progress = checkpoint.progress(stage, rounds)
            restore(sums, *checkpoint.load(stage, rounds))
        of_block = [tensor.nbytes for key, tensor in curvature.tensors.items() if key not in earlier]
        measured.factor_bytes = sum(of_block) + sum(tensor.nbytes for tensor in sums.tensors().values())
        run(sums, progress=progress, after_round=functools.partial(checkpoint.after_round, stage, sums))
    if progress.tokens == 0:
        raise InputError(NO_TOKENS)
    processes.doing = f"the end of the {description} pass of a curvature fit"
    processes.share(lambda: curvature.take(sums, progress.tokens, show))
    new = {key: tensor for key, tensor in curvature.tensors.items() if key not in before}
    processes.share(lambda: checkpoint.finish(stage, new, progress))
    return progress


def _position(checkpoint: FitCheckpoint, dataloader) -> tuple[int, int]:
    """Where to go on: as far as the files of all processes reach, if the data is what it was. Collective."""
    stage, rounds = checkpoint.find()
    if (stage, rounds) == (0, 0):
        return 0, 0

    def same_data() -> bool:
        if rounds:
            found = checkpoint.progress(stage, rounds)
            if data_digest(dataloader, rounds * checkpoint.processes.size) != found.digest:
                return False
        return stage == 0 or data_digest(dataloader, None) == checkpoint.progress(stage - 1, None).digest

    if all(checkpoint.processes.share(same_data)):
        return stage, rounds
    checkpoint.remove()
    # Nobody writes until everybody has removed.
    checkpoint.processes.gather(None)
    return 0, 0


def _leaders(model: nn.Module, dataloader, targets) -> dict[str, str]:
    device, causal = model_device(model), is_causal(model)
    batch = next((batch for raw in dataloader if (batch := read_batch(raw, 0, causal, device)) is not None), None)
    if batch is None:
        raise InputError(NO_TOKENS)
    return shared_inputs(model, targets, batch.sample())


def _identify(curvature, model: nn.Module, targets, fisher, seed, limit, checked: bool) -> tuple[dict, dict]:
    """What tells this model from another, for the metadata; and what processes, and parts of one fit, must share."""
    import transformers

    for name, module in targets.items():
        if module.weight.is_meta:
            raise InputError(
                f"{name} is offloaded (on the meta device): load the model with a device_map that keeps the target "
                "layers on a device, or leave them out of target_modules"
            )
    inner = unwrap(model)
    config = inner.config.to_dict() if isinstance(inner, transformers.PreTrainedModel) else {}
    # Where the model came from, whether it was saved, and how it runs are not what it is.
    config = {
        key: value
        for key, value in config.items()
        if not key.startswith("_") and key not in ("architectures", "transformers_version", "dtype", "use_cache")
    }
    about = {
        "model_class": type(inner).__name__,
        "model_config_sha256": sha256_json(config),
        "weights_sha256": {name: sha256_tensor(whole(module.weight)) for name, module in targets.items()},
        "versions": {"hf_unlearn": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if not checked:
        return about, {}
    identity = {
        "code": [code_sha256(), about["versions"]],
        "settings": [curvature.kind, fisher, seed, limit, list(targets), about["model_class"], config],
        "weights": sha256_json([about["weights_sha256"], _checksums(model, targets)]),
    }
    return about, identity


def _checksums(model: nn.Module, targets) -> dict[str, tuple]:
    """Sums and norms of the weights that are no target: a hash of a large model would take as long as a pass."""
    chosen = {id(module.weight) for module in targets.values()}
    found = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in chosen and not parameter.is_meta:
            value = whole(parameter).detach()
            total, norm = value.sum(dtype=torch.float64), torch.linalg.vector_norm(value, dtype=torch.float64)
            found[name] = (tuple(value.shape), str(value.dtype), float(total), float(norm))
    return found

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fits of curvatures, from the first check to the last tensor."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from ..runtime.files import sha256_json, sha256_tensor
from ..runtime.modules import is_causal, model_device
from ..runtime.processes import Processes, own
from ..runtime.provenance import code_sha256
from ..runtime.sharded import whole
from ..version import __version__
from .batches import check_readable, read_batch
from .costs import measured_stage
from .fisher import FISHERS
from .layout import make_layout, parse_bytes, shared_inputs, tensor_weight
from .passes import Progress, data_digest, run_pass
from .resume import FitCheckpoint, restore
from .targets import Kept, Target, make_targets, unwrap


NO_TOKENS = "no token to predict in the curvature data: the dataloader is empty or all labels are -100"


class CurvatureFit:
    """The part of a `Curvature` that measures it: owners of the weights, block after block, pass after pass."""

    # A dataloader draws from torch's random state whenever it is read, and a resumed fit reads it more often.
    @torch.no_grad()
    @torch.random.fork_rng(devices=[])
    def fit(
        self,
        model: nn.Module,
        dataloader: Iterable[Mapping],
        *,
        target_modules: str | list[str] | None = None,
        kept: Kept | None = None,
        biases: bool = False,
        fisher: str = "sampled",
        seed: int = 0,
        accelerator=None,
        progress: bool = True,
        max_factor_memory: int | str | None = None,
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 100,
    ) -> "CurvatureFit":
        """Measure G on data. The model is left as it was found, and so is torch's random state.

        Args:
            model (`nn.Module`): whose weights are measured, where they are.
            dataloader (`Iterable[Mapping]`): yields dicts that the model takes: `input_ids`, `attention_mask`,
                `labels` (B, T) with -100 ignored, shifted for causal models as transformers does; `pixel_values` or
                `input_ids` and `labels` (B,) of classes or of a regression's values; or `input_ids` and the ends of
                spans, as `labels` (B, 2, 1) or `start_positions` and `end_positions`. Not prepared by an accelerator,
                and in the same order each time and on every process (a sampler that shuffles needs a seeded generator
                of its own).
            target_modules (`str` or `list[str]`, *optional*, defaults to `None`): MLP linears; see `select_targets`.
            kept (`Mapping[str, tuple[Tensor | None, Tensor | None]]`, *optional*, defaults to `None`): what a mask
                keeps: name of a weight -> (rows, columns), see `make_targets`. Nothing else is measured or held.
            biases (`bool`, *optional*, defaults to `False`): whether the biases of the targets are measured too, as
                weights (d_out, 1) with an input of 1. Their numbers are few in a `Diagonal`; in K-FAC and EK-FAC each
                has a factor as wide as its weight's.
            fisher (`str`, *optional*, defaults to `"sampled"`): "sampled": labels drawn from the model; "probe":
                random signs in place of a drawn label, at the same cost and a little more accurate; "exact": one
                backward per class and position, no randomness, for small models; "empirical": the data's own labels,
                not the Fisher but the usual shortcut. A regression is a normal distribution of variance 1 (G = J^T J),
                and a span's two ends are two predictions, each a softmax over the real tokens of its row.
            seed (`int`, *optional*, defaults to `0`): of the draws. They depend on it and on a sequence's place in the
                data alone. A second pass (EK-FAC) draws the same labels again.
            accelerator (`accelerate.Accelerator`, *optional*, defaults to `None`): with several processes each
                computes every n-th batch and owns the tensors of some weights; `fully_shard`ed models are taken too.
            progress (`bool`, *optional*, defaults to `True`): whether to show progress bars.
            max_factor_memory (`int` or `str`, *optional*, defaults to `None`): bytes, or a text such as "20GB", of
                factors, eigenvectors and eigenvalues that a process may hold on its device. What does not fit is
                measured in several blocks of layers, with passes over the data of their own, and each block then moves
                to the CPU. A decomposition needs three times the largest factor on top.
            checkpoint_dir (`str` or `Path`, *optional*, defaults to `None`): folder for what is done so far, removed
                at the end. The same fit (settings, weights, data, number of processes, version) that is killed and
                started again continues from there, to the same bits.
            checkpoint_every (`int`, *optional*, defaults to `100`): batches between writes of the factors; 0 for none.

        Raises:
            InputError: no data, labels all ignored, no or unsuitable target, a mask of other weights, a target that
                never runs, weights that share an input and exceed `max_factor_memory`, processes unlike in code,
                settings, weights or data.
            NumericalError: a factor is not finite; the message names it.
            ConnectionError: another process stopped.
        """
        processes = self.processes = Processes(accelerator)
        self.owners, limit = {}, parse_bytes(max_factor_memory)

        def checked_targets() -> dict[str, Target]:
            if fisher not in FISHERS:
                raise InputError(f"fisher must be one of {', '.join(FISHERS)}, not {fisher!r}")
            if isinstance(dataloader, Iterator):
                raise InputError("the dataloader can be read only once; pass a DataLoader or a list of batches")
            return make_targets(model, target_modules, kept, biases)

        targets = own(processes, checked_targets)
        checked = processes.size > 1 or checkpoint_dir is not None
        about, identity = own(processes, lambda: _identify(self.kind, model, targets, fisher, seed, limit, checked))
        processes.agree(identity)
        self.tensors = {}
        self.metadata = {
            "kind": self.kind,
            "unit": "per predicted token",
            "fisher": fisher,
            "seed": seed,
            "targets": {
                name: {
                    "shape": list(target.parameter.shape),
                    "kept": list(target.widths),
                    "kept_sha256": target.kept_sha256,
                    "transposed": target.transposed,
                }
                for name, target in targets.items()
            },
            "stages": {},
            "processes": processes.size,
            **about,
        }
        if not self.passes:
            self.metadata |= {"sequences": 0, "predicted_tokens": 0}
            self._hold_indices(targets)
            self.fill(targets)
            return self
        leaders = own(processes, lambda: _leaders(model, dataloader, targets))
        layout = make_layout(type(self), targets, leaders, processes.size, limit)
        for name, leader in leaders.items():
            self.metadata["targets"][name]["input"] = leader
        self.owners = {name: layout.owners[leader] for name, leader in leaders.items()} if processes.size > 1 else {}
        self._hold_indices(targets)
        same_fit = sha256_json(identity | {"processes": processes.size})
        checkpoint = FitCheckpoint(checkpoint_dir, same_fit, processes, checkpoint_every)
        checkpoint.remove_others()
        at_stage, at_round = _position(checkpoint, dataloader)
        run = functools.partial(
            run_pass, model, dataloader, layout=layout, processes=processes, fisher=fisher, seed=seed
        )
        extents, stages = {}, itertools.count()
        for number, block in enumerate(layout.blocks, 1):
            of_blocks = f", block {number} of {len(layout.blocks)}" if len(layout.blocks) > 1 else ""
            members = {name for group in block for name in group.names}
            inside = {name: target for name, target in targets.items() if name in members}
            held = {name: target for name, target in inside.items() if self.holds(name)}
            earlier = set(self.tensors)
            for description, stage in zip(self.passes, stages):
                if stage < at_stage:
                    done = checkpoint.progress(stage, None)
                    for key, tensor in checkpoint.load(stage)[0].items():
                        self.tensors[key] = tensor.to(targets[tensor_weight(key)].device)
                else:
                    rounds = at_round if stage == at_stage else 0
                    run_one = functools.partial(run, inside, description=f"{description}{of_blocks}", show=progress)
                    done = self._run_stage(description, held, earlier, run_one, checkpoint, stage, rounds, progress)
            extents |= {name: self.extent(name) for name in held}
            if len(layout.blocks) > 1:
                for key in set(self.tensors) - earlier:
                    self.tensors[key] = self.tensors[key].cpu()
        self.metadata |= {"sequences": done.sequences, "predicted_tokens": done.tokens, "data_sha256": done.digest}
        for found in processes.gather(extents):
            for name, about in found.items():
                self.metadata["targets"][name] |= about
        checkpoint.remove()
        return self

    def _hold_indices(self, targets: Mapping[str, Target]):
        """Put the kept rows and columns of this process's own weights among its tensors."""
        for name, target in targets.items():
            if self.holds(name):
                self.tensors |= {f"{side}.{name}": index.to(target.device) for side, index in target.index.items()}

    def _run_stage(self, description, held, earlier, run, checkpoint, stage: int, rounds: int, show: bool) -> Progress:
        """One pass and what is made of it, from `rounds` rounds on that are already in the checkpoint."""
        before, processes, progress = set(self.tensors), self.processes, Progress()
        with measured_stage(description, self.metadata["stages"]) as measured:
            leaders = {name: self.metadata["targets"][name]["input"] for name in held}
            sums = self.make_sums(description, held, leaders)
            if rounds:
                progress = checkpoint.progress(stage, rounds)
                restore(sums, *checkpoint.load(stage, rounds))
            of_block = [tensor.nbytes for key, tensor in self.tensors.items() if key not in earlier]
            measured.factor_bytes = sum(of_block) + sum(tensor.nbytes for tensor in sums.tensors().values())
            run(sums, progress=progress, after_round=functools.partial(checkpoint.after_round, stage, sums))
        if progress.tokens == 0:
            raise InputError(NO_TOKENS)
        processes.doing = f"the end of the {description} pass of a curvature fit"
        processes.share(lambda: self.take(sums, progress.tokens, show))
        new = {key: tensor for key, tensor in self.tensors.items() if key not in before}
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
    check_readable(model, batch)
    return shared_inputs(model, targets, batch.sample())


def _identify(kind: str, model: nn.Module, targets, fisher, seed, limit, checked: bool) -> tuple[dict, dict]:
    """What tells this model from another, for the metadata; and what processes, and parts of one fit, must share."""
    import transformers

    for name, target in targets.items():
        if target.parameter.is_meta:
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
        "weights_sha256": {name: sha256_tensor(whole(target.parameter)) for name, target in targets.items()},
        "versions": {"hf_unlearn": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }
    if not checked:
        return about, {}
    kept = {name: target.kept_sha256 for name, target in targets.items()}
    identity = {
        "code": [code_sha256(), about["versions"]],
        "settings": [kind, fisher, seed, limit, kept, about["model_class"], config],
        "weights": sha256_json([about["weights_sha256"], _checksums(model, targets)]),
    }
    return about, identity


def _checksums(model: nn.Module, targets) -> dict[str, tuple]:
    """Sums and norms of the weights that are no target: a hash of a large model would take as long as a pass."""
    chosen = {id(target.parameter) for target in targets.values()}
    found = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in chosen and not parameter.is_meta:
            value = whole(parameter).detach()
            total, norm = value.sum(dtype=torch.float64), torch.linalg.vector_norm(value, dtype=torch.float64)
            found[name] = (tuple(value.shape), str(value.dtype), float(total), float(norm))
    return found

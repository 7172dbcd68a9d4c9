# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Base classes of the tuners: targets found by type, layers wrapped and unwrapped."""

import re
from abc import abstractmethod
from dataclasses import dataclass

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError


@dataclass
class PromptConfig(PeftConfig):
    """Settings that all prompts have: how they are drawn, and the modules meant."""

    init_std: float = 0.0
    init_seed: int = 0
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.init_std >= 0:
            raise InputError(f"init_std must not be negative, not {self.init_std}")


class TypedTunerLayer(BaseTunerLayer):
    """A module, wrapped with its name in the model, that knows what its parameters are in the pretrained model."""

    @abstractmethod
    def initial_parameters(self, adapter_name: str) -> dict[str, Tensor]:
        """Values of an adapter's parameters in the pretrained model, by their names in this layer."""

    def release(self):
        """Called when the base layer leaves the wrapper."""


class TypedTuner(BaseTuner):
    """A tuner that finds the modules to wrap by what they are; `target_modules` may narrow them down.

    Subclasses set `prefix`, `tuner_layer_cls`, `targets` (the words for them in messages) and define `fits`.
    """

    target_module_mapping = {}
    targets: str

    @staticmethod
    @abstractmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module of the base model can be wrapped."""

    def candidates(self) -> dict[str, nn.Module]:
        """Modules of the base model that fit, by name; those that are wrapped already by the name of their layer."""
        found, inside = {}, ()
        for name, module in self.model.named_modules():
            if name.startswith(inside):
                continue
            if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
                inside += (name + ".",)
            if isinstance(module, BaseTunerLayer):
                module = module.get_base_layer()
            if self.fits(module):
                found[name] = module
        return found

    def check_target(self, name: str, module: nn.Module):
        """Raise `InputError` for a module that fits by type and still cannot be tuned."""

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        candidates = self.candidates()
        kind = type(self.model).__name__
        if not candidates:
            raise InputError(f"{kind} has no {self.targets}: choose an adapter for what it has")
        example = next(iter(candidates))
        if peft_config.target_modules is None:
            # A list would also match by suffix ("bn1" is the end of "layer1.0.bn1"); a pattern matches whole names.
            peft_config.target_modules = "|".join(map(re.escape, self.default_targets(candidates)))
        names = [name for name, _ in self.model.named_modules() if name]
        targets = peft_config.target_modules
        for target in [] if isinstance(targets, str) else targets:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise InputError(
                    f"{kind} has no module {target} of target_modules: leave it out for all {self.targets}"
                )
        # A pattern such as ".*" reaches into layers that are wrapped already; PEFT skips what is inside them.
        wrapped = tuple(f"{name}." for name, m in self.model.named_modules() if isinstance(m, BaseTunerLayer))
        matched = [n for n in names if check_target_module_exists(peft_config, n) and not n.startswith(wrapped)]
        if not matched:
            raise InputError(
                f"target_modules, exclude_modules and modules_to_save leave no module of {kind}: name {self.targets} "
                f"such as {example}"
            )
        for name in matched:
            if name not in candidates:
                found = type(self.model.get_submodule(name)).__name__
                raise InputError(f"{name} is a {found}; target_modules must name {self.targets} ({example})")
            self.check_target(name, candidates[name])
        return peft_config

    def default_targets(self, candidates: dict[str, nn.Module]) -> list[str]:
        """Names of those candidates that are wrapped when no `target_modules` are given: all."""
        return list(candidates)

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ):
        wrapped = isinstance(target, self.tuner_layer_cls)
        if isinstance(target, BaseTunerLayer) and not wrapped:
            raise InputError(f"{current_key} carries an adapter of another type: unload that first")
        layer = target if wrapped else self.tuner_layer_cls(target, current_key)
        layer.update_layer(adapter_name, peft_config)
        layer.set_adapter(layer.active_adapters or [adapter_name], inference_mode=peft_config.inference_mode)
        if not wrapped:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent, child_name, new_module, child):
        # The one of PEFT reads `.weight` of what it puts back, which attention modules do not have.
        if isinstance(child, self.tuner_layer_cls) and not isinstance(new_module, BaseTunerLayer):
            child.release()
        setattr(parent, child_name, new_module)


class UnmergeableLayer(TypedTunerLayer):
    """A layer whose adapters are no change of weights: `merge` says so."""

    # Per-sample Jacobians may give the layer its parameters with a leading axis of samples.
    batched_parameters = True
    cannot_merge: str

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None):
        raise InputError(self.cannot_merge)

    def unmerge(self):
        raise InputError(self.cannot_merge)


class UnmergeableTuner(TypedTuner):
    """A tuner whose adapters are no change of weights, beside a backbone that stays as it is.

    Batch normalisation of the backbone runs on its running statistics in training too: otherwise they would move, be
    saved nowhere, and a reloaded adapter would give other outputs. (Only where the tuner wraps the model, as in a
    `PeftModel`; adapters that transformers' `load_adapter` injects leave nobody to do it.)
    """

    def train(self, mode: bool = True):
        super().train(mode)
        for module in self.model.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str):
        self.train(model.training)

    def _check_merge_allowed(self):
        raise InputError(self.tuner_layer_cls.cannot_merge)

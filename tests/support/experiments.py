# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Experiments of seconds: what their YAML says, and the recipes called in this process."""

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import yaml

from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.settings import Experiment, make_experiment


ROOT = Path(__file__).resolve().parents[2]
RECIPES, CONFIGS = ROOT / "recipes", ROOT / "recipes" / "configs"

TOFU = {
    "title": "a problem of seconds",
    "seed": 0,
    "data": {"source": "synthetic", "authors": 4, "forget_authors": 1, "questions_per_author": 6},
    "model": {"scratch": {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "layers": 1, "epochs": 1}},
    "evaluation": {"max_new_tokens": 3, "sweep_rows": 6},
    "arguments": {"per_device_train_batch_size": 6, "use_cpu": True},
    "methods": [
        {
            "label": "one step",
            "method": "kfade",
            "settings": {"curvature": "kfac", "damping": 1e-5},
            "search": {"step_norm": [0.01, 0.05]},
        },
        {"label": "two steps", "method": "kfade", "settings": {"steps": 2}, "search": {"step_norm": [0.02]}},
        {
            "label": "GradDiff",
            "method": "first_order",
            "settings": {"objective": "grad_diff"},
            "search": {"learning_rate": [1e-3]},
            "epochs": 2,
        },
    ],
}


def changed(config: Mapping, **sections) -> dict:
    """A copy with other sections; those that are None are left out."""
    config = copy.deepcopy(dict(config)) | sections
    return {name: section for name, section in config.items() if section is not None}


def experiment(config: Mapping, **sections) -> Experiment:
    """The experiment of a mapping, with other sections."""
    return make_experiment(changed(config, **sections), KINDS)


def write_config(path: Path, config: Mapping) -> Path:
    path.write_text(yaml.safe_dump(dict(config)))
    return path


def load_recipe(name: str):
    """The module of a recipe, which is no package's."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_recipe(name: str, *arguments) -> int:
    """The exit code of a recipe, run in this process."""
    try:
        load_recipe(name).main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        return stopped.code or 0
    return 0

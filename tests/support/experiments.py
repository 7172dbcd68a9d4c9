# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Experiments of seconds: what their YAML says, and the recipes called in this process."""

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import yaml

from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.search import Search
from hf_unlearn.experiments.settings import Experiment, make_experiment, override, read_yaml
from tests.support.models import make_bert


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

WMDP = {
    "title": "two hazards of seconds",
    "problem": "wmdp",
    "seed": 0,
    "data": {
        "source": "hazards",
        "length": 96,
        "hazards": {"items": 4, "general_items": 2, "documents": 2, "prose": 6, "exchanges": 6, "instructions": 12},
        "stages": [
            {"name": "first", "task": "toxins", "forget": {"toxins-forget": None}, "retain": {"general": None}},
            {
                "name": "second",
                "task": "intrusion",
                "forget": {"intrusion-forget": None},
                "retain": {"intrusion-retain": None, "general": None},
            },
        ],
    },
    "model": {"scratch": {"vocab_size": 500, "hidden_size": 48, "intermediate_size": 96, "layers": 2, "epochs": 12}},
    "evaluation": {
        "general": "general",
        "completions": 6,
        "search_completions": 3,
        "max_new_tokens": 4,
        "relearning": {
            "attacks": {"benign": {"general": 6}},
            "methods": ["RMU"],
            "steps": 4,
            "eval_steps": 2,
            "batch_size": 2,
            "learning_rates": [1e-3],
        },
    },
    "arguments": {"per_device_train_batch_size": 8, "use_cpu": True},
    "methods": [
        {
            "label": "margin",
            "method": "kfade",
            "settings": {"objective": "margin", "damping": 1e-6, "steps": 2},
            "search": {"step_norm": [[0.02, 0.05]]},
        },
        {
            "label": "RMU",
            "method": "rmu",
            "stages": "together",
            "settings": {"layer": 1, "retain_weight": 10.0},
            "search": {"learning_rate": [1e-3]},
            "epochs": 2,
        },
    ],
}

# Fast-NTK's protocol with every part that it has.
CLASSES = read_yaml(None, "fast_ntk_demo.yaml") | {
    "seeds": [0, 1],
    "model": {
        "config": {"model_type": "cifar_resnet", "depth": 8, "width": 4, "image_size": 8},
        "pretrain": {"train": "digits:train", "per_class": 6, "epochs": 2, "learning_rate": 5.0e-3, "batch_size": 32},
        "new_head": True,
    },
    "tuning": {"epochs": 8, "learning_rate": 2.0e-2, "batch_size": 20},
    "evaluation": {"relearning": {"learning_rate": 1e-2, "max_epochs": 3}, "probe": True},
    "methods": [
        {
            "label": "Max Loss",
            "method": "first_order",
            "settings": {"objective": "max_loss"},
            "search": {"learning_rate": [0.01]},
            "epochs": 3,
        },
        {
            "label": "Random Label",
            "method": "first_order",
            "settings": {"objective": "random_label"},
            "search": {"learning_rate": [0.01]},
            "epochs": 2,
        },
        {"label": "Fast-NTK", "method": "fast_ntk", "search": {"ridge": [0.1]}},
    ],
}
CLASSES["data"] |= {"per_class": [4], "holdout_per_class": 5}
# The smallest run of it: one method, one candidate, no relearning, no probe, random weights.
ONE_CLASS_LINE = CLASSES | {
    "seeds": [0],
    "model": {"config": {"model_type": "cifar_resnet", "depth": 8, "width": 2, "image_size": 8}},
    "tuning": {"epochs": 3, "learning_rate": 2e-2, "batch_size": 20},
    "evaluation": {},
    "methods": CLASSES["methods"][-1:],
}


# SPE-Unlearn's protocol on the embedded reviews.
GLUE = {
    "title": "reviews of seconds",
    "problem": "glue",
    "seed": 0,
    "data": {"source": "reviews", "forget": 12, "reviews": {"train": 60, "test": 40}, "max_length": 32},
    "model": {"scratch": {"hidden_size": 32, "intermediate_size": 32, "layers": 1, "heads": 2}},
    "tuning": {"epochs": 25, "learning_rate": 3e-3, "batch_size": 20},
    "arguments": {"per_device_train_batch_size": 12, "use_cpu": True},
    "methods": [
        {
            "label": "FT",
            "method": "first_order",
            "settings": {"objective": "finetune"},
            "search": {"learning_rate": [1e-3]},
            "epochs": 2,
        },
        {
            "label": "one step",
            "method": "kfade",
            "settings": {"curvature": "ekfac", "damping": 1e-4, "target_modules": ".*"},
            "search": {"step_norm": [0.01, 0.3]},
        },
    ],
}

# The same on the embedded passages.
SQUAD = {
    **GLUE,
    "title": "passages of seconds",
    "problem": "squad",
    "data": {
        "source": "passages",
        "forget": 12,
        "passages": {"train": 60, "test": 40},
        "max_length": 40,
        "stride": 8,
    },
    "arguments": {**GLUE["arguments"], "kl_rows": 20},
    "methods": [
        {"label": "SO", "method": "spe", "settings": {"sparsity": 0.0}, "search": {"kl_budget": [0.01, 0.1]}},
        *GLUE["methods"],
    ],
}


def changed(config: Mapping, **keys) -> dict:
    """A copy with other sections, or with `data__forget=...` other keys of one; those that are None are left out."""
    return override(copy.deepcopy(dict(config)), {name.replace("__", "."): value for name, value in keys.items()})


def experiment(config: Mapping, **keys) -> Experiment:
    """The experiment of a mapping, `changed`."""
    return make_experiment(changed(config, **keys), KINDS)


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


def kill_in_the_second_search(monkeypatch) -> list[str]:
    """Let the second search that begins be interrupted; the labels of all that begin, as they do."""
    searches, run = [], Search.run

    def killed(self):
        searches.append(self.line.label)
        if len(searches) == 2:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Search, "run", killed)
    return searches


def saved_encoder(folder: Path, tokenizer, head: str | None = None) -> Path:
    """A folder with a tiny pretrained encoder and its tokenizer; with a `head` of `make_bert` as tuned on rows."""
    model = make_bert(head or "classes", vocab_size=len(tokenizer), hidden_dropout_prob=0.0)
    (model if head else model.bert).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

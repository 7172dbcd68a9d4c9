# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of tables of every kind, and a table of attacks, as reports get them."""

import functools

import torch

from hf_unlearn import UpdateDelta
from hf_unlearn.evaluation.relearn import AttackTable, attack_table
from hf_unlearn.report.vocabulary import GlueVocabulary
from tests.support.models import make_llama
from tests.support.trainers import make_rows


def tofu_row(method, p, kept=0.9, kl=0.1, **more):
    return {
        "method": method,
        "forget_quality": p,
        "ks_statistic": 0.2,
        "n": 80,
        "model_utility": 0.6,
        "forget_probability": 0.3,
        "retain_probability": kept,
        "retain_kl": kl,
        "seconds": 12.34,
        "peak_memory_mb": 812.6,
        "settings": {"steps": 4, "step_norm": 0.004},
        **more,
    }


TOFU_ROWS = [
    tofu_row("original", 3e-14, 0.8, 0.0, seconds=None, peak_memory_mb=None),
    tofu_row("retrained", 1.0, 0.82, 0.2),
    tofu_row("ekfac", 0.33, 0.76, 0.03125),
    tofu_row("ascent <b>", 0.0, 0.04, 4.2, note="never reached 0.05 & more"),
    tofu_row("simnpo", None, ks_statistic=None, n=None, note="not scored"),
]


def task_row(method, toxins, general, kl, **more):
    lost = {"toxins": (0.85 - toxins) / 0.6}
    return {
        "method": method,
        "accuracy": {"toxins": toxins, "general": general},
        "stderr": {"toxins": 0.03, "general": 0.02},
        "lost": lost,
        "general_loss": 100 * (0.95 - general),
        "kl": kl,
        "kl_interval": [0.9 * kl, 1.1 * kl],
        **more,
    }


TASK_ROWS = [
    task_row("original", 0.85, 0.95, 0.0),
    task_row("kfade", 0.31, 0.93, 0.02, settings={"step_norm": [0.002, 0.005]}),
    task_row("npo", 0.28, 0.94, 0.3),
    task_row("ga", 0.25, 0.4, 2.5),
]


def class_row(method, size, seed, retain, forget, holdout, epochs, **more):
    numbers = {"retain": retain, "forget": forget, "holdout": holdout, "relearning_epochs": epochs}
    return {"method": method, "per_class": size, "seed": seed, **numbers, "seconds": 1.0, **more}


# Two sizes, two seeds; Max Loss keeps too little of D_r with one of them.
CLASS_ROWS = [
    row
    for size in (100, 500)
    for seed in (0, 1)
    for row in (
        class_row("Full", size, seed, 99.0 + seed, 98.0, 90.0, None),
        class_row("Max Loss", size, seed, 97.0 - 2 * seed, 0.0, 70.0 + seed, 4 + seed, settings={"rate": 0.1 + seed}),
        class_row("Fast-NTK, at w0", size, seed, 98.5, 1.0, 81.0, None if (size, seed) == (500, 1) else 8),
        class_row("Retrain", size, seed, 99.0, 0.0, 82.0, 10),
        {
            "method": "probe: Pre-trained",
            "per_class": size,
            "seed": seed,
            "retain": 95.0,
            "forget": 94.0,
            "holdout": 93.0,
        },
    )
]


@functools.cache
def attacks() -> AttackTable:
    """Attacks on one model that an update changed and one that it did not; what is measured means nothing."""
    torch.manual_seed(1)
    updates = {
        name: UpdateDelta({"model.layers.1.mlp.down_proj.weight": scale * torch.randn(16, 24)})
        for name, scale in (("kfade", 0.5), ("none", 0.0))
    }

    def evaluate(model):
        weight = model.model.layers[1].mlp.down_proj.weight
        return {"bio": weight.abs().mean().item(), "general": weight.norm().item()}

    corpora = {"benign": make_rows(5, 8), "forget": make_rows(6, 3)}
    settings = {"steps": 2, "batch_size": 3, "eval_steps": 1, "learning_rates": (1e-3, 1e-2)}
    return attack_table(make_llama(), updates, corpora, evaluate=evaluate, **settings)


def glue_row(method, unlearning, remaining, testing, membership, seconds=None, **more):
    """A row of an encoder beside a retrained model of 78.0, 99.5, 79.6 and 0.77."""
    goals = {"unlearning": 78.0, "remaining": 99.5, "testing": 79.6, "membership": 0.77}
    row = {"unlearning": unlearning, "remaining": remaining, "testing": testing, "membership": membership}
    row |= {f"retrained_{key}": goal for key, goal in goals.items()}
    row |= {"method": method, "metric": "accuracy", "distance": 0.2, "total_variation": 0.2, "seconds": seconds}
    row |= {"population_auc": 0.55, "population_interval": [0.4, 0.7], "population_tpr": 0.0}
    row |= {"scores": {"unlearning accuracy": unlearning / 100}, "peak_memory_mb": None, "settings": {}}
    return row | {"gap": GlueVocabulary().gap(row)} | more


GLUE_ROWS = [
    glue_row("original", 100.0, 99.9, 78.4, 1.0, 44.0),
    glue_row("retrained", 78.0, 99.5, 79.6, 0.77, 40.0),
    glue_row("retrained again", 80.0, 99.4, 79.0, 0.79, 41.0),
    glue_row("FT", 100.0, 100.0, 78.4, 1.0, 20.0),
    glue_row("EK-FAC", 80.0, 98.0, 77.0, 0.75, 4.0),
]

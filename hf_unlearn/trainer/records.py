# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What is told of a finished request: to the card, and to the log of requests."""

import torch

from ..data.rows import fingerprint_rows
from ..deltas import UpdateDelta
from ..report.loading import Loading
from ..runtime.files import sha256_tensors
from ..runtime.provenance import library_versions


def card_context(trainer, delta: UpdateDelta) -> dict:
    """What `report.card.render_card` is given of a run."""
    cost, tokenizer = trainer.cost, trainer.processing_class is not None
    return {
        "loading": Loading.of(trainer.model, tokenizer=tokenizer, own_update=trainer.method.own_update),
        "method": trainer.method.label,
        "repo_id": trainer.args.hub_model_id,
        "base_model": trainer.model_id,
        "base_revision": trainer.base_revision,
        "settings": trainer.method.settings(),
        "seed": trainer.args.seed,
        "paper": trainer.method.paper,
        "forget_rows": len(trainer.forget_dataset),
        "forget_sha256": fingerprint_rows(trainer.forget_dataset),
        "unlearned": {"seconds": cost.get("seconds"), "peak_memory_mb": cost.get("peak_memory_mb")},
        "delta": {"norm": delta.norm(), "tensors": len(delta.tensors), "sha256": delta.sha256(torch.bfloat16)},
        "environment": library_versions(),
    }


def request_record(trainer) -> dict:
    """What `unlearning_log.jsonl` says of a run: method, rows, model, the last value of every metric, cost."""
    history = trainer.state.log_history
    return {
        "method": trainer.method.label,
        "settings": trainer.method.settings(),
        "model": trainer.model_id,
        "base_weights_sha256": sha256_tensors(trainer.base_weights),
        "forget_rows": len(trainer.forget_dataset),
        "forget_sha256": fingerprint_rows(trainer.forget_dataset),
        "metrics": {key: value for entry in history for key, value in entry.items() if key != "step"},
        "cost": trainer.cost,
        **trainer.method.account(),
    }

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What is told of a finished request: to the card, and to the log of requests."""

from collections.abc import Mapping, Sequence

import torch

from ..data.rows import fingerprint_rows
from ..deltas import SAVED_DTYPE, UpdateDelta
from ..errors import InputError
from ..methods.base import Method
from ..report.loading import Loading
from ..runtime.files import sha256_tensors
from ..runtime.hub import model_license
from ..runtime.provenance import environment, library_versions
from .measures import answers, before_and_after


# What a user may say of a request for its card, and of which type each is.
DESCRIBED = {"forget": str, "retain": str, "license": str, "language": str, "datasets": list, "limits": list}
PROMPTS = ("forgotten", "kept")


def check_description(describe: str | Mapping | None, tokenizer=None) -> dict:
    """What a user says of a request, as a dict: plain words are those on what is removed.

    Raises:
        InputError: an unknown key, a value of another type, or prompts without a tokenizer.
    """
    described = {"forget": describe} if isinstance(describe, str) else describe or {}
    if not isinstance(described, Mapping):
        kind = type(describe).__name__
        raise InputError(f"describe is a {kind}: give a text, or a dict with {', '.join(DESCRIBED)}, prompts")
    if unknown := sorted(set(map(str, described)) - set(DESCRIBED) - {"prompts"}):
        raise InputError(f"describe has the unknown key {unknown[0]!r}: known are {', '.join(DESCRIBED)}, prompts")
    described = {name: value for name, value in described.items() if value is not None}
    for name in DESCRIBED.keys() & described.keys():
        if not (isinstance(described[name], str) if DESCRIBED[name] is str else _are_texts(described[name])):
            wanted = "text" if DESCRIBED[name] is str else "list of texts"
            raise InputError(f"describe has {name}={described[name]!r}: give a {wanted}")
    prompts = described.get("prompts", {})
    if not (isinstance(prompts, Mapping) and set(prompts) <= set(PROMPTS) and all(map(_are_texts, prompts.values()))):
        raise InputError(f"describe has prompts={prompts!r}: give lists of texts under {' and '.join(PROMPTS)}")
    if prompts and tokenizer is None:
        raise InputError("describe has prompts: pass processing_class, the model's tokenizer, to answer them")
    return described


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


def update_context(
    model: torch.nn.Module, method: Method, delta: UpdateDelta, tokenizer, *, forget_rows: int, forget_sha256: str
) -> dict:
    """What `report.card.render_card` is given of every model that is saved with its update, whoever saves it."""
    return {
        "loading": Loading.of(model, tokenizer=tokenizer is not None, own_update=method.own_update),
        "method": method.label,
        "paper": method.paper,
        "base_model": delta.config["base_model"],
        "base_revision": delta.config["base_revision"],
        "settings": delta.config["settings"],
        "seed": delta.config["seed"],
        "forget_rows": forget_rows,
        "forget_sha256": forget_sha256,
        "delta": {"norm": delta.norm(), "tensors": len(delta.tensors), "sha256": delta.sha256(SAVED_DTYPE)},
        "environment": library_versions(),
        **model_license(getattr(model.config, "_name_or_path", None), delta.config["base_revision"]),
    }


def card_context(trainer, delta: UpdateDelta) -> dict:
    """What `report.card.render_card` is given of a run.

    The numbers are measured when a card is first asked for. Of the rows nothing is told but their number and hash: the
    only texts are those that the user described the request with, and the model's answers to the user's own prompts.
    """
    described = dict(trainer.describe)
    prompts = described.pop("prompts", {})
    if trainer.measured is None:
        trainer.measured = before_and_after(trainer)
    measured, facts, said = trainer.measured, environment(), answers(trainer, prompts)
    cost = {"seconds": trainer.cost.get("seconds"), "peak_memory_mb": trainer.cost.get("peak_memory_mb")}
    accelerators = facts["accelerators"]
    told = update_context(
        trainer.model,
        trainer.method,
        delta,
        trainer.processing_class,
        forget_rows=len(trainer.forget_dataset),
        forget_sha256=fingerprint_rows(trainer.forget_dataset),
    )
    told |= {
        # A card that is saved has a place to be filled in, for its repository is known when it is pushed.
        "model_name": (trainer.args.hub_model_id or "").split("/")[-1] or None,
        "original": measured["original"],
        "unlearned": cost | measured["unlearned"],
        "measured_on": measured["measured_on"],
        "hardware": accelerators if accelerators != "none" else facts["processors"],
        "facts": {**_further_costs(trainer), **trainer.covered, **trainer.method.account()},
        "retain_rows": None if trainer.retain_dataset is None else len(trainer.retain_dataset),
        "row_notes": row_notes(trainer.row_counts),
        "answers": said["answers"],
        **described,
    }
    extras = dict(trainer.card_extras)
    for name in ("original", "unlearned"):
        told[name] |= extras.pop(name, {})
    limits = [*measured["limits"], *said["limits"], *described.get("limits", []), *extras.pop("limits", [])]
    return told | extras | {"limits": limits}


def _further_costs(trainer) -> dict:
    told = ("seconds", "peak_memory_mb")
    return {name: f"{value:.3g}" for name, value in trainer.cost.items() if name not in told}


def row_notes(counts: Mapping[str, object]) -> Sequence[str]:
    """What became of the rows that were given, in sentences: {side: counts}, whose zeros say nothing."""
    said = {
        "dropped_empty": "{} empty rows of the {} set were dropped",
        "packed_rows": "{} long rows of the {} set were packed into several",
        "cut_rows": "{} rows of the {} set were too long and were cut",
        "cut_tokens": "{} tokens of the {} set were cut off and had no part in the request",
    }
    numbers = {(side, name): getattr(count, name, 0) for side, count in counts.items() for name in said}
    return [f"{said[name].format(number, side)}." for (side, name), number in numbers.items() if number]


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
        **trainer.covered,
        **trainer.method.account(),
    }

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Numbers from before and after, on a run's own rows: loss on both sides, and the KL from the original."""

import logging
import math
from collections.abc import Callable, Mapping

from ..data.prompts import QATemplate, encode_qa
from ..data.rows import is_token_labels, sample_rows
from ..errors import first_line
from ..evaluation.sample_kl import SampleKL
from ..evaluation.scoring import generate_ids, prompt_ids
from ..evaluation.specificity import TokenKL


logger = logging.getLogger(__name__)

# What the original says is remembered on the CPU, up to so many bytes a side; beyond, its likeliest tokens alone.
CACHE_BYTES = 2**32
MOST_ANSWER_TOKENS = 64


def before_and_after(trainer) -> dict:
    """What a card tells of a run: rows `original` and `unlearned`, what they were `measured_on`, and `limits`.

    On at most `kl_rows` rows of each side (none: nothing is measured). What cannot be measured is said in a limit: a
    model that is spread over processes, whose forward needs all of them, and one that is not finite any more.
    """
    sides = {"forget": trainer.forget_dataset, "retain": trainer.retain_dataset}
    rows = {side: data for side, data in sides.items() if data is not None and trainer.args.kl_rows > 0}
    nothing = {"original": {}, "unlearned": {}, "measured_on": {}}
    if trainer.is_sharded or not rows:
        why = "its weights are spread over processes" if trainer.is_sharded else "kl_rows is 0"
        return nothing | {"limits": [f"Loss and KL before and after were not measured ({why})."]}
    rows = {side: sample_rows(data, trainer.args.kl_rows, trainer.args.seed) for side, data in rows.items()}
    try:
        with trainer.weights_of_base():
            meters = {side: _meter(trainer, data) for side, data in rows.items()}
        found = {side: meter(trainer.model) for side, meter in meters.items()}
    except Exception as error:  # a run that is done is not lost for a number on its card
        logger.warning(f"loss and KL before and after could not be measured ({first_line(error)}): the card says so")
        return nothing | {"limits": ["Loss and KL before and after could not be measured."]}
    before, after = {}, {}
    for side, (loss_before, loss_after, kl) in found.items():
        for row, loss in ((before, loss_before), (after, loss_after)):
            row |= {f"{side}_rows_loss": loss, f"{side}_rows_probability": math.exp(-loss)}
        before[f"{side}_rows_kl"], after[f"{side}_rows_kl"] = 0.0, kl
    limits = [] if "retain" in rows else ["No rows to be kept were given: what else has changed was not measured."]
    counts = {side: (len(data), len(sides[side])) for side, data in rows.items()}
    return {"original": before, "unlearned": after, "measured_on": counts, "limits": limits}


def _meter(trainer, rows) -> Callable:
    """Of the model as it is now: a function of a model, (loss now, its loss, KL(now || it)), means over labels."""
    loader = trainer.loader(rows, trainer.args.curvature_batch_size)
    if is_token_labels(rows[0]["labels"]):
        meter = TokenKL(trainer.model, loader, CACHE_BYTES, top_k="auto")
    else:
        meter = SampleKL(trainer.model, loader)

    def measure(model):
        result = meter(model)
        return result.reference_nll, result.nll, result.mean

    return measure


def answers(trainer, prompts: Mapping[str, list[str]]) -> dict:
    """The model's own greedy answers to prompts: `answers` {kind: [(prompt, answer)]}, and `limits`."""
    if prompts and trainer.is_sharded:
        return {"answers": {}, "limits": ["Prompts were not answered (its weights are spread over processes)."]}
    tokenizer, template, found = trainer.processing_class, trainer.template or QATemplate(), {}
    try:
        for kind, texts in prompts.items():
            encoded = [prompt_ids(encode_qa(tokenizer, text, "answer", template)) for text in texts]
            ids = generate_ids(trainer.model, tokenizer, encoded, max_new_tokens=MOST_ANSWER_TOKENS)
            said = [tokenizer.decode(new, skip_special_tokens=True).strip() for new in ids]
            found[kind] = list(zip(texts, said, strict=True))
    except Exception as error:  # as above
        logger.warning(f"prompts could not be answered ({first_line(error)}): the card says so")
        return {"answers": {}, "limits": ["Prompts could not be answered."]}
    return {"answers": found, "limits": []}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Does what was removed come back? Fine-tuning attacks, and the update added again after them (K-FADE paper, RQ4).

The paper's attack is the default: 200 steps of AdamW on all weights, learning rate 1e-5, batches of 8 rows. What it
leaves open is chosen here: constant rate, no weight decay, no clipping. transformers' Trainer is not used: it sets the
seeds, devices and precision of the whole process, and these attacks run in the middle of a comparison.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from tqdm.auto import tqdm

from ..data.collators import default_collator
from ..data.preparing import prepare_rows
from ..deltas import UpdateDelta
from ..errors import InputError, NumericalError
from ..runtime.modules import evaluation_mode, model_device, trainable


Scores = dict[str, float]
ORIGINAL = "original"


@dataclass(frozen=True)
class RelearnCurve:
    """One attack."""

    steps: list[int]  # when it was evaluated; 0 and the last step are among them
    scores: list[Scores]  # {metric: value} at each of these
    losses: list[float]  # mean loss per label of the batch, at every step
    with_update: dict[str, Scores]  # {label: scores after the attack and with that update added}
    settings: dict  # all that the attack depends on


def recovery(original: float, unlearned: float, relearned: float) -> float | None:
    """(relearned - unlearned) / (original - unlearned): 0 nothing came back, 1 all of it.

    None when the original and the unlearned model agree: then nothing was lost that could come back.
    """
    lost = original - unlearned
    return (relearned - unlearned) / lost if abs(lost) > 1e-12 else None


def relearn(
    model,
    rows,
    *,
    evaluate: Callable[[torch.nn.Module], float | Mapping[str, float]],
    steps: int = 200,
    learning_rate: float = 1e-5,
    batch_size: int = 8,
    eval_steps: int = 50,
    seed: int = 0,
    updates: Mapping[str, UpdateDelta] | None = None,
    start: Mapping[str, float] | None = None,
    tokenizer=None,
    max_length: int = 512,
    gradient_checkpointing: bool = False,
    progress: bool = False,
) -> RelearnCurve:
    """Fine-tune all weights on `rows`, watch what comes back, and put every weight back to the bit.

    A half-precision model is trained as fp32 weights (on an accelerator with bf16 arithmetic, autocast), and evaluated
    so at step 0 too: in bf16 a weight of 0.02 cannot move by 1e-5. Memory: 16 bytes a weight (fp32 weight and
    gradient, two moments) where the model lies, and a copy of the weights on the CPU.

    Args:
        model: any causal LM with floating-point weights; it stays where it lies.
        rows: `datasets.Dataset` with input_ids and labels, question and answer, or text (then with `tokenizer`).
        evaluate (`Callable`): the model in eval mode to an accuracy, or to {metric: value}. Called at step 0, every
            `eval_steps` steps and at the end, and once for each of `updates`.
        batch_size (`int`, *optional*, defaults to `8`): rows of one step. They are drawn in random order, without
            replacement until all were seen.
        updates (`Mapping[str, UpdateDelta]`, *optional*): {label: update}: each is added to the attacked weights,
            evaluated and taken out again: the paper's defence, theta_finetuned + (theta_unlearned - theta_base).
        start (`Mapping[str, float]`, *optional*): the scores at step 0, where they are known.

    Raises:
        InputError: no rows, bad numbers, a quantised model, an update of another model.
        NumericalError: the loss is not finite.
    """
    if min(steps, batch_size, eval_steps) < 1 or not learning_rate > 0:
        raise InputError(
            f"steps={steps}, batch_size={batch_size}, eval_steps={eval_steps} and learning_rate={learning_rate} must "
            "all be positive"
        )
    rows = prepare_rows(rows, "attack", tokenizer, max_length, model=model)
    collate = default_collator(model, tokenizer)
    # Checked before the training, which may take an hour. Of the attacked weights no update was made: no hashes.
    updates = {label: UpdateDelta(update.tensors) for label, update in (updates or {}).items()}
    for update in updates.values():
        with update.applied_to(model):
            pass
    device = model_device(model)
    half = any(p.dtype in (torch.float16, torch.bfloat16) for p in model.parameters())
    precision = torch.autocast(device.type, torch.bfloat16, enabled=half and device.type != "cpu")

    def measure() -> Scores:
        with evaluation_mode(model), precision:
            scores = evaluate(model)
        return {k: float(v) for k, v in scores.items()} if isinstance(scores, Mapping) else {"accuracy": float(scores)}

    order = _order(len(rows), seed)
    losses, with_update = [], {}
    bar = tqdm(total=steps, desc="relearning", disable=not progress, leave=False)
    # Dropout draws from the global generators: seeded inside, and as they were afterwards.
    seeded = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with seeded, bar, _all_weights_trained(model, gradient_checkpointing):
        torch.manual_seed(seed)
        evaluated = {0: dict(start) if start is not None else measure()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
        for step in range(1, steps + 1):
            batch = collate([rows[next(order)] for _ in range(batch_size)])
            with precision:
                loss = model(**{name: value.to(device) for name, value in batch.items()}, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise NumericalError(f"the attack's loss is not finite at step {step}: lower {learning_rate=}")
            if step % eval_steps == 0 or step == steps:
                evaluated[step] = measure()
            bar.update()
        for label, update in updates.items():
            with update.applied_to(model):
                with_update[label] = measure()
    settings = {
        "steps": steps,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
        "rows": len(rows),
        "optimizer": "AdamW, constant rate, no weight decay, no clipping",
        "weights": "fp32, put back into half precision" if half else "as they are",
    }
    return RelearnCurve(list(evaluated), list(evaluated.values()), losses, with_update, settings)


def _order(rows: int, seed: int) -> Iterator[int]:
    """Row numbers without end, one random order of all rows after the other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(rows, generator=generator).tolist()


@contextlib.contextmanager
def _all_weights_trained(model, gradient_checkpointing: bool):
    """The model in training mode, every weight trainable and none below fp32; as it was, to the bit, afterwards."""
    parameters = list(model.parameters())
    fixed = [p.dtype for p in parameters if not p.is_floating_point() or p.dtype.itemsize < 2]
    if fixed:
        raise InputError(
            f"the model holds weights of type {fixed[0]}, which cannot be fine-tuned: load it unquantised"
        )
    kept = [(tensor, tensor.detach().to("cpu", copy=True)) for tensor in [*parameters, *model.buffers()]]
    with evaluation_mode(model, grad=True), trainable(model, parameters):
        try:
            for tensor, _ in kept:
                if tensor.dtype in (torch.float16, torch.bfloat16):
                    tensor.data = tensor.data.float()
            model.zero_grad()
            if gradient_checkpointing:
                model.gradient_checkpointing_enable()
            model.train()
            yield
        finally:
            if gradient_checkpointing:
                model.gradient_checkpointing_disable()
            model.eval()
            model.zero_grad()
            for tensor, before in kept:
                if tensor.dtype == before.dtype:
                    tensor.data.copy_(before)
                else:
                    tensor.data = before.to(tensor.device)


@dataclass(frozen=True)
class AttackTable:
    """Every attack on every unlearned model, and on the original as control, JSON-able.

    A row has method, attack, learning_rate and metric, and that metric of original, unlearned, relearned,
    relearned_with_update (the update added once more after the attack), control (the original, attacked) and
    control_with_update (the update added to that: the paper's defence), and recovery, recovery_with_update and
    control_recovery_with_update (of `recovery`). A recovery that is not defined is None, and `note` says why.
    """

    rows: list[dict]  # one for every method, attack, learning rate and metric
    curves: list[dict]  # of `RelearnCurve`, with attack, learning_rate and method ("original" is the control)

    def to_json(self) -> dict:
        return asdict(self)


def attack_table(
    original,
    updates: Mapping[str, UpdateDelta],
    attacks: Mapping[str, object],
    *,
    evaluate: Callable[[torch.nn.Module], float | Mapping[str, float]],
    learning_rates: Sequence[float] = (1e-5,),
    **settings,
) -> AttackTable:
    """Attack the original model and each unlearned one with each set of rows; the original keeps its bits.

    Args:
        original: the model before unlearning, from which the updates were taken.
        updates (`Mapping[str, UpdateDelta]`): {method: its update}, as of `UpdateDelta.between`.
        attacks (`Mapping[str, object]`): {name: rows}, for example benign (Wikitext), related (the domain's harmless
            texts), a few forget rows.
        evaluate (`Callable`): as for `relearn`, of what was to be forgotten.
        learning_rates (`Sequence[float]`, *optional*, defaults to `(1e-5,)`): each attack runs at each. Small models
            move too little at the paper's 1e-5.
        settings: further arguments of `relearn`.

    Raises:
        InputError: no update or attack, a method called "original", an update of another model, or as `relearn` says.
    """
    if not updates or not attacks or not learning_rates:
        raise InputError("an attack table needs at least one update, one set of attack rows and one learning rate")
    if ORIGINAL in updates:
        raise InputError(f'"{ORIGINAL}" is the name of the control: call the method otherwise')
    tokenizer, max_length = settings.get("tokenizer"), settings.get("max_length", 512)
    attacks = {name: prepare_rows(rows, f"{name} attack", tokenizer, max_length) for name, rows in attacks.items()}
    for update in updates.values():
        with update.applied_to(original):  # a wrong one is told before the first attack
            pass
    rows, curves, start = [], [], {}
    for attack, data in attacks.items():
        for rate in learning_rates:
            run = functools.partial(relearn, rows=data, evaluate=evaluate, learning_rate=rate, **settings)
            ran = {ORIGINAL: run(original, updates=updates, start=start.get(ORIGINAL))}
            for method, update in updates.items():
                with update.applied_to(original) as unlearned:
                    ran[method] = run(unlearned, updates={method: update}, start=start.get(method))
            start |= {label: curve.scores[0] for label, curve in ran.items()}
            about = {"attack": attack, "learning_rate": rate}
            curves += [{"method": label, **about, **asdict(curve)} for label, curve in ran.items()]
            for method, metric in itertools.product(updates, start[ORIGINAL]):
                rows.append({"method": method, **about, "metric": metric, **_row(metric, method, ran)})
    return AttackTable(rows, curves)


def _row(metric: str, method: str, ran: Mapping[str, RelearnCurve]) -> dict:
    control, attacked = ran[ORIGINAL], ran[method]
    before, after = control.scores[0][metric], attacked.scores[0][metric]
    values = {
        "relearned": attacked.scores[-1][metric],
        "relearned_with_update": attacked.with_update[method][metric],
        "control": control.scores[-1][metric],
        "control_with_update": control.with_update[method][metric],
    }
    back = {name: recovery(before, after, value) for name, value in values.items()}
    agree = "the original and the unlearned model agree: nothing was lost that could come back"
    return {
        "original": before,
        "unlearned": after,
        **values,
        "recovery": back["relearned"],
        "recovery_with_update": back["relearned_with_update"],
        "control_recovery_with_update": back["control_with_update"],
        "note": agree if back["relearned"] is None else None,
    }

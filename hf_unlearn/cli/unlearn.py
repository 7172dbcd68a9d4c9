# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`hf-unlearn unlearn`: a request that is served: looked at before, unlearned, looked at after, written down."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..errors import InputError, LimitError
from ..evaluation.answers import answer_rows, spread
from ..methods.retain_fit import IN_PROGRESS
from ..report.formats import format_settings
from ..report.questions import compare_answers
from ..report.request_page import write_request_report
from ..runtime.processes import Processes, announced_processes, held
from ..trainer.config import UnlearnConfig
from ..trainer.measures import before_and_after
from ..trainer.records import row_notes
from ..trainer.run_folder import RUN_FILE
from ..trainer.trainer import UnlearnTrainer
from .console import Result, is_quiet
from .request import Request, read_request


logger = logging.getLogger(__name__)

ANSWERS, ANSWER_TOKENS = 3, 48
NO_RETAIN = "without --retain nothing is measured of what the model keeps, and none of it can be promised"
# Of what is logged at a step, what tells a person nothing.
UNTOLD = ("epoch", "learning_rate", "grad_norm", "loss")
# A share of the probability of before above which a person should hear that little has happened.
LITTLE = 0.8
# Steps of which each is told; of more the bar tells.
FEW = 20


def run_unlearn(options) -> Result | None:
    """Serve a request; None on all processes but the main one.

    A request that was killed goes on from its last checkpoint when the command is given again.

    Raises:
        InputError: as `read_request`, rows or a model that cannot be had, or an output folder that is in use.
        LimitError: the KL on retained rows passed the limit; no model was written.
    """
    request = read_request(options)
    output = Path(request.output)
    request.make_method()  # refused before anything is loaded
    check_output(output, request.model)
    state = announced_processes()
    with held(output, Processes(state, "the request")):
        check_output(output, request.model)  # what another process was making when it was looked at first
        return _serve(request, output, state)


def _serve(request: Request, output: Path, state) -> Result | None:
    """Look, unlearn, look again, and write."""
    if request.retain is None:
        logger.warning(NO_RETAIN)
    trainer, before = serve(request, output)
    if trainer.measured is None:
        trainer.measured = on_main(trainer, before_and_after)
    after = on_main(trainer, answers)
    trainer.save_model(str(output / "model"))
    url = trainer.push_to_hub() if request.push else None
    if not state.is_main_process:
        return None
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    happened = sentence(trainer.measured)
    said = f"{happened}; model in {output / 'model'}"
    facts = {"model": str(output / "model"), "method": trainer.method.label, "settings": trainer.method.settings()}
    facts |= {name: trainer.measured[name] for name in ("original", "unlearned", "measured_on", "limits")}
    facts |= {"kl_limit": request.limit, "cost": trainer.cost, "pushed": url, "sentence": said}
    facts |= {"answers": {"before": before, "after": after}}
    pages = write_request_report(
        output,
        title=request.title,
        summary=f"{trainer.method.label}: {happened}.",
        measured=trainer.measured,
        questions=compare_answers({"before": before, "after": after}),
        counts=row_facts(trainer),
        settings=trainer.method.settings() | {"kl_limit": request.limit, "seed": trainer.args.seed},
        cost={name.replace("_", " "): f"{value:,.1f}" for name, value in trainer.cost.items()},
        warnings=[NO_RETAIN] if request.retain is None else [],
    )
    facts["report"] = str(pages["report.html"])
    lines = [said, f"report: {pages['report.html']}", *([f"pushed: {url}"] if url else [])]
    return Result("\n".join(lines), facts)


def row_facts(trainer: UnlearnTrainer) -> dict[str, str]:
    """Rows of both sides, and what became of those that were given."""
    sides = {"to forget": trainer.forget_dataset, "to keep": trainer.retain_dataset}
    counts = {side: f"{len(rows):,}" for side, rows in sides.items() if rows is not None}
    notes = row_notes(trainer.row_counts)
    return counts | ({"of those given": " ".join(notes)} if notes else {})


def serve(request: Request, output: Path) -> tuple[UnlearnTrainer, dict]:
    """The trainer when it has unlearned within the limit, and what the model said before.

    Raises:
        LimitError: the limit was passed.
    """
    trainer = make_trainer(request, output)
    before = on_main(trainer, answers)
    try:
        trainer.train(resume_from_checkpoint=True if any(output.glob("checkpoint-*")) else None)
    except LimitError:
        on_main(trainer, lambda trainer: clear_run(output))
        raise
    return trainer, before


def on_main(trainer: UnlearnTrainer, work: Callable):
    """`work(trainer)` on the main process, while the others wait; None there. What it raises all raise."""
    processes = Processes(trainer.accelerator, "the request")
    return processes.share(lambda: work(trainer) if trainer.is_world_process_zero() else None)[0]


def check_output(output: Path, model: str):
    """Refuse a folder that holds a finished model, or the model to unlearn from.

    Raises:
        InputError: it does.
    """
    target, source = (output / "model").resolve(), Path(model).resolve()
    if Path(model).exists() and (source in (target, *target.parents) or target in source.parents):
        raise InputError(f"--output {output} lies in the model {model}, which stays as it is: choose another folder")
    if target.exists():
        raise InputError(f"{output / 'model'} exists already: choose another --output, or delete it")


def clear_run(output: Path):
    """Take away what a run left behind that passed its limit, so that another can be tried in its place."""
    for folder in [*output.glob("checkpoint-*"), output / IN_PROGRESS]:
        shutil.rmtree(folder, ignore_errors=True)
    (output / RUN_FILE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        output.rmdir()  # when nothing else is in it


def make_trainer(request: Request, output: Path) -> UnlearnTrainer:
    """The trainer of a request, which speaks through the log."""
    method = request.make_method()
    # A checkpoint a step where there are few, so that a kill costs a step at most.
    saving = {"save_strategy": "steps", "save_steps": 1} if method.own_steps else {"save_strategy": "epoch"}
    arguments = {
        **{"report_to": "none", "disable_tqdm": is_quiet(), "use_cpu": not torch.accelerator.is_available()},
        **saving,
        **({"hub_model_id": request.push} if request.push else {}),
        **request.of_prompts,
        **request.arguments,
    }
    trainer = UnlearnTrainer(
        model=request.model,
        method=method,
        args=UnlearnConfig(output_dir=str(output), **arguments),
        forget_dataset=request.forget,
        retain_dataset=request.retain,
        describe=request.describe,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Told())
    if request.limit is not None and not hasattr(method, "kl_limit"):
        trainer.add_callback(Limit(trainer, request.limit))
    return trainer


class Told(TrainerCallback):
    """One progress bar over the steps; what is logged goes to the log."""

    def on_train_begin(self, args, state, control, **kwargs):
        unseen = is_quiet() or not state.is_world_process_zero
        steps = {"total": state.max_steps, "initial": state.global_step}
        self.bar = tqdm(**steps, desc="unlearning", unit="step", disable=unseen, leave=False)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        told = {name.replace("_", " "): value for name, value in logs.items() if name not in UNTOLD}
        if told and "train_runtime" not in logs:
            level = logging.INFO if state.max_steps <= FEW else logging.DEBUG
            logger.log(level, f"step {state.global_step} of {state.max_steps}: {format_settings(told)}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Limit(TrainerCallback):
    """The limit of the KL for methods that have none of their own: it is measured when the training ends."""

    def __init__(self, trainer: UnlearnTrainer, limit: float):
        self.trainer, self.limit = trainer, limit

    def on_train_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.is_sharded:
            raise InputError("the KL of a model that is spread over processes is not measured: start without FSDP")
        trainer.measured = on_main(trainer, before_and_after)
        kl = trainer.measured["unlearned"].get("retain_rows_kl")
        if kl is None or not kl <= self.limit:
            measured = "no finite number" if kl is None else f"{kl:.3g} nats a token"
            raise LimitError(
                f"measured KL on retain rows is {measured}, above the limit of {self.limit:.3g}: no model was "
                "written; lower learning_rate or num_train_epochs, try --method kfade, or raise --kl_limit"
            )


# ---- what is looked at ----------------------------------------------------------------------------------------------
def answers(trainer: UnlearnTrainer) -> dict[str, list[dict]]:
    """What the model says to a few rows of each side: {side: [{"prompt", "row", "answer"}]}."""
    tokenizer = trainer.processing_class
    if tokenizer is None or trainer.is_sharded:
        return {}
    sides = {"forget": trainer.forget_dataset, "retain": trainer.retain_dataset}
    asked = {side: rows.select(spread(len(rows), ANSWERS)) for side, rows in sides.items() if rows is not None}
    rows = [row for side in asked.values() for row in side]
    said = iter(answer_rows(trainer.model, tokenizer, rows, max_new_tokens=ANSWER_TOKENS))
    return {side: [next(said) for _ in rows] for side, rows in asked.items()}


def sentence(measured: Mapping) -> str:
    """What happened, for a person."""
    before, after = measured["original"], measured["unlearned"]
    if not after:
        return f"unlearned, but not measured: {' '.join(measured['limits']).rstrip('.')}"
    number = lambda row, side: f"{row[f'{side}_rows_probability']:.3g}"
    parts = [f"forget probability {number(before, 'forget')} -> {number(after, 'forget')}"]
    if "retain_rows_kl" in after:
        kl = f"KL {after['retain_rows_kl']:.2g} nats/token"
        parts.append(f"retain {number(before, 'retain')} -> {number(after, 'retain')} ({kl})")
    else:
        parts.append("what else changed was not measured (no --retain)")
    if after["forget_rows_probability"] > LITTLE * before["forget_rows_probability"]:
        parts[0] += " (little was forgotten: take more steps or a longer one)"
    return ", ".join(parts)

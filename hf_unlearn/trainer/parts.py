# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Loop of a method that runs itself: every part counts as a step, and is logged, evaluated and saved as one."""

import time
from collections.abc import Iterator, Mapping

import torch
from transformers.trainer_utils import TrainOutput


def run_parts(trainer, parts: Iterator[Mapping[str, float]], checkpoint: str | None, trial) -> TrainOutput:
    """Run what `Method.run` gave to its end; the counterpart of Trainer's own loop over batches.

    Args:
        trainer: an `UnlearnTrainer` whose model and weights are those of `checkpoint`, when there is one.
        parts: yields after each part what there is to log.
    """
    total = trainer.args.max_steps
    trainer._init_training_state(total, total, 1, checkpoint, trial)
    if checkpoint is not None:
        trainer._load_rng_state(checkpoint)
    started = time.time()
    trainer._initial_num_input_tokens_seen, trainer._initial_global_step = 0, trainer.state.global_step
    trainer._tr_loss, trainer._total_loss_scalar = torch.zeros((), device=trainer.args.device), 0.0
    trainer.control = trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    for logs in parts:
        trainer.state.global_step += 1
        trainer.state.epoch = trainer.state.global_step / total
        trainer.control = trainer.callback_handler.on_step_end(trainer.args, trainer.state, trainer.control)
        if trainer.control.should_log:
            trainer.log({**logs, **trainer.method.on_log(trainer)}, started)
        # It is logged: what follows evaluates and saves alone.
        trainer._globalstep_last_logged = trainer.state.global_step
        trainer._maybe_log_save_evaluate(
            trainer._tr_loss, None, trainer.model, trial, trainer.state.epoch, None, started
        )
        if trainer.control.should_training_stop:
            break
    return trainer._finalize_training(trial, 0, started)

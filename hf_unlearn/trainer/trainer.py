# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`UnlearnTrainer`: the one loop for every method, with its logs, checkpoints, resume, delta and card."""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import objectives
from ..curvature.targets import tell_covered_share
from ..data.collators import UnlearnCollator, default_collator, real_tokens
from ..data.preparing import Preparation, with_other_answers
from ..data.rows import PairedRows, fingerprint_rows
from ..deltas import SAVED_DTYPE, UpdateDelta
from ..errors import InputError, NumericalError, input_errors
from ..methods.base import Counts, Method
from ..optim import fp32_weights, step_in_fp32
from ..requests.ledger import append_log
from ..runtime.cost import peak_memory_mb, reset_peak_memory
from ..runtime.files import read_json, sha256_json, sha256_tensors
from ..runtime.hub import public_name
from ..runtime.loading import load_model
from ..runtime.processes import connected
from ..runtime.sharded import is_sharded, temporary_weights, whole_on_cpu
from .config import UnlearnConfig
from .door import at_work, check_model, check_request, check_start, wear_adapter
from .launch import pad_rows
from .parts import run_parts
from .publishing import find_repository, push, save_whole, save_with_update
from .records import check_description, request_record
from .run_folder import IDENTITY_ARGUMENTS, RUN_FILE, whole_checkpoint
from .sets import prepare_sets
from .update import changed_names, merged_adapter, moving_tensors, update_of


logger = logging.getLogger(__name__)


class UnlearnTrainer(Trainer):
    r"""
    Removes a forget set from a model with any [`Method`](methods.base.Method).

    Args:
        model (`str` or `PreTrainedModel` or `PeftModel`):
            The model, or its name or folder (loaded as a causal language model).
        method ([`~methods.base.Method`]): For example `KFade(step_norm=0.006)` or `FirstOrder("npo")`.
        args ([`UnlearnConfig`], *optional*):
            Settings of the run; a method may replace some (K-FADE: batch, steps, no clipping).
        forget_dataset, retain_dataset (`datasets.Dataset` or `list[dict]` or `str`):
            Rows to forget and to keep, or a file of them: `input_ids` and `labels`, or `messages`, or `question` and
            `answer`, or `text`.
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*):
            Evaluated while it runs; by default the forget and the retain rows, when `eval_strategy` is set.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Needed to tokenise rows of text; for a model given by name it is loaded too.
        data_collator (`Callable`, *optional*): Makes a batch of single rows; padding with labels -100 by default.
        peft_config (`PeftConfig`, *optional*): Wraps the model with an adapter first.
        callbacks (`list[TrainerCallback]`, *optional*): As in [`~transformers.Trainer`].
        evaluator (`Callable[[PreTrainedModel], dict[str, float]]`, *optional*):
            Called at every evaluation; its metrics join the log as `eval_<name>`, for `metric_for_best_model` too.
        describe (`str` or `dict`, *optional*):
            For the card, in plain words: what is removed, or a dict with `forget`, `retain` (what is kept), `license`,
            `language`, `datasets`, `limits`, and `prompts` to show the model's answers to: {"forgotten": [...],
            "kept": [...]}. The card is published: describe, and quote no rows.

    Raises:
        InputError: an empty forget or retain set, missing columns, labels all ignored, no target module, an output
            folder that holds another run. The message names the cause and the cure.
    """

    # `compute_loss` divides by the counts of the whole accumulated batch, so Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: str | PreTrainedModel | torch.nn.Module,
        method: Method,
        args: UnlearnConfig | None = None,
        forget_dataset=None,
        retain_dataset=None,
        eval_dataset=None,
        processing_class=None,
        data_collator: Callable | None = None,
        peft_config=None,
        callbacks=None,
        evaluator: Callable[[torch.nn.Module], dict[str, float]] | None = None,
        describe: str | dict | None = None,
    ):
        args = args or UnlearnConfig(output_dir="outputs/unlearn")
        others = {"processing_class": processing_class, "data_collator": data_collator, "evaluator": evaluator}
        check_request(model, method, args, (forget_dataset, retain_dataset, eval_dataset), **others)
        self.model_id = public_name(model if isinstance(model, str) else getattr(model.config, "_name_or_path", None))
        if isinstance(model, str):
            model, processing_class = load_model(model, processing_class, args.model_init_kwargs)
        self.base_revision = getattr(model.config, "_commit_hash", None)
        model = wear_adapter(model, peft_config)
        check_model(model, args)
        self.method, self.evaluator, self.cost = method, evaluator, {}
        # For the card: what the user says, what was measured once asked for, and further keys of `render_card`.
        self.describe, self.measured, self.card_extras = check_description(describe, processing_class), None, {}

        self.template = args.prompt_template()
        given = forget_dataset
        prepare = Preparation(processing_class, args.max_length, self.template, args.long_text, model)
        self.forget_dataset, self.retain_dataset, eval_dataset = prepare_sets(
            prepare,
            forget_dataset,
            retain_dataset,
            eval_dataset,
            needs_retain=method.needs_retain,
            evaluated=args.eval_strategy != "no",
        )
        alternative = None
        if method.alternatives:
            given = with_other_answers(given, "forget", method.alternatives, args.seed)
            alternative = prepare(given, "alternative")
        self.row_counts = {name: count for name, count in prepare.counts.items() if name in ("forget", "retain")}
        if data_collator is None and "input_ids" not in self.forget_dataset.column_names:
            raise InputError("rows without input_ids have no default padding: pass data_collator")
        self.single_collator = real_tokens(data_collator or default_collator(model, processing_class), model)
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_since, self._begun = 0, False
        self.base_weights: dict[str, torch.Tensor] = {}
        self.merged_before: dict[str, torch.Tensor] = {}
        self.covered: dict[str, float] = {}  # what to tell of routed experts that stay as they are
        rows = self.retain_dataset if method.retain_alone else self.forget_dataset
        if method.paired:
            rows = PairedRows(self.forget_dataset, self.retain_dataset, args.seed, alternative)
        args = method.configure(args, len(self.forget_dataset))
        with input_errors():
            super().__init__(
                model=model,
                args=args,
                data_collator=self._collate,
                train_dataset=rows,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
            )

    def _collate(self, rows: list[dict]) -> dict:
        # Training rows of a paired method are pairs; evaluation rows never are.
        return UnlearnCollator(self.single_collator)(rows) if "forget" in rows[0] else self.single_collator(rows)

    # ---- the run: one folder, one identity, whole checkpoints ------------------------------------------------------
    @property
    def is_sharded(self) -> bool:
        """Whether the model is spread over processes, which it is from the beginning of training on, if not before."""
        return is_sharded(self.model)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """Unlearn. With `resume_from_checkpoint=True` a killed run goes on from its last whole checkpoint.

        A run resumed on the same machine ends in the same bits as one that was never interrupted; without a whole
        checkpoint it starts again from the beginning.

        Raises:
            InputError: the output folder holds another run.
            NumericalError: a loss, factor or step is not finite.
        """
        if self.base_weights:
            raise InputError("this trainer has run already: make a new UnlearnTrainer from the model to go on")
        check_start(self)
        reset_peak_memory()
        started = time.perf_counter()
        training = self.model.training
        self.method.prepare(self)
        inside = contextlib.ExitStack()
        try:
            # Only what may move is copied; a resumed run takes it from the original, before the checkpoint loads.
            self.base_weights, folder = whole_on_cpu(moving_tensors(self)), Path(self.args.output_dir)
            try:
                self.merged_before = merged_adapter(self)
                share = tell_covered_share(self.model, changed_names(self))
                self.covered = {} if share is None else {"mlp_parameters_covered": share}
                checkpoint = inside.enter_context(at_work(self, folder, resume_from_checkpoint))
            except InputError:
                self.base_weights = {}  # nothing has run yet
                raise
            with connected("the training"):
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
        finally:
            inside.close()
            self.method.finish(self)
            self.model.train(training)
        self.cost["seconds"] = time.perf_counter() - started
        self.cost["peak_memory_mb"] = peak_memory_mb()
        main = self.is_world_process_zero()
        delta = self.update_delta() if main or self.is_sharded else None
        if main:
            told = {"request": sha256_json(read_json(folder / RUN_FILE)), **request_record(self)}
            append_log(folder, told | {"delta_sha256": delta.sha256(SAVED_DTYPE)})
        return output

    def run_identity(self) -> dict:
        """What makes this run this run: a folder that holds another one is refused."""
        return {
            "method": self.method.settings(),
            "arguments": {key: getattr(self.args, key) for key in IDENTITY_ARGUMENTS.split()},
            "forget_rows": fingerprint_rows(self.forget_dataset),
            "retain_rows": fingerprint_rows(self.retain_dataset) if self.retain_dataset is not None else None,
            "base_weights": sha256_tensors(self.base_weights),
        }

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with whole_checkpoint(self, folder):
            super()._save_checkpoint(model, trial)

    def _run_epoch(self, **kwargs):
        # Trainer tells the epoch to the loader once batches to skip are wrapped around it, where neither the sampler
        # of several processes nor our dataset hears of it: a run resumed within an epoch would see other rows.
        kwargs["train_dataloader"].set_epoch(kwargs["epoch"])
        if not self._begun:
            self._begun = True
            self.method.begin(self)
        if isinstance(self.train_dataset, PairedRows):
            self.train_dataset.set_epoch(kwargs["epoch"])
        super()._run_epoch(**kwargs)

    def get_train_dataloader(self) -> DataLoader:
        # accelerate repeats rows until all processes have as many batches; a step on the whole forget set must not
        # count a row twice. Other loops, and evaluation, need the same number of batches everywhere.
        if not self.method.even_batches and (self.is_fsdp_enabled or self.is_sharded):
            self.train_dataset = pad_rows(self.train_dataset, self._train_batch_size, self.args.world_size)
        even, self.accelerator.even_batches = self.accelerator.even_batches, self.method.even_batches
        try:
            return super().get_train_dataloader()
        finally:
            self.accelerator.even_batches = even

    def create_optimizer(self, model=None):
        self.optimizer = self.optimizer or self.method.create_optimizer(self)
        if self.optimizer is None:
            parts, named = self.method.parts(self), dict((self.model if model is None else model).named_parameters())
            step_in_fp32(super().create_optimizer(model), {named[name]: part for name, part in parts.items()})
        return self.optimizer

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if self.optimizer is not None:  # a method that runs itself has none
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        if checkpoint is not None and self.is_sharded:
            self.method.on_load(self)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        if (self.method.own_update and self.optimizer is not None) or fp32_weights(self.optimizer):
            # The update that is reported must be the one of the weights that were kept.
            self._load_optimizer_and_scheduler(self.state.best_model_checkpoint)

    def _inner_training_loop(self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, **kwargs):
        parts = self.method.run(self)
        if parts is None:
            return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, trial, **kwargs)
        if self.is_fsdp_enabled:
            raise InputError(
                f"{self.method.label} does its own work on the whole model: start it without FSDP "
                "(plain processes share it)"
            )
        return run_parts(self, parts, resume_from_checkpoint, trial)

    # ---- the loss --------------------------------------------------------------------------------------------------
    def _get_num_items_in_batch(self, batch_samples: list, device) -> Counts | None:
        """Counts over the micro-batches of a step and all processes; Trainer's own sees only top-level labels."""
        if not batch_samples:
            return None
        numbers = Counts.numbers(batch_samples)
        if self.args.world_size > 1:
            numbers = self.accelerator.reduce(torch.tensor(numbers, device=device), "sum").tolist()
        return Counts.at_least_one(numbers)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        counts = num_items_in_batch
        if return_outputs or not model.training:
            labels = inputs["labels"]
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            logits = objectives.logits_of(outputs, inputs.get("attention_mask"))
            nll = objectives.cross_entropy(logits, labels)
            loss = nll.sum() / max(len(nll), 1)
            return (loss, {"logits": logits}) if return_outputs else loss
        loss, parts = self.method.loss(model, inputs, counts)
        if not torch.isfinite(loss):
            raise NumericalError(
                f"the {self.method.label} loss is {loss.item()} at step {self.state.global_step}: "
                "lower the learning rate or the step norm, or check the rows for labels outside the vocabulary"
            )
        if not self._parts:
            self._parts_since = self.state.global_step
        for name, value in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + value
        # DDP averages gradients over processes, but each share is already divided by the count of all of them.
        return loss * self.args.world_size

    def log(self, logs: dict[str, float], start_time: float | None = None):
        if "loss" in logs and self._parts:
            names = sorted(self._parts)
            values = torch.stack([self._parts[name].float() for name in names])
            if self.args.world_size > 1:
                values = self.accelerator.reduce(values, "sum")
            steps = self.state.global_step - self._parts_since
            logs |= {name: value / steps for name, value in zip(names, values.tolist())}
            self._parts = {}
            logs |= self.method.on_log(self) | self.covered
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        metrics = super().evaluate(*args, **kwargs)
        # With a dict of datasets Trainer calls this once more per dataset; the evaluator belongs to the outer call.
        inner = kwargs.get("metric_key_prefix", "eval") != "eval"
        if self.evaluator is not None and not inner:
            extra = {f"eval_{name}": value for name, value in self.evaluator(self.model).items()}
            self.log(dict(extra))
            metrics |= extra
            # Trainer does this for every dataset; without one, the evaluation would be asked for again.
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- results ---------------------------------------------------------------------------------------------------
    def update_delta(self) -> UpdateDelta:
        """What the run changed, in fp32 as the update was made, under the names of the base model's checkpoint.

        Prompts are no change of weights: their update has the adapter's names, and is applied to a model that wears
        it. For a model that is spread over processes (FSDP2) all of them must call it, and all get the whole update.

        Raises:
            InputError: nothing has been trained yet.
        """
        if not self.base_weights:
            raise InputError("there is no update yet: call train() first")
        return update_of(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Save the model and, beside it, the update as `delta/` and a card; a checkpoint gets neither.

        A model that is spread over processes (FSDP2) is saved whole: all of them must call this.

        Raises:
            OSError: a file could not be written; what the folder held before is still there.
        """
        output_dir = output_dir or self.args.output_dir
        if _internal_call:
            return save_whole(self, output_dir)
        save_with_update(self, output_dir)
        if self.args.push_to_hub and self.args.should_save:
            self.push_to_hub()

    def init_hf_repo(self, token: str | None = None, private: bool | None = None):
        if self.is_world_process_zero():
            self.hub_model_id = find_repository(self.args, token, private)

    def save_plain(self, output_dir: str):
        """Trainer's own saving of the model and its tokenizer, without update and card."""
        super().save_model(output_dir, _internal_call=True)

    def push_to_hub(
        self,
        commit_message: str = "Upload unlearned model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **kwargs,
    ) -> str | None:
        """Push model, tokenizer, `delta/`, card and log to `hub_model_id` in one commit; returns its URL."""
        if not (self.is_world_process_zero() or self.is_sharded):
            return None
        return push(self, commit_message, token, revision)

    # ---- what a method may use (`methods.base.Run`) ----------------------------------------------------------------
    def loader(self, dataset, batch_size: int) -> DataLoader:
        """Batches of single rows, in order."""
        return DataLoader(dataset, batch_size=batch_size, shuffle=False, collate_fn=self.single_collator)

    @contextlib.contextmanager
    def weights_of_base(self):
        """The model with the weights it had before the first step."""
        with temporary_weights(self.model, self.base_weights):
            yield

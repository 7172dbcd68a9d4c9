# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of a run that do not belong to one method."""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..curvature.layout import parse_bytes
from ..data.preparing import LONG_TEXT
from ..data.prompts import QATemplate, make_template
from ..errors import InputError, input_errors
from ..runtime.fields import Range, check_fields


ALLOWED = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length"),
        Range(least=1),
    ),
    **dict.fromkeys(("curvature_batch_size", "save_total_limit"), Range(least=1)),
    **dict.fromkeys(("kl_rows", "curvature_save_steps", "learning_rate", "weight_decay"), Range(least=0)),
    **dict.fromkeys(("max_grad_norm", "warmup_steps", "adam_epsilon"), Range(least=0)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Range(least=0, below=1)),
    "num_train_epochs": Range(above=0),
    "long_text": LONG_TEXT,
    "max_steps": Range(least=-1),
    **dict.fromkeys(("seed", "data_seed"), Range(least=0, below=2**32)),
}


def setting(default, text: str):
    """A field with the text that `HfArgumentParser` shows."""
    return field(default=default, metadata={"help": text})


@dataclass
class UnlearnConfig(TrainingArguments):
    r"""
    Arguments of [`UnlearnTrainer`]: all of `transformers.TrainingArguments`, and these.

    Args:
        max_length (`int`, *optional*, defaults to `512`):
            Most tokens of a row that the trainer tokenises: longer texts are packed into several rows, other rows cut.
        long_text (`str`, *optional*, defaults to `"pack"`):
            What becomes of a `text` that is longer than `max_length`: `"pack"` makes several rows of it, `"cut"` keeps
            its beginning. What is cut off is not forgotten: its tokens are counted in the log and on the card.
        template (`str` or `dict`, *optional*):
            How question and answer become one text: a name of [`~data.prompts.PRESETS`] or fields of
            [`~data.prompts.QATemplate`].
        chat (`bool`, *optional*, defaults to `False`): Put questions in the tokenizer's chat template.
        system_prompt (`str`, *optional*): With `chat`, what the system says first.
        date_string (`str`, *optional*): With `chat`, the date in templates that have one; by default always the same.
        curvature_batch_size (`int`, *optional*, defaults to `8`):
            Retain sequences per forward pass while a curvature is fitted. Changes memory and speed, not the result.
        max_factor_memory (`int` or `str`, *optional*):
            Bytes, or a text such as `"20GB"`, of curvature that a process may hold on its device; what does not fit is
            fitted in several blocks of layers, one after another. See [`~curvature.Curvature.fit`].
        curvature_save_steps (`int`, *optional*, defaults to `100`):
            Retain batches after which a curvature fit writes its sums to `output_dir`, so that a run which is killed
            goes on inside the fit. Each time as many bytes are written as the factors have. 0 turns it off.
        kl_rows (`int`, *optional*, defaults to `64`):
            Retain rows on which KL(original || unlearned) is measured after a natural-gradient step; 0 turns it off.
        save_total_limit (`int`, *optional*, defaults to `1`):
            Checkpoints that are kept: the newest, and the best where one is asked for.
        model_init_kwargs (`dict`, *optional*):
            Keyword arguments of `from_pretrained` when the model is given by its name or folder.

    Raises:
        InputError: a value of another type or out of range, or arguments that exclude each other.
    """

    # A row of an unlearning batch is a pair of rows, which no signature of a model lists.
    remove_unused_columns: bool | None = setting(False, "Drop columns the model does not take.")
    logging_steps: float = setting(1, "Log every X updates steps.")
    max_length: int = setting(512, "Most tokens of a row.")
    long_text: str = setting("pack", "A text beyond max_length: pack it into several rows, or cut it.")
    # `HfArgumentParser` reads the second type.
    template: dict | str | None = setting(None, "Name of a template, or its fields.")
    chat: bool = setting(False, "Put questions in the tokenizer's chat template.")
    system_prompt: str | None = setting(None, "With chat: what the system says first.")
    date_string: str | None = setting(None, "With chat: the date in templates that have one.")
    curvature_batch_size: int = setting(8, "Retain sequences per pass of a curvature fit.")
    max_factor_memory: int | str | None = setting(
        None, "Curvature that a process may hold on its device, such as 20GB."
    )
    curvature_save_steps: int = setting(100, "Retain batches after which a fit writes its sums; 0: off.")
    # One is enough to go on from, and each is as large as the model.
    save_total_limit: int | None = setting(1, "Checkpoints that are kept, the newest (and the best).")
    # A half-made update is nobody's business: only `save_model` and `push_to_hub` publish.
    hub_strategy: str = setting("end", "When to push to the Hub.")
    kl_rows: int = setting(64, "Retain rows on which the KL is measured after a step; 0: off.")
    model_init_kwargs: dict | None = setting(None, "Keyword arguments of from_pretrained, for a model given by name.")

    def __post_init__(self):
        check_arguments({name: getattr(self, name) for name in checked_arguments()})
        parse_bytes(self.max_factor_memory)
        # Without an accelerator there is nothing to pin memory for, and torch would warn at every loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.prompt_template()
        with input_errors("training arguments: "):
            super().__post_init__()

    def prompt_template(self) -> QATemplate | None:
        """The template that was asked for; None where nothing was said.

        Raises:
            InputError: an unknown name or field, or settings of a chat without one.
        """
        chat = {"chat": self.chat, "system_prompt": self.system_prompt, "date_string": self.date_string}
        if self.template is None and not any(value not in (None, False) for value in chat.values()):
            return None
        return make_template(self.template, **chat)


@functools.cache
def checked_arguments() -> frozenset[str]:
    """Fields whose annotation says all that they take: our own, and numbers and flags of `TrainingArguments`."""
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    plain, hints = {int, float, bool, types.NoneType}, typing.get_type_hints(UnlearnConfig)
    return frozenset(
        field.name
        for field in dataclasses.fields(UnlearnConfig)
        if field.name not in inherited or plain >= {*(typing.get_args(hints[field.name]) or [hints[field.name]])}
    )


def check_arguments(values: Mapping[str, object]):
    """Refuse values of `UnlearnConfig`'s fields, by name, of another type or out of range.

    Raises:
        InputError: the message names field, value and what is allowed.
    """
    check_fields(UnlearnConfig, {name: values[name] for name in checked_arguments() & values.keys()}, ALLOWED)
    if values.get("max_steps") == 0:
        raise InputError("max_steps must be at least 1, or -1 for as many as num_train_epochs gives, not 0")

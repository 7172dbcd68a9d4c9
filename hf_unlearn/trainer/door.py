# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The door of the trainer: what is checked before any work, so that nothing fails, or is lost, at the end."""

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from ..curvature.targets import unwrap
from ..data.rows import fingerprint_rows
from ..data.sources import read_rows
from ..errors import InputError, first_line, input_errors
from ..methods.base import Method
from ..runtime.checkpoints import tied_names
from ..runtime.modules import is_peft
from ..runtime.processes import Processes, own
from ..runtime.provenance import code_sha256
from .config import UnlearnConfig
from .launch import check_launch
from .run_folder import checkpoint_to_resume, claim_folder, run_alone


logger = logging.getLogger(__name__)

# Arguments of Trainer that an unlearning run would ignore, or fail on later: name -> (whether it is one, what to do).
REFUSED: dict[str, tuple[Callable[[object], bool], str]] = {
    "label_smoothing_factor": (bool, "no loss of unlearning has it: leave it at 0"),
    "neftune_noise_alpha": (bool, "noise on the embeddings would be part of what is forgotten: leave it out"),
    "auto_find_batch_size": (bool, "it would change the rows of a step: set per_device_train_batch_size"),
    "dataloader_drop_last": (bool, "it would leave rows out that are to be forgotten: leave it out"),
    "deepspeed": (bool, "it keeps weights where no update can be read: spread the model by FSDP2 (--fsdp_version 2)"),
    "optim": (lambda value: value in ("lomo", "adalomo"), "it steps within the backward: choose another optim"),
    "hub_strategy": (
        lambda value: value != "end",
        "it would publish the output folder with updates that are half made: leave it at 'end'",
    ),
}
# Arguments that processes may have each for itself.
OWN_ARGUMENTS = {"local_rank", "output_dir", "run_name", "hub_token", "disable_tqdm", "log_level", "report_to"}
# Of methods whose rows are pairs.
REFUSED_PAIRS: dict[str, tuple[Callable[[object], bool], str]] = {
    "train_sampling_strategy": (
        lambda value: value in ("group_by_length", "batch_rebalance"),
        "each forget row comes with a retain row, and pairs have no one length: use 'random' or 'sequential'",
    ),
    "remove_unused_columns": (bool, "a pair of rows has no column that a model takes: leave it at False"),
}


def check_request(model: nn.Module | str, method: Method, args: UnlearnConfig, rows: Iterable, **others):
    """Refuse what could only fail later, or be ignored.

    Args:
        rows: the sets of rows; of one that is given by name the first row is read, before a model is.
        others: further arguments of the trainer, by name.

    Raises:
        InputError: something that is no model, method, `UnlearnConfig`, tokenizer or function, a setting out of range,
            an argument that has no part in unlearning, a name that no repository can have, rows that are not where
            they should be, an output folder that cannot be written.
    """
    if not isinstance(model, nn.Module | str):
        raise InputError(f"model must be a model, or its name or folder, not {model!r}")
    if not isinstance(method, Method):
        raise InputError(f"method must be a method such as KFade(step_norm=0.006), not {method!r}")
    if not isinstance(args, UnlearnConfig):
        raise InputError(f"args must be an UnlearnConfig, not a {type(args).__name__}")
    if isinstance(others["processing_class"], str):
        raise InputError("processing_class must be the tokenizer itself: AutoTokenizer.from_pretrained(...)")
    for name in ("data_collator", "evaluator"):
        if not (others[name] is None or callable(others[name])):
            raise InputError(f"{name} must be a function, not {others[name]!r}")
    method.check_settings()
    for name, (refused, why) in (REFUSED | (REFUSED_PAIRS if method.paired else {})).items():
        if refused(value := getattr(args, name)):
            raise InputError(f"{name}={getattr(value, 'value', value)!r}: {why}")
    _check_repository(args)
    for given in rows:
        if isinstance(given, str | Path):
            next(read_rows(given), None)
    if args.should_save:
        _check_writable(Path(args.output_dir))


def _check_repository(args: UnlearnConfig):
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = args.hub_model_id or (Path(args.output_dir).absolute().name if args.push_to_hub else None)
    try:
        if name is not None:
            validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"hub_model_id: no repository can be called {name!r}: {first_line(error)}") from error


def _check_writable(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"output_dir {folder} cannot be written ({error.strerror or first_line(error)}): choose another"
        ) from error


def wear_adapter(model: nn.Module, peft_config) -> nn.Module:
    """The model with a new adapter; the model as it is where there is none to add.

    Raises:
        InputError: PEFT cannot add it, or there is one already.
    """
    if peft_config is None:
        return model
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise InputError(f"peft_config must be one of PEFT's, such as LoraConfig(r=8), not {peft_config!r}")
    if is_peft(model):
        raise InputError("the model wears an adapter already: leave peft_config out, or merge_and_unload() it first")
    with input_errors("peft_config: ", (ValueError, TypeError, KeyError)):
        return get_peft_model(model, peft_config)


def check_model(model: nn.Module, args: UnlearnConfig):
    """Refuse a model that no method can train, and mend what could not be saved afterwards.

    Raises:
        InputError: an encoder with a decoder, no weights, an adapter whose logits are not those of the rows, fp16
            weights under fp16=True, a configuration for generation that transformers would refuse to save.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise InputError(f"{type(unwrap(model)).__name__} is an encoder with a decoder: give a causal model")
    if args.world_size == 1 and all(parameter.is_meta for parameter in model.parameters()):
        raise InputError("the model has no weights (they are on the meta device): load it with from_pretrained")
    for config in model.peft_config.values() if is_peft(model) else ():
        # Prefix tuning has virtual keys alone; the others put virtual tokens before the row, and their logits too.
        if config.is_prompt_learning and config.peft_type != "PREFIX_TUNING":
            raise InputError(
                f"the adapter {getattr(config.peft_type, 'value', config.peft_type)} puts virtual tokens before every "
                "row, so that logits are longer than labels: use prefix tuning, LoRA, or key/value prompts "
                "(hf_unlearn.tuners)"
            )
    if args.fp16 and any(p.requires_grad and p.dtype == torch.float16 for p in model.parameters()):
        raise InputError("fp16=True scales gradients, which fp16 weights cannot hold: leave it out, or load in fp32")
    _mend_generation(model)


def _mend_generation(model: nn.Module):
    """Take out of `generation_config` what does nothing and cannot be saved: temperature without do_sample.

    transformers saves such a configuration as it was loaded, but Trainer changes it (ids of special tokens), and what
    was changed must be valid.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
        return
    except ValueError as error:
        names = re.findall(r"^- `(\w+)`:", str(error), re.MULTILINE)
    taken = {name: getattr(config, name) for name in names}
    for name in names:
        setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        for name, value in taken.items():
            setattr(config, name, value)
        reason = " ".join(str(error).split())
        raise InputError(f"the model's generation_config cannot be saved: {reason}; mend it first") from error
    shown = ", ".join(f"{name}={value}" for name, value in taken.items())
    logger.warning(
        f"generation_config: {shown} has no effect as it stands, and transformers refuses to save it: taken out; set "
        "do_sample=True (num_beams for beams) before training to keep it"
    )


def check_start(trainer):
    """Refuse a run that would not end well, when all is known of it. Collective.

    Raises:
        InputError: a launch that gives a wrong result, processes that would not do the same, a metric that is not
            measured, a configuration or tokenizer that cannot be saved, too little disk.
    """
    check_launch(trainer)
    processes = Processes(trainer.accelerator, "the start of training")
    if processes.size > 1:
        processes.agree(own(processes, lambda: _identity(trainer)))
    own(processes, lambda: _check_end(trainer))


@contextlib.contextmanager
def at_work(trainer, folder: Path, resume: str | bool | None):
    """Inside, an output folder is this run's alone; gives the checkpoint that `resume` asks for, or None. Collective.

    Raises:
        InputError: nothing to move, processes with other weights than the first, a folder that holds another run or
            is held by one, no whole checkpoint of the name given, a folder that processes do not share.
    """
    if not trainer.base_weights:
        raise InputError(
            "no parameter requires a gradient, so nothing would change: unfreeze what shall move (requires_grad_), or "
            "load the adapter with is_trainable=True"
        )
    processes = Processes(trainer.accelerator, "the start of training")
    main, identity = processes.rank == 0, trainer.run_identity()
    processes.agree({"code": code_sha256(), **identity, **trainer.method.compared(trainer)})
    with run_alone(folder, processes):
        own(processes, lambda: claim_folder(folder, identity, write=main))
        checkpoint = own(processes, lambda: checkpoint_to_resume(folder, resume, clean=main))
        processes.agree({"checkpoint to resume from": checkpoint and Path(checkpoint).name})
        yield checkpoint


def _identity(trainer) -> dict:
    """What the processes of a run must have in common before any of them touches a weight."""
    sets = {"forget": trainer.forget_dataset, "retain": trainer.retain_dataset, "evaluation": trainer.eval_dataset}
    hashes = lambda rows: {name: fingerprint_rows(part) for name, part in rows.items()}
    return {
        "code": code_sha256(),
        "method": trainer.method.settings(),
        "arguments": {key: value for key, value in trainer.args.to_dict().items() if key not in OWN_ARGUMENTS},
        "evaluator": trainer.evaluator is not None,
        **{
            f"{name} rows": hashes(rows if isinstance(rows, dict) else {"": rows})
            for name, rows in sets.items()
            if rows is not None
        },
    }


def _check_end(trainer):
    """What would fail when results are chosen, and saved."""
    args = trainer.args
    if not trainer.method.own_update:
        with input_errors(f"optim={args.optim.value!r}: "):
            trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
    best = args.load_best_model_at_end or args.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if isinstance(trainer.eval_dataset, Mapping) and (best or args.save_strategy == "best"):
        known = [f"{name}_loss" for name in trainer.eval_dataset]
        if metric not in known and (trainer.evaluator is None or metric == "loss"):
            raise InputError(
                f"metric_for_best_model={metric!r} is not measured: choose {' or '.join(known) or 'another'}, or give "
                "an evaluator that returns it"
            )
    if args.should_save:
        for what, thing in (("config", trainer.model.config), ("tokenizer", trainer.processing_class)):
            _check_savable(what, thing)
        _check_shared(unwrap(trainer.model))
        _check_disk(trainer)


def _check_savable(what: str, thing):
    if not hasattr(thing, "save_pretrained"):
        return
    try:
        with tempfile.TemporaryDirectory() as folder:
            thing.save_pretrained(folder)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"the model's {what} cannot be saved ({first_line(error)}): mend it before training"
        ) from error


def _check_shared(model: nn.Module):
    """Weights that a person has tied by hand: safetensors writes none of them twice, and transformers refuses."""
    declared = getattr(model, "all_tied_weights_keys", None)
    if declared is None:
        return
    named = {*declared, *declared.values()}
    for group in tied_names(model):
        if not named.issuperset(group):
            raise InputError(
                f"{' and '.join(group[:2])} are one weight, which the model's class does not say, so it could not be "
                "saved: give each its own copy before training"
            )


def _check_disk(trainer):
    """One checkpoint, if any are written, must fit: weights, and the fp32 state of what moves."""
    if trainer.args.save_strategy == "no":
        return
    moving = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    saved = moving if is_peft(trainer.model) else trainer.model.parameters()
    state = 0 if trainer.args.save_only_model else 4 * sum(parameter.numel() for parameter in moving)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in saved) + state
    free = shutil.disk_usage(trainer.args.output_dir).free
    if needed > free:
        raise InputError(
            f"a checkpoint takes {needed / 1e9:.2f} GB at least and {trainer.args.output_dir} has {free / 1e9:.2f} GB "
            "free: free some, choose another output_dir, or set save_strategy='no'"
        )

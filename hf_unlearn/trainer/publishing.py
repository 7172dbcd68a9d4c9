# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Publishing of a finished run: the model with its update and card, as a folder or as one commit."""

import logging
import shutil
import tempfile
from pathlib import Path

from ..report.card import write_card
from ..requests.ledger import LOG_FILE
from ..runtime.checkpoints import needs_merging, save_merged
from ..runtime.folders import staged_folder
from ..runtime.hub import hide_places, make_repository, model_license, push_folder
from ..runtime.modules import is_peft
from ..runtime.published import MODEL_FILES
from ..runtime.sharded import whole_on_cpu
from .records import card_context
from .update import misfit


logger = logging.getLogger(__name__)


def save_whole(trainer, folder: str):
    """The model as Trainer saves it; one that is spread over processes in one piece (collective for it)."""
    # Trainer would write no weights when checkpoints are to be in parts (`fsdp_state_dict_type`).
    if trainer.is_fsdp_enabled and trainer.is_sharded:
        trainer._save(folder, state_dict=whole_on_cpu(trainer.model.state_dict(), keep=trainer.args.should_save))
    else:
        trainer.save_plain(folder)
    if trainer.args.should_save:
        hide_places(folder)


def save_alone(model, folder: Path, tokenizer, merging: bool):
    """A model, with its adapter merged (`needs_merging`) or as it is, and its tokenizer, without a trainer."""
    save_merged(model, folder) if merging else model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    hide_places(folder)


def save_with_update(trainer, output_dir: str):
    """The model, `delta/` and a card, moved to their places together."""
    saving = trainer.args.should_save
    delta = trainer.update_delta() if saving or trainer.is_sharded else None
    if not saving:
        return save_whole(trainer, output_dir)
    merging = needs_merging(trainer.model, trainer.method.own_update)
    if merging:
        logger.warning("weights under the adapter have changed: the model is saved whole, with the adapter merged")
    elif is_peft(trainer.model) and trainer.method.own_update:
        logger.warning("the base weights have changed and a PEFT model saves none: apply delta/ to the base first")
    context = card_context(trainer, delta)
    if why := misfit(trainer, delta):
        logger.warning(f"{why}: the model is saved without delta/")
        context |= {"delta": None, "limits": [*context["limits"], f"No update is published beside the model: {why}."]}
    with staged_folder(output_dir, MODEL_FILES) as folder:
        if merging:
            save_alone(trainer.model, folder, trainer.processing_class, merging)
        else:
            save_whole(trainer, str(folder))
        if why is None:
            delta.save_pretrained(folder / "delta")
        write_card(folder, context)


def find_repository(args, token: str | None, private: bool | None) -> str:
    """The repository that a run is to be pushed to, made before the run when it is absent."""
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    return make_repository(name, args.hub_private_repo if private is None else private, token or args.hub_token)


def push(trainer, commit_message: str, token: str | None, revision: str | None) -> str | None:
    """See `UnlearnTrainer.push_to_hub`; None on all processes but the main one."""
    if trainer.is_world_process_zero() and not trainer.describe.get("license"):
        # The card of the base model is seldom on this machine, but whoever pushes is connected.
        name = getattr(trainer.model.config, "_name_or_path", None)
        trainer.describe |= model_license(name, trainer.base_revision, download=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_with_update(trainer, temporary)
        if not trainer.is_world_process_zero():
            return None
        log = Path(trainer.args.output_dir) / LOG_FILE
        if log.is_file():
            shutil.copy(log, folder)
        return push_folder(
            trainer.args.hub_model_id or Path(trainer.args.output_dir).absolute().name,
            folder,
            private=trainer.args.hub_private_repo,
            revision=revision or trainer.args.hub_revision,
            commit_message=commit_message,
            token=token or trainer.args.hub_token,
        )

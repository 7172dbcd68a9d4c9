# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The Hub: what may be named there, folders from it, and one atomic push of weights, delta and card."""

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError


# What a published model is made of: weights, settings, tokenizer, card, evaluation results and the ledger. Whatever
# else lies in a folder is not published: it may be the rows that were to be forgotten.
WEIGHTS = ("model", "adapter_model", "delta", "curvature")
CONFIGS = "generation_ adapter_ delta_ curvature_ tokenizer_ preprocessor_ processor_"
PUBLISHED = (
    *(f"{name}{end}" for name in WEIGHTS for end in (".safetensors", "-*.safetensors", ".safetensors.index.json")),
    *("config.json", *(f"{name}config.json" for name in CONFIGS.split()), "tokenizer.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("README.md", "LICENSE*", "NOTICE*", ".eval_results/*.yaml", "unlearning_log.jsonl", "unlearning_transfer.json"),
)
# What transformers' Trainer leaves beside a model stays behind: it helps nobody who loads the model.
LEFT_BEHIND = ("training_args.bin", "optimizer.pt", "scheduler.pt", "checkpoint-*")
# Files that tell the output folder of a run, and that of an experiment.
OUTPUT_FILES = {"unlearn_run.json": "a run", "results.json": "an experiment", "report.html": "an experiment"}
LOCAL = " (local folder)"


def is_repo_id(name: str | None) -> bool:
    """Whether a model's name can be one of the Hub's, and is not that of a local folder."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def public_name(model: str | Path | None) -> str | None:
    """A model's name as it may stand in published files: a Hub id as it is, of a folder only its own name.

    The mark behind a folder's name keeps it from being read as a Hub id: "gpt2-mine (local folder)".
    """
    if not model or is_repo_id(str(model)) or str(model).endswith(LOCAL):
        return str(model) if model else None
    return f"{Path(model).resolve().name}{LOCAL}"


def fetch_folder(path_or_repo: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """A local folder: the one given, or the cached snapshot of those files of the Hub repository of that name.

    Raises:
        InputError: there is neither.
    """
    if Path(path_or_repo).is_dir():
        return Path(path_or_repo)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path_or_repo), revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise InputError(
            f"{path_or_repo} is neither a folder nor a Hub repository that can be read ({type(error).__name__}); "
            "check the name, the connection and the access token"
        ) from error


def push_folder(
    repo_id: str,
    folder: str | Path,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload unlearned model",
    token: str | None = None,
) -> str:
    """Upload the files of `folder` (`published_files`) to a model repository in one commit; returns the commit's URL.

    `HfApi.upload_folder` may split an upload into several commits, and a reader could meet new weights under an old
    card; `create_commit` is the call that is atomic. Shards that an earlier push left beside the new ones are deleted
    in the same commit: a reader may prefer them. Repository and branch (`revision`) are made when absent, `private` or
    not as the account's default has it.

    Raises:
        InputError: as `published_files`, or the repository's name is malformed.
        OSError: the Hub refused or could not be reached (`ConnectionError`).
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    operations = [CommitOperationAdd(name, path) for name, path in published_files(folder).items()]
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        stale = stale_weights(there, [operation.path_in_repo for operation in operations])
        operations += map(CommitOperationDelete, stale)
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository name ({error}); use namespace/name") from error
    except HTTPError as error:
        # Refusals and lost connections have this class in common, and messages of several lines.
        reason = " ".join(str(error).split())
        raise ConnectionError(f"the Hub did not take {repo_id} ({reason}); check the connection and token") from error
    return commit.commit_url


def stale_weights(there: Iterable[str], pushed: Iterable[str]) -> list[str]:
    """Files of a repository that hold an older version of safetensors that are pushed, under another sharding."""
    pushed = set(pushed)
    replaced = {_unsharded(name) for name in pushed} - {None}
    return [name for name in there if name not in pushed and _unsharded(name) in replaced]


def _unsharded(name: str) -> str | None:
    """`x.safetensors` for a shard of it, its index or itself; None for any other file."""
    match = re.fullmatch(r"(.*?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", name)
    return f"{match[1]}.safetensors" if match else None


def published_files(folder: str | Path) -> dict[str, Path]:
    """{name in the repository: file} of what a push of this folder publishes (`PUBLISHED`).

    Hidden files, which are unfinished ones, and what Trainer leaves beside a model stay behind.

    Raises:
        InputError: no folder, nothing to push, the output folder of a run or an experiment, a link, or a file that is
            no part of a model; it is named, and nothing is pushed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; pass the folder that holds the model to push")
    for name, what in OUTPUT_FILES.items():
        if (folder / name).exists():
            raise InputError(
                f"{folder} is the output folder of {what} ({name}), which holds more than a model: push the folder "
                "that the model was saved in, or call trainer.push_to_hub()"
            )
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if _stays_behind(place) or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            raise InputError(f"{path} is a link: put the file itself there, or take the link out")
        if not _is_published(place):
            raise InputError(f"{path} is no part of a published model: take it out of the folder, then push again")
        found[place.as_posix()] = path
    if not found:
        raise InputError(f"{folder} holds no file to push; save the model there first")
    return found


def _stays_behind(place: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".eval_results" for part in place.parts)
    return hidden or any(fnmatch.fnmatch(part, name) for part in place.parts for name in LEFT_BEHIND)


def _is_published(place: Path) -> bool:
    name = place.relative_to("delta") if place.parts[0] == "delta" else place
    return any(len(name.parts) == pattern.count("/") + 1 and name.match(pattern) for pattern in PUBLISHED)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The Hub: what may be named there, folders from it, and one atomic push of weights, delta and card."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .files import read_json, write_json
from .published import is_of_here, own_folders, published_files


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


def hide_places(folder: str | Path):
    """Take the places of this machine out of the configurations of a saved model: `public_name` takes their place.

    PEFT, and transformers in some files, write down the folder that the base model was loaded from. What
    `transformers.Trainer` and PEFT add besides goes: a pickle of all arguments (the token among them), and a card.
    """
    for name in ("training_args.bin", "README.md"):
        (Path(folder) / name).unlink(missing_ok=True)
    for path in Path(folder).glob("*config.json"):
        config = read_json(path)
        if (hidden := _hidden(config, own_folders())) != config:
            write_json(path, hidden)


def _hidden(value, own: set[str], key: str = ""):
    if isinstance(value, dict):
        return {name: _hidden(part, own, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_hidden(part, own, key) for part in value]
    if isinstance(value, str) and value and (key.endswith("name_or_path") or is_of_here(value, own)):
        return public_name(value)
    return value


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

    operations = [CommitOperationAdd(name, path) for name, path in published_files(folder, token).items()]
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

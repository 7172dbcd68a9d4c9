# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One atomic push: weights, delta and card reach the Hub together or not at all."""

from pathlib import Path

from .errors import InputError


# Hidden files are unfinished ones, and a pickle of the training arguments helps nobody who loads the model.
SKIPPED = {"training_args.bin", "optimizer.pt", "scheduler.pt"}


def push_folder(
    repo_id: str,
    folder: str | Path,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload unlearned model",
    token: str | None = None,
) -> str:
    """Upload every file of `folder` to a model repository (made when absent) in one commit.

    `HfApi.upload_folder` may split an upload into several commits, so that a reader could meet new weights under an old
    card; `create_commit` is the call that is atomic. Checkpoints, hidden files and pickled trainer state stay behind.

    Args:
        repo_id: "name" or "namespace/name".
        private: visibility of a repository that is made now; None leaves the choice to the account's default.
        revision: branch to commit to, made when absent; None is the main branch.

    Returns:
        The URL of the commit.

    Raises:
        InputError: the folder is missing or holds nothing to push, or the repository's name is malformed.
        OSError: the Hub refused or could not be reached (`ConnectionError`).
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; pass the output folder that holds the model to push")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_pushed(path.relative_to(folder))]
    if not files:
        raise InputError(f"{folder} holds no file to push; save the model there first")
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)
    except HFValidationError as error:
        raise InputError(f"{repo_id!r} is no repository name ({error}); use namespace/name") from error
    except HTTPError as error:
        # Refusals and lost connections have this class in common, and messages of several lines.
        reason = " ".join(str(error).split())
        raise ConnectionError(f"the Hub did not take {repo_id} ({reason}); check the connection and token") from error
    return commit.commit_url


def _is_pushed(path: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".eval_results" for part in path.parts)
    return not (hidden or path.name in SKIPPED or path.parts[0].startswith("checkpoint-"))

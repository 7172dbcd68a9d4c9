# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The Hub: what may be named there, folders from it, and one atomic push of weights, delta and card."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import InputError, first_line
from .files import read_json, write_json
from .folders import finish_move
from .published import is_of_here, own_folders, published_files


logger = logging.getLogger(__name__)

LOCAL = " (local folder)"
# What stands in a saved card where the repository's name will; a push fills it in.
PLACE = "path/to/this/model"
TRIES = 4
LONGEST_WAIT = 120.0  # seconds; who is asked to wait longer is told so
STALE = (409, 412)  # the repository is no more what it was


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


def missing_folder(name: str | Path) -> bool:
    """Whether a name that is no folder was meant as one: it cannot be a Hub id, or begins as a path of this machine.

    "outputs/model" could be both: it is taken for a folder where `outputs` is one.
    """
    text = str(name)
    if Path(text).exists():
        return False
    return not is_repo_id(text) or ("/" in text and Path(text).parts[0] != text and Path(Path(text).parts[0]).is_dir())


def public_name(model: str | Path | None) -> str | None:
    """A model's name as it may stand in published files: a Hub id as it is, of a folder only its own name.

    The mark behind a folder's name keeps it from being read as a Hub id: "gpt2-mine (local folder)". A folder of the
    Hub's cache is the repository that it was downloaded from, and so can be loaded by everyone.
    """
    if not model or is_repo_id(str(model)) or str(model).endswith(LOCAL):
        return str(model) if model else None
    if cached := re.search(r"/models--([^/]+)/snapshots/[0-9a-f]{40}/?$", Path(model).absolute().as_posix()):
        return cached[1].replace("--", "/")
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


def model_license(model: str | None, revision: str | None = None, *, download: bool = False) -> dict[str, str]:
    """What a model's own card says of its licence, as keys of a card's header; empty where that is not known.

    The card is looked for in the folder, or among the files of the Hub on this machine; on the Hub too if `download`.
    """
    import yaml
    from huggingface_hub import hf_hub_download, metadata_load
    from huggingface_hub.errors import HTTPError

    try:
        if not model or not (Path(model).is_dir() or is_repo_id(model)):
            return {}
        file = Path(model) / "README.md"
        if not Path(model).is_dir():
            file = hf_hub_download(model, "README.md", revision=revision, local_files_only=not download)
        told = metadata_load(file) or {}
    except (OSError, ValueError, HTTPError, yaml.YAMLError):  # no card, or none that can be read
        return {}
    names = ("license", "license_name", "license_link")
    found = {name: told[name] for name in names if isinstance(told.get(name), str)}
    return found if "license" in found else {}


def fetch_folder(path_or_repo: str | Path, revision: str | None, patterns: list[str]) -> Path:
    """A local folder: the one given, or the cached snapshot of those files of the Hub repository of that name.

    Raises:
        InputError: there is neither, or a folder whose files are half replaced (`finish_move`).
    """
    if Path(path_or_repo).is_dir():
        for folder in (Path(path_or_repo).resolve().parent, Path(path_or_repo)):  # `delta/` moves with its model
            finish_move(folder)
        return Path(path_or_repo)
    if missing_folder(path_or_repo):
        raise InputError(f"the folder {path_or_repo} does not exist: correct the path")
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
    card; `create_commit` is the call that is atomic. It is made on the commit that was seen: one that another program
    has made meanwhile is looked at again. Shards that an earlier push left beside the new ones are deleted in the same
    commit: a reader may prefer them. Repository and branch (`revision`) are made when absent, `private` or not as the
    account's default has it; a card gets the repository's name where it has a place for it.

    A busy or failing Hub and a lost connection are tried again, `TRIES` times in all. What was committed before the
    connection was lost is not committed twice, for only files that differ are sent.

    Raises:
        InputError: as `published_files`, or the repository's name is malformed.
        OSError: the Hub refused or could not be reached (`ConnectionError`); nothing was published.
    """
    from huggingface_hub import HfApi

    files, api = published_files(folder, token), HfApi(token=token)

    def push():
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        return _commit(api, name, files, revision, commit_message)

    return _insist(push, repo_id)


def make_repository(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """The whole name of a model repository, which is made when absent: whoever cannot push hears of it early.

    Raises:
        InputError, OSError: as `push_folder`.
    """
    from huggingface_hub import HfApi

    return _insist(lambda: HfApi(token=token).create_repo(repo_id, private=private, exist_ok=True).repo_id, repo_id)


def _insist(do: Callable[[], str], repo_id: str) -> str:
    """What `do()` returns, which is tried again after failures that pass; the Hub's refusals in one line."""
    from huggingface_hub.errors import HFValidationError, HTTPError, OfflineModeIsEnabled

    for tries_left in reversed(range(TRIES)):
        try:
            return do()
        except HFValidationError as error:
            raise InputError(f"{repo_id!r} is no repository name ({error}); use namespace/name") from error
        except OfflineModeIsEnabled as error:
            raise ConnectionError("HF_HUB_OFFLINE is set, so nothing is pushed: unset it, then push again") from error
        except HTTPError as error:
            # Refusals and lost connections have this class in common, and messages of several lines.
            wait = _wait(error, TRIES - tries_left)
            if not tries_left or wait is None:
                raise ConnectionError(f"{repo_id} was not pushed: {_reason(error)}") from error
            # Of a short wait nobody need hear.
            logger.log(logging.WARNING if wait > 5 else logging.INFO, f"{_reason(error)} (again in {wait:.0f} s)")
            time.sleep(wait)
        except RuntimeError as error:  # of an upload of weights, which the client has tried again already
            raise ConnectionError(f"{repo_id} was not pushed: {_reason(error.__cause__ or error)}") from error
        except ValueError as error:
            raise InputError(f"the Hub does not take the card of {repo_id}: {first_line(error)}") from error


def _commit(api, repo_id: str, files: Mapping[str, Path], revision: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        parent = api.repo_info(repo_id, revision=revision).sha
    except RevisionNotFoundError:  # an empty repository has no commit yet
        parent = None
    there = api.list_repo_files(repo_id, revision=parent or revision)
    operations = [CommitOperationDelete(name) for name in stale_weights(there, files)]
    for name, file in files.items():
        card = file.read_text(encoding="utf-8").replace(PLACE, repo_id).encode() if name == "README.md" else None
        operations.append(CommitOperationAdd(name, card or file))
    commit = api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=parent)
    return commit.commit_url


def _wait(error: Exception, tried: int) -> float | None:
    """Seconds until it is worth to try again; None: it is not, for the Hub refuses, or asks for too much patience."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status is not None and status not in (*STALE, 408, 429) and status < 500:
        return None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    wait = float(asked) if asked.isdigit() else 2.0 ** (tried - 1)
    return wait if wait <= LONGEST_WAIT else None


def _reason(error: Exception) -> str:
    """Why the Hub did not take a push and what helps, on one line."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    code = response.headers.get("X-Error-Code", "") if response is not None else ""
    said = " ".join(str(getattr(error, "server_message", None) or "").split())[:200]
    said = f" ({status}: {said})" if said else f" ({status})"
    if code == "GatedRepo":
        return f"its access is gated{said}: ask for access on its page, then push again"
    if status == 401:
        return f"the Hub does not know you{said}: log in with `hf auth login` or set HF_TOKEN to a valid token"
    if status == 403:
        return f"this account or token may not write there{said}: use a token with write permission, or your namespace"
    if status == 404:
        return f"there is no such repository, or this token may not see it{said}: check name and token"
    if status in STALE:
        return f"others changed it at the same time{said}: look at what they pushed, then push again"
    if status == 429:
        asked = response.headers.get("Retry-After")
        return f"too many requests{said}: push again {f'in {asked} s' if asked else 'later'}"
    if status is not None and status >= 500:
        return f"the Hub fails{said}: push again later"
    if status is not None:
        return f"the Hub refused it{said}: mend that, then push again"
    return f"the Hub could not be reached, or the connection was lost ({first_line(error)}): check it, then push again"


def stale_weights(there: Iterable[str], pushed: Iterable[str]) -> list[str]:
    """Files of a repository that hold an older version of safetensors that are pushed, under another sharding."""
    pushed = set(pushed)
    replaced = {_unsharded(name) for name in pushed} - {None}
    return [name for name in there if name not in pushed and _unsharded(name) in replaced]


def _unsharded(name: str) -> str | None:
    """`x.safetensors` for a shard of it, its index or itself; None for any other file."""
    match = re.fullmatch(r"(.*?)(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", name)
    return f"{match[1]}.safetensors" if match else None

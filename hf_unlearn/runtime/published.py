# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The one door out: which files of a folder a push publishes, and what none of them may hold."""

import fnmatch
import json
import re
import tempfile
from pathlib import Path

from ..errors import InputError
from .files import open_safetensors, read_json


# What a published model is made of: weights, settings, tokenizer, card, evaluation results and the ledger. Whatever
# else lies in a folder is not published: it may be the rows that were to be forgotten.
WEIGHTS = ("model", "adapter_model", "delta", "curvature")
CONFIGS = "generation_ adapter_ delta_ curvature_ tokenizer_ preprocessor_ video_preprocessor_ processor_"
PUBLISHED = (
    *(f"{name}{end}" for name in WEIGHTS for end in (".safetensors", "-*.safetensors", ".safetensors.index.json")),
    *("config.json", *(f"{name}config.json" for name in CONFIGS.split()), "tokenizer.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model"),
    *("sentencepiece.bpe.model", "source.spm", "target.spm", "*.tiktoken", "bpe.codes", "normalizer.json"),
    *("chat_template.jinja", "additional_chat_templates/*.jinja"),
    *("README.md", "LICENSE*", "NOTICE*", ".eval_results/*.yaml", "unlearning_log.jsonl", "unlearning_transfer.json"),
)
# What goes when a model is saved again without it: shards under another number, an adapter that was merged since,
# scores of the weights that were there.
MODEL_FILES = (
    *("model-*.safetensors", "model.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", "adapter_config.json"),
    *("delta/delta-*.safetensors", "delta/delta.safetensors", "delta/delta.safetensors.index.json"),
    *("delta/delta_config.json", ".eval_results/*.yaml"),
)
# What transformers' Trainer leaves beside a model stays behind: it helps nobody who loads the model.
LEFT_BEHIND = ("training_args.bin", "optimizer.pt", "scheduler.pt", "checkpoint-*")
# Files that tell the output folder of a run, and that of an experiment.
OUTPUT_FILES = {"unlearn_run.json": "a run", "results.json": "an experiment", "report.html": "an experiment"}
# Tokens of the Hub, and what may be an absolute path in a text.
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}")
ABSOLUTE = re.compile(r"/(?!/)[^\s\"'`<>|:;,*?()\[\]{}\\]+")
# Behind one of these a slash divides words, is part of an address or a tag, or goes on from a relative path.
WITHIN = re.compile(r"[\w.~<\\/-]")
# Folders that every machine has tell nothing of this one.
OF_ALL = ("/bin/", "/dev/", "/etc/", "/lib/", "/lib64/", "/proc/", "/sbin/", "/sys/", "/usr/")


def published_files(folder: str | Path, token: str | None = None) -> dict[str, Path]:
    """{name in the repository: file} of what a push of this folder publishes (`PUBLISHED`).

    Hidden files, which are unfinished ones, and what Trainer leaves beside a model stay behind. Every file, of weights
    the header, is searched for access tokens (`token` and the one in use among them) and for paths of this machine:
    in the home, the working or the temporary folder, or of a file that exists here.

    Raises:
        InputError: no folder, nothing to push, the output folder of a run or an experiment, a link, a file that is no
            part of a model, a token or a path; file and line are named (the token is not), and nothing is pushed.
    """
    from huggingface_hub import get_token

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; pass the folder that holds the model to push")
    for name, what in OUTPUT_FILES.items():
        if (folder / name).exists():
            raise InputError(
                f"{folder} is the output folder of {what} ({name}), which holds more than a model: push the folder "
                "that the model was saved in, or call trainer.push_to_hub()"
            )
    # A model of its own architecture brings the code that its configuration names.
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    has_code = isinstance(config, dict) and "auto_map" in config
    found = {}
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if _stays_behind(place) or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink():
            raise InputError(f"{path} is a link: put the file itself there, or take the link out")
        if not (_is_published(place) or (has_code and place.parts == (path.name,) and path.suffix == ".py")):
            raise InputError(f"{path} is no part of a published model: take it out of the folder, then push again")
        found[place.as_posix()] = path
    if not found:
        raise InputError(f"{folder} holds no file to push; save the model there first")
    own = own_folders()
    for path in found.values():
        _check_secrets(path, (token, get_token()), own)
    return found


def own_folders() -> set[str]:
    """Folders in which every path is one of this machine: the home, the working and the temporary folder."""
    return {str(place.resolve()) for place in (Path.home(), Path.cwd(), Path(tempfile.gettempdir()))} - {"/"}


def is_of_here(place: str, own: set[str]) -> bool:
    """Whether an absolute path lies in one of its `own_folders`, or exists and is not found on every machine."""
    place = place.rstrip("/.")
    if any(place.startswith(f"{folder}/") for folder in own):
        return True
    if not place.startswith("/") or place.count("/") < 3 or place.startswith(OF_ALL):
        return False
    try:
        return Path(place).exists()
    except (OSError, ValueError):  # too long for a path, or with a zero byte
        return False


def _stays_behind(place: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".eval_results" for part in place.parts)
    return hidden or any(fnmatch.fnmatch(part, name) for part in place.parts for name in LEFT_BEHIND)


def _is_published(place: Path) -> bool:
    name = place.relative_to("delta") if place.parts[0] == "delta" else place
    return any(len(name.parts) == pattern.count("/") + 1 and name.match(pattern) for pattern in PUBLISHED)


def _check_secrets(path: Path, tokens: tuple[str | None, ...], own: set[str]):
    """Refuse a file that holds an access token (those given, or anything that looks like one) or a path of here."""
    text = _text(path)
    secret = TOKEN.search(text)
    at = [secret.start() if secret else -1, *(text.find(token) for token in tokens if token)]
    if found := [place for place in at if place >= 0]:
        where = _line(path, text, min(found))
        raise InputError(f"{where} holds an access token: take it out and revoke it, then push again")
    for match in ABSOLUTE.finditer(text):
        before = text[max(match.start() - 7, 0) : match.start()]
        if (not WITHIN.match(before[-1:]) or before == "file://") and is_of_here(match[0], own):
            where = _line(path, text, match.start())
            raise InputError(f"{where} holds a path of this machine ({match[0]}): take it out, then push again")


def _text(path: Path) -> str:
    """All of a file; of safetensors what the header says beside names and shapes."""
    if path.suffix != ".safetensors":
        return path.read_text(encoding="utf-8", errors="replace")
    with open_safetensors(path) as file:
        return json.dumps(file.metadata() or {}, ensure_ascii=False)


def _line(path: Path, text: str, place: int) -> str:
    weights = path.suffix == ".safetensors"
    return f"the header of {path}" if weights else f"{path}, line {text.count(chr(10), 0, place) + 1},"

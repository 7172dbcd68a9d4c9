# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a dataset by name: a local file or folder, a file found in a data folder, or a dataset on the Hub."""

import difflib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError, first_line
from .formats import SUFFIXES, numbered, read_file, suffix


logger = logging.getLogger(__name__)

SPLITS = {"train", "test", "valid", "validation", "dev"}
# How deep below data_dir files are looked for.
DEPTH = 3
# The names under which people keep a dataset of the Hub, the likeliest first; what is before a "/" is a folder's name.
LOCAL_NAMES = {
    "cais/wmdp-bio-forget-corpus": ("bio-forget-corpus", "bio-forget", "bio-remove-dataset"),
    "cais/wmdp-corpora:bio-retain-corpus": ("bio-retain-corpus", "bio-retain", "bio-retain-dataset"),
    "cais/wmdp-corpora:cyber-forget-corpus": ("cyber-forget-corpus", "cyber-forget"),
    "cais/wmdp-corpora:cyber-retain-corpus": ("cyber-retain-corpus", "cyber-retain"),
    "cais/wmdp:wmdp-bio": ("wmdp-bio", "wmdp/bio", "bio-{split}"),
    "cais/wmdp:wmdp-chem": ("wmdp-chem", "wmdp/chem", "chem-{split}"),
    "cais/wmdp:wmdp-cyber": ("wmdp-cyber", "wmdp/cyber", "cyber-{split}"),
    "cais/mmlu:all": ("mmlu/{split}", "mmlu-{split}", "mmlu"),
    "tatsu-lab/alpaca": ("alpaca-data", "alpaca", "alpaca-en-demo"),
    "Salesforce/wikitext:wikitext-2-raw-v1": (
        *("wikitext-2-raw-v1", "wikitext-2", "wikitext", "wiki.{split}.raw", "wiki.{split}"),
        # What is enough for a retain set when there is no train split; a warning says so.
        *("wiki.test.raw", "wiki.valid.raw", "wiki.test", "wiki.valid"),
    ),
}
GATED = "cais/wmdp-bio-forget-corpus"


def read_rows(source: str | Path, data_dir: str | Path | None = None, split: str = "train") -> Iterator[tuple]:
    """Yields `(where, row)`: `where` names the file and line, or row counted from 1; `row` is what stands there.

    Rows of JSON files are any JSON value, those of tables (CSV, TSV, parquet) and of the Hub are dicts of columns, and
    a text file is one row, its whole text.

    Args:
        source (`str` or `Path`): a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.txt`, `.raw`, `.tokens`, each also with
            `.gz`, or `.parquet`), a folder of files of one kind, a name found in `data_dir`, or a dataset on the Hub:
            `user/name`, `user/name:config` or `user/name:config:split`.
        data_dir (`str` or `Path`, *optional*): searched before the Hub, `DEPTH` levels deep, for a file of that name
            (or for the shards of a split in a folder of that name). Case, suffixes, and `-` against `_` do not matter.
            The datasets in `LOCAL_NAMES` are also found under the names given there.
        split (`str`, *optional*, defaults to `"train"`): of a dataset on the Hub, where the source names none.

    Raises:
        InputError: nothing of that name, a file that cannot be read, a malformed line (with its number), or a dataset
            that is gated, unknown or out of reach. It comes with the first row, not with the call.
    """
    path = Path(source)
    if path.is_file() or path.is_dir():
        files = [path] if path.is_file() else _files_of_folder(path)
    else:
        files = _find(str(source), data_dir, split)
    if not files:
        yield from _read_hub(str(source), data_dir, split)
        return
    if files != [path]:
        logger.info(f"{source}: read from {', '.join(map(str, files))}")
    for file in files:
        yield from read_file(file)


# ---- files --------------------------------------------------------------------------------------------------------
def _stem(name: str) -> str:
    """`Bio_Forget.jsonl.gz` -> `bio-forget`. Wikitext's `.raw` stays: without <unk> it is another text."""
    path = Path(name.lower().removesuffix(".gz"))
    path = path.with_suffix("") if path.suffix in SUFFIXES and path.suffix != ".raw" else path
    return path.as_posix().replace("_", "-")


def _is_data(path: Path) -> bool:
    return path.is_file() and suffix(path) in SUFFIXES and not path.name.startswith(".")


def _files_of_folder(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if _is_data(path))
    kinds = sorted({suffix(path) for path in files})
    if len(kinds) != 1:
        found = f"files of several kinds ({', '.join(kinds)})"
        found = found if kinds else f"no file that ends in {', '.join(SUFFIXES)}"
        raise InputError(f"{folder} holds {found}; name one of its files, or a folder with files of one kind")
    return files


def _local_files(data_dir: str | Path | None) -> dict[str, Path]:
    """`folder/stem` (normalised) -> file, of all data files in `data_dir`, whose own name counts as a folder too."""
    if data_dir is None:
        return {}
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"the data folder {folder} does not exist; check data_dir, or leave it out to use the Hub")
    found = {}
    for level in range(DEPTH):
        for path in sorted(folder.glob("/".join(["*"] * (level + 1)))):
            if _is_data(path):
                found.setdefault(f"{_stem(path.resolve().parent.name)}/{_stem(path.name)}", path)
    return found


def _find(source: str, data_dir: str | Path | None, split: str) -> list[Path]:
    files = _local_files(data_dir)
    if not files:
        return []
    name, config, wanted = _parts(source)
    split = wanted or split
    if not config and (folder := Path(data_dir) / name).is_dir():
        return _files_of_folder(folder)
    for candidate in (*LOCAL_NAMES.get(f"{name}:{config}" if config else name, ()), config or Path(name).name):
        candidate = _stem(candidate.format(split=split))
        for key, path in files.items():
            if key.endswith(f"/{candidate}") or key == candidate:
                named = set(re.split(r"[./-]", key)) & SPLITS
                if named and split not in named:
                    logger.warning(f"{source}: {path} stands in for the {split} split, which {data_dir} does not have")
                return [path]
        shards = [path for key, path in files.items() if key.startswith(f"{candidate}/{split}-")]
        if shards:
            return shards
    return []


def _parts(source: str) -> tuple[str, str, str]:
    """`user/name:config:split` -> its three parts, those left out as ""."""
    name, config, split, *_ = (*source.split(":"), "", "")
    return name, config, split


# ---- the Hub ------------------------------------------------------------------------------------------------------
def _read_hub(source: str, data_dir: str | Path | None, split: str) -> Iterator[tuple]:
    name, config, wanted = _parts(source)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).suffix in (*SUFFIXES, ".gz"):
        raise InputError(
            f"{source} is neither a file, a folder nor a dataset on the Hub (user/name){_near(source, data_dir)}"
        )
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows = load_dataset(name, config or None, split=wanted or split)
    except (ValueError, OSError, HfHubHTTPError) as error:  # unknown config or split; no such dataset, no connection
        reason = first_line(error)
        if name == GATED:
            raise InputError(
                f"{name} is gated and could not be loaded ({reason}): ask for access with the form on its dataset "
                f"page and log in with `hf auth login`, or put the file you were sent into data_dir as "
                f"bio_forget.jsonl{_near(source, data_dir)}"
            ) from error
        cure = "check the name and the connection"
        if "gated" in reason:
            cure = "ask for access on its dataset page and log in with `hf auth login`"
        elif "Offline" in reason:
            cure = "go online (unset HF_HUB_OFFLINE)"
        raise InputError(
            f"cannot load {source} from the Hub ({reason}); {cure}, or give data_dir or a path with a local copy"
            f"{_near(source, data_dir)}"
        ) from error
    yield from numbered(source, rows)


def _near(source: str, data_dir: str | Path | None) -> str:
    """What `data_dir` has under a name like that, as the end of a message."""
    if data_dir is None:
        near = [] if source in LOCAL_NAMES else difflib.get_close_matches(source, LOCAL_NAMES, n=3)
        return f"; did you mean {', '.join(near)}?" if near else ""
    stems = sorted({key.rpartition("/")[2]: path.name for key, path in _local_files(data_dir).items()}.items())
    wanted = {_stem(part) for part in (*re.split("[:/]", source), *LOCAL_NAMES.get(source, ()))}
    near = [stem for name in sorted(wanted) for stem in difflib.get_close_matches(name, dict(stems), n=3)]
    names = [name for stem, name in stems if stem in near] or [name for _, name in stems][:10]
    return f"; {data_dir} has {'files like ' if near else ''}{', '.join(names) or 'no data file'}"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU (Maini et al. 2024): questions and answers about fictitious authors, their prompts and their tokens."""

import dataclasses
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import InputError
from .prompts import check_columns


QA_COLUMNS = ("question", "answer")
WRONG_COLUMNS = ("question", "answer", "perturbed_answer")
EVAL_COLUMNS = ("question", "answer", "paraphrased_answer", "perturbed_answer")
FORGET_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
ROWS_PER_AUTHOR = 20
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclasses.dataclass
class TofuSplits:
    """One unlearning problem. All are `datasets.Dataset`; `full` = retain rows, then forget rows.

    forget, retain, full, holdout: question, answer. forget_eval, retain_eval: also paraphrased_answer and
    perturbed_answer (a list of wrong answers). real_authors, world_facts: also perturbed_answer.
    """

    forget: object
    retain: object
    full: object
    forget_eval: object
    retain_eval: object
    real_authors: object
    world_facts: object
    holdout: object | None
    name: str

    def evaluation(self) -> dict:
        """The sets that `hf_unlearn.evaluation.tofu.evaluate` scores; holdout may be None."""
        return {
            "forget": self.forget_eval,
            "retain": self.retain_eval,
            "real_authors": self.real_authors,
            "world_facts": self.world_facts,
            "holdout": self.holdout,
        }


def load_tofu(
    source: str | Path = "locuslab/TOFU", forget: str = "forget10", *, retain_rows: int | None = None
) -> TofuSplits:
    """Load the splits of one TOFU problem as `TofuSplits`.

    Args:
        source: a folder with `<split>.json`, `.jsonl` or either with `.gz`, or a dataset id on the Hub.
        forget: forget01, forget05 or forget10; the retain split follows from it.
        retain_rows: keep only the first so many retain rows (whole authors of 20 rows) and the retain evaluation
            rows among them, for a model trained on that subset. The name of the splits says it.

    Raises:
        InputError: unknown split, missing folder, file or column, an empty split, a file that is not JSON, or a
            `retain_rows` that is no multiple of 20 or more than there are.
    """
    if forget not in FORGET_SPLITS:
        raise InputError(f"unknown forget split {forget!r}; choose one of {', '.join(FORGET_SPLITS)}")
    retain = FORGET_SPLITS[forget]
    read = _read_folder if Path(source).is_dir() else _read_hub
    if read is _read_hub and str(source).count("/") != 1:
        raise InputError(f"{source} is neither a folder nor a dataset id on the Hub (user/name)")
    parts = {
        "forget": read(source, forget, QA_COLUMNS),
        "retain": read(source, retain, QA_COLUMNS),
        "forget_eval": read(source, f"{forget}_perturbed", EVAL_COLUMNS),
        "retain_eval": read(source, "retain_perturbed", EVAL_COLUMNS),
        "real_authors": read(source, "real_authors_perturbed", WRONG_COLUMNS),
        "world_facts": read(source, "world_facts_perturbed", WRONG_COLUMNS),
        "holdout": read(source, forget.replace("forget", "holdout"), QA_COLUMNS, optional=True),
    }
    name = f"tofu-{forget}"
    if retain_rows is not None:
        parts["retain"], parts["retain_eval"] = _keep_authors(parts["retain"], parts["retain_eval"], retain_rows)
        name += f"-retain{retain_rows}rows"
    return make_splits(parts, name)


def make_splits(parts: Mapping[str, list[dict] | None], name: str) -> TofuSplits:
    """`TofuSplits` from lists of rows; `full` is made here."""
    from datasets import Dataset

    parts = {**parts, "full": [*parts["retain"], *parts["forget"]]}
    return TofuSplits(name=name, **{key: rows and Dataset.from_list(rows) for key, rows in parts.items()})


def _keep_authors(retain: list[dict], evaluation: list[dict], rows: int) -> tuple[list[dict], list[dict]]:
    if rows < ROWS_PER_AUTHOR or rows % ROWS_PER_AUTHOR or rows > len(retain):
        raise InputError(
            f"retain_rows={rows}: give a multiple of {ROWS_PER_AUTHOR} (the rows of one author) up to {len(retain)}"
        )
    retain = retain[:rows]
    kept = {(row["question"], row["answer"]) for row in retain}
    evaluation = [row for row in evaluation if (row["question"], row["answer"]) in kept]
    if not evaluation:
        raise InputError(f"retain_rows={rows}: no retain evaluation row is among the rows kept; raise it")
    return retain, evaluation


def _read_folder(folder: str | Path, split: str, columns: tuple[str, ...], optional: bool = False):
    paths = [path for suffix in SUFFIXES if (path := Path(folder) / f"{split}{suffix}").is_file()]
    if not paths:
        if optional:
            return None
        present = sorted(path.name for path in Path(folder).iterdir() if path.name.endswith(SUFFIXES))
        raise InputError(f"{folder} has no {split}.json or .jsonl (also .gz); it has: {', '.join(present) or 'none'}")
    path = paths[0]
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            text = file.read()
        rows = (
            json.loads(text)
            if ".jsonl" not in path.name
            else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise InputError(f"{path} cannot be read ({error}); it must hold JSON rows") from error
    return _checked_rows(rows, columns, str(path))


def _read_hub(source: str, split: str, columns: tuple[str, ...], optional: bool = False):
    from datasets import load_dataset

    try:
        rows = load_dataset(str(source), split, split="train")
    except (ValueError, OSError) as error:  # unknown config; no such dataset, no connection
        if optional:
            return None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"cannot load {split!r} of {source} from the Hub: {reason}; give a local folder or check the id"
        ) from error
    return _checked_rows(list(rows), columns, f"{source} {split}")


def _checked_rows(rows, columns: tuple[str, ...], where: str) -> list[dict]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{where} does not hold a list of JSON objects")
    check_columns(rows, columns, where)
    for number, row in enumerate(rows):
        for column in columns:
            value = row.get(column)
            good = (
                isinstance(value, str) if column != "perturbed_answer" else isinstance(value, list) and len(value) > 0
            )
            if not good:
                raise InputError(f"{where}, row {number}: column {column!r} is missing or of the wrong type")
    return [{column: row[column] for column in columns} for row in rows]

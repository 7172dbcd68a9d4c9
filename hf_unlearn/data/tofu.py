# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU (Maini et al. 2024): questions and answers about fictitious authors, and the splits of its problems."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from ..errors import InputError
from .prompts import QATemplate, check_columns, encode_qa  # noqa: F401 (who scores TOFU looks for them here)
from .sources import read_rows


QA_COLUMNS = ("question", "answer")
WRONG_COLUMNS = ("question", "answer", "perturbed_answer")
EVAL_COLUMNS = ("question", "answer", "paraphrased_answer", "perturbed_answer")
FORGET_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
ROWS_PER_AUTHOR = 20
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclasses.dataclass
class TofuSplits:
    """One unlearning problem."""

    forget: Dataset  # question and answer
    retain: Dataset  # likewise
    full: Dataset  # the retain rows, then the forget rows
    forget_eval: Dataset  # also paraphrased_answer and perturbed_answer (a list of wrong answers)
    retain_eval: Dataset  # likewise
    real_authors: Dataset  # question, answer and perturbed_answer
    world_facts: Dataset  # likewise
    holdout: Dataset | None  # question and answer of authors that no model has seen, where there are any
    name: str  # of the problem, for reports

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
        source (`str` or `Path`, *optional*, defaults to `"locuslab/TOFU"`): a folder with `<split>.json`, `.jsonl` or
            either with `.gz`, or a dataset on the Hub whose configurations are the splits.
        forget (`str`, *optional*, defaults to `"forget10"`): forget01, forget05 or forget10; the retain split follows.
        retain_rows (`int`, *optional*): keep only the first so many retain rows (whole authors of 20 rows) and the
            retain evaluation rows among them, for a model trained on that subset. The name of the splits says it.

    Raises:
        InputError: unknown split, missing folder, file or column, an empty split, a row that is malformed (named by
            file and line), or a `retain_rows` that is no multiple of 20 or more than there are.
    """
    if forget not in FORGET_SPLITS:
        raise InputError(f"unknown forget split {forget!r}; choose one of {', '.join(FORGET_SPLITS)}")
    parts = {
        "forget": _read(source, forget, QA_COLUMNS),
        "retain": _read(source, FORGET_SPLITS[forget], QA_COLUMNS),
        "forget_eval": _read(source, f"{forget}_perturbed", EVAL_COLUMNS),
        "retain_eval": _read(source, "retain_perturbed", EVAL_COLUMNS),
        "real_authors": _read(source, "real_authors_perturbed", WRONG_COLUMNS),
        "world_facts": _read(source, "world_facts_perturbed", WRONG_COLUMNS),
        "holdout": _read(source, forget.replace("forget", "holdout"), QA_COLUMNS, optional=True),
    }
    name = f"tofu-{forget}"
    if retain_rows is not None:
        parts["retain"], parts["retain_eval"] = _keep_authors(parts["retain"], parts["retain_eval"], retain_rows)
        name += f"-retain{retain_rows}rows"
    return make_splits(parts, name)


def make_splits(parts: Mapping[str, list[dict] | None], name: str) -> TofuSplits:
    """`TofuSplits` from lists of rows; `full` is made here."""
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


def _read(source: str | Path, split: str, columns: tuple[str, ...], optional: bool = False) -> list[dict] | None:
    """The rows of one split with `columns` alone; None when the split is optional and absent."""
    place = _find_file(Path(source), split, optional) if Path(source).is_dir() else f"{source}:{split}"
    if place is None:
        return None
    try:
        found = list(read_rows(place))
    except InputError:
        if optional and not isinstance(place, Path):  # the Hub has no configuration of that name
            return None
        raise
    if wrong := [where for where, row in found if not isinstance(row, dict)]:
        raise InputError(f"{wrong[0]} is not a JSON object: a row needs {', '.join(columns)}")
    check_columns([row for _, row in found], columns, str(place))
    for where, row in found:
        for column in columns:
            wanted = list if column == "perturbed_answer" else str
            if not isinstance(row.get(column), wanted) or row[column] == []:
                raise InputError(f"{where}: column {column!r} is missing or of the wrong type")
    return [{column: row[column] for column in columns} for _, row in found]


def _find_file(folder: Path, split: str, optional: bool) -> Path | None:
    found = next((path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()), None)
    if found or optional:
        return found
    present = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    raise InputError(f"{folder} has no {split}.json or .jsonl (also .gz); it has: {', '.join(present) or 'none'}")

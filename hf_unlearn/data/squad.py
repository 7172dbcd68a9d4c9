# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SQuAD v1.1 and v2.0 (Rajpurkar et al. 2016, 2018): questions on passages, as windows of tokens with a span each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..errors import InputError
from .formats import SUFFIXES
from .prompts import check_columns
from .sources import read_rows


HUB = {"1.1": "rajpurkar/squad", "2.0": "rajpurkar/squad_v2"}
COLUMNS = ("id", "context", "question", "answers")


def load_squad(version: str = "1.1", source: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """(training rows, validation rows), the latter the test set as in the papers: `COLUMNS` as the Hub has them.

    `answers` is {"text": [...], "answer_start": [...]}, characters into `context`; empty lists (v2.0 alone) where the
    passage has no answer.

    Args:
        version (`str`, *optional*, defaults to `"1.1"`): "1.1" or "2.0".
        source (`str` or `Path`, *optional*): a dataset on the Hub, or a folder with `train` and `validation` files of
            any suffix that rows are read from, also as `squad_train.jsonl` or `train-00000-of-00001.parquet`; the
            Hub's own by default.

    Raises:
        InputError: another version, no such file or column, an answer that does not stand where it is said to, a
            question without an answer in v1.1; named by file and line.
    """
    if version not in HUB:
        raise InputError(f"unknown version {version!r} of SQuAD: choose one of {', '.join(HUB)}")
    return tuple(_read(version, source or HUB[version], split) for split in ("train", "validation"))


def _read(version: str, source: str | Path, split: str) -> Dataset:
    folder = Path(source).is_dir()
    places = _files(Path(source), split) if folder else [f"{source}::{split}"]
    found = [(where, row) for place in places for where, row in read_rows(place)]
    if wrong := [where for where, row in found if not isinstance(row, dict)]:
        raise InputError(f"{wrong[0]} is not an object: a row needs {', '.join(COLUMNS)}")
    check_columns([row for _, row in found], COLUMNS, str(places[0]))
    rows = []
    for where, row in found:
        for name in ("context", "question"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise InputError(f"{where}: column {name!r} is no text: leave the row out, or mend it")
        rows.append({name: row[name] for name in COLUMNS[:3]} | {"answers": _answers(row, version, where)})
    return Dataset.from_list(rows)


def _files(folder: Path, split: str) -> list[Path]:
    for stem in (split, f"squad_{split}"):
        for suffix in SUFFIXES:
            for packed in ("", ".gz"):
                if (file := folder / f"{stem}{suffix}{packed}").is_file():
                    return [file]
    if shards := sorted(folder.glob(f"{split}-*.parquet")):
        return shards
    present = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise InputError(f"{folder} has no {split} rows: give a file such as {split}.jsonl; it has: {present}")


def _answers(row: dict, version: str, where: str) -> dict:
    answers = row.get("answers")
    texts, starts = (answers.get(name) for name in ("text", "answer_start")) if isinstance(answers, dict) else (0, 0)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise InputError(f"{where}: answers must be lists of text and answer_start, one for each answer")
    if not texts and version == "1.1":
        raise InputError(f"{where}: a question without an answer: that is SQuAD v2.0, choose version 2.0")
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or type(start) is not int or row["context"][start : start + len(text)] != text:
            raise InputError(f"{where}: the answer {text!r} does not stand at character {start!r} of the context")
    return {"text": texts, "answer_start": starts}


@dataclass(frozen=True)
class Windows:
    """Questions as rows that a model takes: a long passage gives several windows, which overlap.

    Attributes:
        rows: `input_ids`, `attention_mask`, `token_type_ids` where the tokenizer has them, and `start_positions`,
            `end_positions`: the first and last token of the answer, or the row's first token (its class token) where
            the window does not hold all of it.
        questions: (W,) the question of each window, a row number of the data.
        offsets: of each window (T, 2), the characters of the context that its tokens stand for; -1 for others.
        answered: (W,) whether the window holds the answer.
    """

    rows: Dataset
    questions: np.ndarray
    offsets: list[np.ndarray]
    answered: np.ndarray

    def of(self, questions: Sequence[int]) -> "Windows":
        """Those of some questions, which are numbered anew in the order given."""
        number = {question: place for place, question in enumerate(questions)}
        places = [place for place, question in enumerate(self.questions.tolist()) if question in number]
        return Windows(
            self.rows.select(places),
            np.array([number[question] for question in self.questions[places].tolist()]),
            [self.offsets[place] for place in places],
            self.answered[places],
        )


def tokenize_squad(rows: Dataset, tokenizer, max_length: int = 384, stride: int = 128) -> Windows:
    """Questions and passages as windows, in one call of the tokenizer.

    Args:
        max_length (`int`, *optional*, defaults to 384): most tokens of a window.
        stride (`int`, *optional*, defaults to 128): tokens of the passage that two windows share.

    Raises:
        InputError: a tokenizer that cannot say which characters its tokens stand for, or lengths that no window fits.
    """
    if not tokenizer.is_fast:
        raise InputError("SQuAD needs a fast tokenizer, which knows the characters of its tokens")
    questions = [question.lstrip() for question in rows["question"]]
    longest = max(map(len, tokenizer(questions, add_special_tokens=False)["input_ids"]))
    least = longest + tokenizer.num_special_tokens_to_add(pair=True) + stride + 1
    if max_length < least:
        raise InputError(
            f"max_length={max_length}: the longest question has {longest} tokens, which with stride={stride} needs "
            f"{least}: raise max_length, or lower stride"
        )
    encoded = tokenizer(
        questions,
        list(rows["context"]),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    asked = np.array(encoded["overflow_to_sample_mapping"])
    offsets, spans = [], []
    for window, question in enumerate(asked.tolist()):
        of_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
        characters = np.where(of_context[:, None], np.array(encoded["offset_mapping"][window]), -1)
        offsets.append(characters)
        spans.append(_span(characters, rows[question]["answers"]))
    starts, ends = ([span[side] if span else 0 for span in spans] for side in (0, 1))
    names = [name for name in ("input_ids", "token_type_ids", "attention_mask") if name in encoded]
    columns = {name: encoded[name] for name in names} | {"start_positions": starts, "end_positions": ends}
    return Windows(Dataset.from_dict(columns), asked, offsets, np.array([span is not None for span in spans]))


def _span(characters: np.ndarray, answers: dict) -> tuple[int, int] | None:
    """First and last token of the first answer; None where the window does not hold all of it, or there is none."""
    if not answers["text"]:
        return None
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    real = np.flatnonzero(characters[:, 0] >= 0)
    if not len(real) or characters[real[0], 0] > begin or characters[real[-1], 1] < end:
        return None
    first = real[np.flatnonzero(characters[real, 0] <= begin)[-1]]
    last = real[np.flatnonzero(characters[real, 1] >= end)[0]]
    return int(first), int(last)

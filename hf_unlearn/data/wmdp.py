# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Corpora, questions and instructions of a WMDP experiment (Li et al. 2024), from the Hub or from local files.

`docs/wmdp.md` says where each comes from. `source` and `data_dir` are those of `sources.read_rows`; on the Hub the
split is train, of questions test, unless the source names another.
"""

import itertools
import logging
import re
from pathlib import Path

from datasets import Dataset

from ..errors import InputError
from .rows import check_limit, sample_rows
from .sources import read_rows


logger = logging.getLogger(__name__)

# ` = Robert Boulter = ` begins an article; ` = = Career = = ` is a section of one.
TITLE = re.compile(r"\s*= (?!= )\S.*(?<! =) =\s*")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# ---- corpora ------------------------------------------------------------------------------------------------------
def load_texts(source: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None, seed: int = 0):
    """The documents of a corpus as a `datasets.Dataset` with the column `text`, in their order.

    A row is an object with `text`, or a text itself; a text file is one document. Wikitext comes in lines: they are
    joined to articles, begun by ` = Title = ` headings, with one line a paragraph. Documents without a letter or digit
    are left out. `limit` takes a choice of so many, drawn with `seed`.

    Raises:
        InputError: as `read_rows`; a row without text, no document at all, or `limit` below 1.
    """
    texts = [_text(*found) for found in read_rows(source, data_dir, "train")]
    begin = next((text for text in texts if text.strip()), "")
    if TITLE.fullmatch(begin) and len(texts) > 1:
        texts = ["\n".join(text.rstrip("\r\n") for text in texts)]
    texts = [article for text in texts for article in wikitext_articles(text)]
    kept = [text for text in texts if re.search(r"\w", text)]
    if not kept:
        raise InputError(f"the corpus {source} holds no text: give one with at least one document")
    if len(kept) < len(texts):
        logger.info(f"{source}: {len(texts) - len(kept)} of {len(texts)} documents are empty and left out")
    return sample_rows(Dataset.from_dict({"text": kept}), limit, seed)


def _text(where: str, row) -> str:
    if isinstance(row, str):
        return row
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        found = f"the columns {', '.join(row)}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise InputError(f"{where} has no text but {found}: a corpus needs a column `text` of strings")
    return row["text"]


def wikitext_articles(text: str) -> list[str]:
    """The articles of a Wikitext file: its paragraphs and headings, one a line; any other text is returned as it is.

    A title stands between blank lines; equations in the text, which look the same, do not.
    """
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    if not TITLE.fullmatch(first):
        return [text]
    articles = []
    for number, line in enumerate(lines):
        alone = not any(near.strip() for near in (*lines[number - 1 : number], *lines[number + 1 : number + 2]))
        if not line.strip():
            continue
        if line == first and not articles or alone and TITLE.fullmatch(line):
            articles.append([])
        articles[-1].append(line.strip())
    return ["\n".join(article) for article in articles]


# ---- questions and instructions -----------------------------------------------------------------------------------
def load_questions(source: str | Path, *, data_dir: str | Path | None = None) -> list[dict]:
    """Multiple-choice questions: `question`, `choices` (two or more), `answer` (an index from 0), `subject` if given.

    An answer may also be written as a letter, A for the first choice.

    Raises:
        InputError: as `read_rows`; a malformed row, named by file and line; no question.
    """
    questions = [check_question(*found) for found in read_rows(source, data_dir, "test")]
    if not questions:
        raise InputError(f"{source} holds no question: give rows with question, choices and answer")
    return questions


def check_question(where: str, row) -> dict:
    """A row as `load_questions` gives it; `where` names it in the message of an `InputError`."""
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is a {type(row).__name__}: a question is an object with question, choices and answer"
        )
    if missing := [key for key in ("question", "choices", "answer") if row.get(key) is None]:
        raise InputError(f"{where} has no {', '.join(missing)}: a question needs question, choices and answer")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: the question must be text, not {question!r}")
    texts = isinstance(choices, list | tuple) and all(isinstance(choice, str) and choice for choice in choices)
    if not texts or len(choices) < 2:
        raise InputError(f"{where}: choices must be a list of two or more texts, not {choices!r}")
    if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS:
        answer = LETTERS.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f"{where}: the answer must be an index from 0 to {len(choices) - 1} or a letter from A to "
            f"{LETTERS[len(choices) - 1]}, not {row['answer']!r}"
        )
    subject = {"subject": row["subject"]} if isinstance(row.get("subject"), str) else {}
    return {"question": question, "choices": choices, "answer": answer, **subject}


def load_instructions(source: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None):
    """Alpaca's rows as a `datasets.Dataset` with `instruction`, `input` and `output` (the last two "" where absent).

    `limit` takes the first so many.

    Raises:
        InputError: as `read_rows`; a row without an instruction (named by file and line), or no row.
    """
    check_limit(limit)
    rows = [_instruction(*found) for found in itertools.islice(read_rows(source, data_dir, "train"), limit)]
    if not rows:
        raise InputError(f"{source} holds no instruction: give rows with instruction, input and output")
    return Dataset.from_list(rows)


def _instruction(where: str, row) -> dict:
    values = {key: row.get(key) or "" for key in ("instruction", "input", "output")} if isinstance(row, dict) else {}
    if not values.get("instruction") or not all(isinstance(value, str) for value in values.values()):
        raise InputError(
            f"{where} has no instruction: a row needs instruction, and may have input and output, as text"
        )
    return values

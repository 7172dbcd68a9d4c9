# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Corpora, questions and instructions of a WMDP experiment (Li et al. 2024), from the Hub or from local files.

`docs/wmdp.md` says where each comes from. All functions take the same `source` and `data_dir`: see `sources.read_rows`.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import InputError
from .sources import read_rows


logger = logging.getLogger(__name__)

TOKENISED_TOGETHER = 256  # documents
# ` = Robert Boulter = ` begins an article; ` = = Career = = ` is a section of one.
TITLE = re.compile(r"\s*= (?!= )\S.*(?<! =) =\s*")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


# ---- corpora -------------------------------------------------------------------------------------------------------------
def load_texts(source: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None, seed: int = 0):
    """The documents of a corpus as a `datasets.Dataset` with the column `text`, in their order.

    A row is an object with `text`, or a text itself; a text file is one document. Wikitext comes in lines: they are joined
    to articles, begun by ` = Title = ` headings, with one line a paragraph. Documents without a letter or digit are left out.

    Args:
        source, data_dir: see `sources.read_rows`; on the Hub the split is train unless the source names another.
        limit: a seeded choice of at most this many documents; all by default.

    Raises:
        InputError: as `read_rows`; a row without text, no document at all, or `limit` below 1.
    """
    from datasets import Dataset

    texts = [_text(row, where) for where, row in read_rows(source, data_dir, "train")]
    begin = next((text for text in texts if text.strip()), "")
    if TITLE.fullmatch(begin) and len(texts) > 1:
        texts = ["\n".join(text.rstrip("\r\n") for text in texts)]
    texts = [article for text in texts for article in wikitext_articles(text)]
    kept = [text for text in texts if re.search(r"\w", text)]
    if not kept:
        raise InputError(f"the corpus {source} holds no text: give one with at least one document")
    if len(kept) < len(texts):
        logger.info(f"{source}: {len(texts) - len(kept)} of {len(texts)} documents are empty and left out")
    return select_rows(Dataset.from_dict({"text": kept}), limit, seed)


def _text(row, where: str) -> str:
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


def select_rows(rows, limit: int | None, seed: int = 0):
    """At most `limit` rows of a `datasets.Dataset`: a seeded choice without replacement, in their order.

    Raises:
        InputError: `limit` is below 1.
    """
    _check_limit(limit)
    if limit is None or limit >= len(rows):
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.select(sorted(order[:limit].tolist()))


def _check_limit(limit: int | None):
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit}: give at least 1, or leave it out for all rows")


def pack(texts, tokenizer, length: int = 512, *, min_tokens: int | None = None):
    """Token sequences of at most `length`, as a `datasets.Dataset` with `input_ids` and `labels` (the same ids).

    A document is tokenised with the special tokens that the tokenizer adds (a BOS stands at the document's beginning, not
    at every sequence's) and cut into pieces of `length` tokens. No sequence holds tokens of two documents. By default the
    last piece of a cut document is dropped when it is shorter than half of `length`, and a document that is shorter than
    `length` is kept whole. What was dropped is counted in the result's `info.description` and logged.

    Args:
        texts: a dataset with the column `text`, or strings.
        min_tokens: drop every piece that is shorter, of whole documents too: `length` keeps full sequences alone.

    Raises:
        InputError: `length` below 2, `min_tokens` outside 1..`length`, no `text` column, or no sequence is left.
    """
    from datasets import Dataset, concatenate_datasets

    if length < 2 or not 1 <= (1 if min_tokens is None else min_tokens) <= length:
        raise InputError(
            f"length={length}, min_tokens={min_tokens}: sequences have at least 2 tokens, and min_tokens is from 1 to length"
        )
    if not isinstance(texts, list | tuple):
        if "text" not in texts.column_names:
            raise InputError(f"the corpus has the columns {', '.join(texts.column_names)}: pack needs `text`")
        texts = texts["text"]
    parts, documents, dropped, dropped_tokens, kept_tokens = [], 0, 0, 0, 0
    for start in range(0, len(texts), TOKENISED_TOGETHER):
        together = list(texts[start : start + TOKENISED_TOGETHER])
        documents += len(together)
        sequences = []
        # Not `verbose`: documents longer than the model's context are the rule here, and are cut.
        for ids in tokenizer(together, verbose=False)["input_ids"]:
            least = min_tokens or (2 if len(ids) < length else length // 2)
            for piece in (ids[at : at + length] for at in range(0, len(ids), length)):
                if len(piece) >= max(least, 2):  # a lone token predicts nothing
                    sequences.append(piece)
                    kept_tokens += len(piece)
                else:
                    dropped, dropped_tokens = dropped + 1, dropped_tokens + len(piece)
        if sequences:
            parts.append(Dataset.from_dict({"input_ids": sequences, "labels": sequences}))
    if not parts:
        raise InputError(
            f"none of {documents} documents has {max(min_tokens or 2, 2)} tokens: give longer texts, or lower min_tokens"
        )
    packed = concatenate_datasets(parts)
    packed.info.description = (
        f"{len(packed)} sequences of up to {length} tokens ({kept_tokens} tokens) from {documents} documents; "
        f"{dropped} short pieces dropped ({dropped_tokens} tokens)"
    )
    logger.info(packed.info.description)
    return packed


# ---- questions and instructions --------------------------------------------------------------------------------------
def load_questions(source: str | Path, *, data_dir: str | Path | None = None, limit: int | None = None) -> list[dict]:
    """Multiple-choice questions: `question`, `choices` (two or more), `answer` (an index from 0), and `subject` if given.

    An answer may also be written as a letter, A for the first choice.

    Args:
        source, data_dir: see `sources.read_rows`; on the Hub the split is test unless the source names another.
        limit: the first so many, as lm-eval counts them; all are checked nevertheless.

    Raises:
        InputError: as `read_rows`; a malformed row, named by file and line; no question.
    """
    _check_limit(limit)
    questions = [_question(row, where) for where, row in read_rows(source, data_dir, "test")]
    if not questions:
        raise InputError(f"{source} holds no question: give rows with question, choices and answer")
    return questions[:limit]


def _question(row, where: str) -> dict:
    if not isinstance(row, dict):
        raise InputError(
            f"{where} is a {type(row).__name__}: a question is an object with question, choices and answer"
        )
    if missing := [key for key in ("question", "choices", "answer") if row.get(key) is None]:
        raise InputError(f"{where} has no {', '.join(missing)}: a question needs question, choices and answer")
    question, choices, answer = row["question"], row["choices"], row["answer"]
    if not isinstance(question, str) or not question.strip():
        raise InputError(f"{where}: the question must be text, not {question!r}")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
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

    Args:
        source, data_dir: see `sources.read_rows`; on the Hub the split is train unless the source names another.
        limit: the first so many; all by default.

    Raises:
        InputError: as `read_rows`; a row without an instruction (named by file and line), or no row.
    """
    from datasets import Dataset

    _check_limit(limit)
    rows = []
    for where, row in read_rows(source, data_dir, "train"):
        values = (
            {key: row.get(key) or "" for key in ("instruction", "input", "output")} if isinstance(row, dict) else {}
        )
        if not values.get("instruction") or not all(isinstance(value, str) for value in values.values()):
            raise InputError(
                f"{where} has no instruction: a row needs instruction, and may have input and output, as text"
            )
        rows.append(values)
        if len(rows) == limit:
            break
    if not rows:
        raise InputError(f"{source} holds no instruction: give rows with instruction, input and output")
    return Dataset.from_list(rows)


# ---- what does not fit together --------------------------------------------------------------------------------------
def check_tokenizer(tokenizer, model) -> None:
    """Refuse a tokenizer with ids that the model's embedding does not have.

    Raises:
        InputError: the largest id of the tokenizer is not a row of the embedding.
    """
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise InputError(
            f"the tokenizer has ids up to {largest} but the model's embedding has {rows} rows: use the model's own tokenizer"
        )
    ours, theirs = tokenizer.bos_token_id, model.config.bos_token_id
    if ours is not None and isinstance(theirs, int) and ours != theirs:
        logger.warning(
            f"the tokenizer begins texts with id {ours} and the model's config says {theirs}: is it the model's own tokenizer?"
        )


def check_enough(rows: Iterable, steps: int, batch: int, what: str) -> None:
    """Refuse fewer rows than `steps` batches of `batch` drawn without replacement.

    Raises:
        InputError: there are too few.
    """
    if len(rows) < steps * batch:
        raise InputError(
            f"{what} has {len(rows)} sequences but {steps} steps of {batch} need {steps * batch}: give it more text, or "
            "lower the steps or the batch"
        )

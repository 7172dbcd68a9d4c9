# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU (Maini et al. 2024): questions and answers about fictitious authors, their prompts and their tokens."""

import dataclasses
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import InputError
from ..files import sha256_json


QA_COLUMNS = ("question", "answer")
WRONG_COLUMNS = ("question", "answer", "perturbed_answer")
EVAL_COLUMNS = ("question", "answer", "paraphrased_answer", "perturbed_answer")
FORGET_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
ROWS_PER_AUTHOR = 20
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


@dataclasses.dataclass(frozen=True)
class QATemplate:
    """How a question becomes a prompt: `question_start + question + question_end + answer_start`, or a chat template.

    Spaces at the end of the prompt belong to the first word of the answer ("Answer:" + " Paris"), as byte-pair
    tokenizers expect; they are taken off the prompt and put in front of the answer.

    `date_string` is given to the chat template, because Llama-3 templates insert today's date otherwise.
    """

    question_start: str = "Question: "
    question_end: str = "\n"
    answer_start: str = "Answer: "
    answer_end: str = ""
    chat: bool = False
    date_string: str = "10 Apr 2025"

    def prompt(self, question: str, tokenizer=None) -> str:
        """The text before the answer, without trailing spaces (chat templates are kept to the letter)."""
        return self.prompt_and_answer(question, "", tokenizer)[0]

    def prompt_and_answer(self, question: str, answer: str, tokenizer=None) -> tuple[str, str]:
        """The two texts that are tokenised separately; together they are the text that the model sees."""
        if not self.chat:
            text = f"{self.question_start}{question}{self.question_end}{self.answer_start}"
            prompt = text.rstrip(" ")
            return prompt, text[len(prompt) :] + answer + self.answer_end
        if tokenizer is None or not tokenizer.chat_template:
            raise InputError(
                "a chat prompt needs a tokenizer with a chat template; set chat=False or another tokenizer"
            )
        messages = [{"role": "user", "content": question}]
        render = lambda messages, **kwargs: tokenizer.apply_chat_template(
            messages, tokenize=False, date_string=self.date_string, **kwargs
        )
        prompt = render(messages, add_generation_prompt=True)
        # Some templates (Llama-2) put a space between the prompt and the answer, most do not: ask the template.
        mark = "answer"
        following = render([*messages, {"role": "assistant", "content": mark}]).removeprefix(prompt)
        space = following[: following.find(mark)]
        return prompt, (space if space.isspace() else "") + answer + self.answer_end

    def fingerprint(self, tokenizer=None) -> str:
        """sha256 of all fields, and of the tokenizer's chat template where it is used. Every log stores it."""
        chat_template = tokenizer.chat_template if self.chat and tokenizer is not None else None
        return sha256_json({**dataclasses.asdict(self), "chat_template": chat_template})


def encode_qa(tokenizer, question: str, answer: str, template: QATemplate, max_length: int = 512) -> dict:
    """Tokens of one question and answer: `{"input_ids": list[int], "labels": list[int]}`, labels -100 on the prompt.

    Prompt and answer are tokenised separately, so that the labelled tokens of an answer do not depend on its question.
    The answer is tokenised as a continuation: after the prompt's last character, whose tokens are then dropped, which
    gives " Paris" for GPT-2's BPE and the same "▁Paris" as inside a sentence for SentencePiece. The end-of-sequence
    token is appended and labelled. What exceeds `max_length` tokens is cut off the end of the answer.

    Raises:
        InputError: the tokenizer has no end-of-sequence token, or the prompt alone fills `max_length`.
    """
    if tokenizer.eos_token_id is None:
        raise InputError(
            "the tokenizer has no end-of-sequence token; set tokenizer.eos_token before tokenising answers"
        )
    prompt_text, answer_text = template.prompt_and_answer(question, answer, tokenizer)
    prompt = _encode_prompt_text(tokenizer, prompt_text, template)
    if len(prompt) >= max_length:
        raise InputError(
            f"a prompt of {len(prompt)} tokens leaves no room for its answer: raise max_length={max_length} "
            f"or shorten the question {question[:60]!r}"
        )
    answer_ids = _encode_continuation(tokenizer, prompt_text[-1:], answer_text) + [tokenizer.eos_token_id]
    return {
        "input_ids": (prompt + answer_ids)[:max_length],
        "labels": ([-100] * len(prompt) + answer_ids)[:max_length],
    }


def _encode_prompt_text(tokenizer, text: str, template: QATemplate) -> list[int]:
    # A chat template writes its own BOS; elsewhere the tokenizer's own rule holds, but an EOS never ends a prompt.
    ids = tokenizer(text, add_special_tokens=not template.chat)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not template.chat else ids


def _encode_continuation(tokenizer, before: str, text: str) -> list[int]:
    encode = lambda part: tokenizer(part, add_special_tokens=False)["input_ids"]
    anchor = encode(before)
    ids = encode(before + text)
    # The tokenizer may merge across the seam (":" and ")"): then the answer stands alone.
    return ids[len(anchor) :] if ids[: len(anchor)] == anchor else encode(text)


def tokenize_qa(dataset, tokenizer, template: QATemplate | None = None, max_length: int = 512):
    """A `datasets.Dataset` with columns input_ids, attention_mask and labels, a row for every row of `dataset`.

    Raises:
        InputError: no rows, a column question or answer is missing, or as `encode_qa` says.
    """
    from datasets import Dataset

    template = template or QATemplate()
    _check_columns(dataset, QA_COLUMNS, "the dataset to tokenise")
    rows = [encode_qa(tokenizer, row["question"], row["answer"], template, max_length) for row in dataset]
    return Dataset.from_dict(
        {
            "input_ids": [row["input_ids"] for row in rows],
            "attention_mask": [[1] * len(row["input_ids"]) for row in rows],
            "labels": [row["labels"] for row in rows],
        }
    )


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
    _check_columns(rows, columns, where)
    for number, row in enumerate(rows):
        for column in columns:
            value = row.get(column)
            good = (
                isinstance(value, str) if column != "perturbed_answer" else isinstance(value, list) and len(value) > 0
            )
            if not good:
                raise InputError(f"{where}, row {number}: column {column!r} is missing or of the wrong type")
    return [{column: row[column] for column in columns} for row in rows]


def _check_columns(rows: Iterable, columns: tuple[str, ...], where: str) -> None:
    if len(rows) == 0:
        raise InputError(f"{where} has no rows")
    present = list(rows[0])
    missing = [column for column in columns if column not in present]
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}; it has: {', '.join(present)}")

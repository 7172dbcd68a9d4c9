# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows as a model takes them: read, checked, tokenised, packed or cut, with what became of them in numbers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from datasets import Dataset

from ..errors import InputError
from ..objectives import IGNORE, scored_labels
from ..runtime.limits import check_tokenizer, check_tokens
from ..runtime.modules import is_peft
from .inputs import IMAGES, drop_empty, read_dataset
from .prompts import QATemplate, encode_rows, one_bos, with_masks
from .rows import is_token_labels, with_span_labels


logger = logging.getLogger(__name__)

LONG_TEXT = ("pack", "cut")
TOKENISED_TOGETHER = 256  # texts


@dataclass
class RowCounts:
    """What became of the rows of one set."""

    rows: int = 0  # that the model is given
    dropped_empty: int = 0
    packed_rows: int = 0  # long texts that were packed into several rows
    cut_rows: int = 0
    cut_tokens: int = 0  # cut off: they are not part of the request
    tokens: int = 0  # that carry a label


@dataclass
class Preparation:
    """How the rows of all sets of a run are made ready.

    Args:
        tokenizer: needed for rows of text; may be None for others.
        max_length (`int`): most tokens of a row that is tokenised here.
        template ([`~data.prompts.QATemplate`], *optional*): of prompts; by default question and answer, with a warning
            where the tokenizer has a chat template.
        long_text (`str`, *optional*, defaults to `"pack"`): a longer text becomes several rows, or is `"cut"`.
        model (*optional*): what it cannot read is refused.
    """

    tokenizer: object
    max_length: int
    template: QATemplate | None = None
    long_text: str = "pack"
    model: object = None
    counts: dict[str, RowCounts] = field(default_factory=dict, init=False)  # of every set that was made ready
    _warned: bool = field(default=False, init=False)

    def __call__(self, rows, what: str) -> Dataset:
        """Rows with `labels` and `input_ids` and `attention_mask`, or `pixel_values`, or `image`.

        Args:
            rows: what `inputs.read_dataset` takes. Labels of `question` and `answer` stand on the answer and its end,
                those of `messages` on the last turn, those of `text` on every token.
            what (`str`): the set's name for messages and counts.

        For a classifier of text (or a regression) `labels` are one for each row, of `text` and `label`, and for a
        model of spans `[[first], [last]]` token.

        Raises:
            InputError: as `read_dataset`; text without a tokenizer; a tokenizer, an id or a length that the model does
                not have; no label that a model predicts.
        """
        rows, kind = read_dataset(rows, what, classified=_head(self.model) == "ForSequenceClassification")
        rows, dropped = drop_empty(rows, kind, what)
        counts = RowCounts(dropped_empty=dropped)
        if kind not in IMAGES:
            rows = _with_columns(rows, what) if kind == "input_ids" else self._tokenised(rows, kind, what, counts)
            if self.model is not None:
                rows = _fitted_labels(self.model, rows, what)
                ids = rows["input_ids"]
                largest = max((max(row, default=0) for row in ids), default=0)
                check_tokens(self.model, max(map(len, ids)), largest, f"the {what} set")
        elif self.model is not None:
            rows = _fitted_labels(self.model, rows, what)
        counts.rows, counts.tokens = len(rows), _labelled(rows, what)
        self.counts[what] = counts
        return rows

    def _tokenised(self, rows: Dataset, kind: str, what: str, counts: RowCounts) -> Dataset:
        if self.tokenizer is None:
            raise InputError(f"the {what} set holds text: pass processing_class, the model's tokenizer")
        if self.model is not None:
            check_tokenizer(self.tokenizer, self.model)
        if kind == "text":
            encoded = self._texts(rows["text"], counts)
        elif kind == "sentence":
            encoded = self._sentences(rows, counts)
        else:
            if kind == "question" and self.template is None and self.tokenizer.chat_template and not self._warned:
                self._warned = True
                logger.warning(
                    "the tokenizer has a chat template and the rows are put as plain question and answer: set "
                    "chat=True if the model answers chats, or template to say that this is meant"
                )
            template = self.template or QATemplate()
            encoded, counts.cut_rows, counts.cut_tokens = encode_rows(rows, self.tokenizer, template, self.max_length)
        if counts.cut_rows:
            logger.warning(
                f"{counts.cut_rows} of {len(encoded)} rows of the {what} set are cut to max_length={self.max_length}: "
                f"{counts.cut_tokens} tokens of them have no part in the request"
            )
        if counts.packed_rows:
            logger.info(
                f"{counts.packed_rows} of {len(rows)} texts of the {what} set are longer than "
                f"max_length={self.max_length} and packed into {len(encoded) - len(rows) + counts.packed_rows} rows"
            )
        return Dataset.from_list(encoded) if kind == "sentence" else with_masks(encoded)

    def _sentences(self, rows: Dataset, counts: RowCounts) -> list[Mapping]:
        """Texts, or pairs of them, of a classifier, which reads one row of each: what is too long is cut."""
        encoded = []
        for start in range(0, len(rows), TOKENISED_TOGETHER):
            part = rows[start : start + TOKENISED_TOGETHER]
            pairs = [part["text"], part["text_pair"]] if "text_pair" in part else [part["text"]]
            whole = self.tokenizer(*pairs, verbose=False)["input_ids"]
            cut = self.tokenizer(*pairs, truncation=True, max_length=self.max_length)
            for number, label in enumerate(part["label"]):
                if (more := len(whole[number]) - len(cut["input_ids"][number])) > 0:
                    counts.cut_rows, counts.cut_tokens = counts.cut_rows + 1, counts.cut_tokens + more
                encoded.append({name: values[number] for name, values in cut.items()} | {"labels": label})
        return encoded

    def _texts(self, texts, counts: RowCounts) -> list[Mapping]:
        encoded = []
        for start in range(0, len(texts), TOKENISED_TOGETHER):
            # Not `verbose`: texts longer than the model's context are packed or cut, and counted.
            batch = self.tokenizer(list(texts[start : start + TOKENISED_TOGETHER]), verbose=False)["input_ids"]
            for ids in (one_bos(ids, self.tokenizer) for ids in batch):
                pieces = self._pieces(ids)
                counts.packed_rows += len(pieces) > 1
                if (more := len(ids) - sum(map(len, pieces))) > 0:
                    counts.cut_rows, counts.cut_tokens = counts.cut_rows + 1, counts.cut_tokens + more
                encoded += [{"input_ids": piece, "labels": piece} for piece in pieces]
        return encoded

    def _pieces(self, ids: list[int]) -> list[list[int]]:
        if self.long_text == "cut":
            return [ids[: self.max_length]]
        # As many rows as needed, of like lengths: a short last one would hardly see what stands before it.
        number = max(1, -(-len(ids) // self.max_length))
        ends = [len(ids) * place // number for place in range(number + 1)]
        return [ids[begin:end] for begin, end in zip(ends, ends[1:])]


def with_other_answers(rows, what: str, answers: Sequence[str], seed: int) -> Dataset:
    """Rows of questions or messages with one of the answers, drawn by the seed, in the place of each one's own.

    As many as a `Preparation` makes of the same rows, in their order.

    Raises:
        InputError: rows of another kind, which have no answer.
    """
    rows, kind = read_dataset(rows, what)
    if kind not in ("question", "messages"):
        raise InputError(
            f"the {what} set needs question and answer, or messages: other answers are put to its questions"
        )
    rows, _ = drop_empty(rows, kind, what)
    drawn = torch.randint(len(answers), (len(rows),), generator=torch.Generator().manual_seed(seed)).tolist()
    if kind == "question":
        return Dataset.from_list([{**row, "answer": answers[number]} for row, number in zip(rows, drawn)])
    turns = lambda row, text: [*row["messages"][:-1], {**row["messages"][-1], "content": text}]
    return Dataset.from_list([{"messages": turns(row, answers[number])} for row, number in zip(rows, drawn)])


def prepare_rows(rows, what: str, tokenizer, max_length: int, **settings) -> Dataset:
    """One set of rows as a model takes them, with the settings of `Preparation`."""
    return Preparation(tokenizer, max_length, **settings)(rows, what)


def _head(model) -> str | None:
    """transformers' name of the loss that a model has ("ForCausalLM", "ForSequenceClassification" ...)."""
    if model is None:
        return None
    model = model.get_base_model() if is_peft(model) else model
    return getattr(model, "loss_type", None)


def _with_columns(rows: Dataset, what: str) -> Dataset:
    """Rows of token ids with the columns that they came without; labels that no real token predicts are -100."""
    if "start_positions" in rows.column_names:
        rows = with_span_labels(rows)
    if "labels" not in rows.column_names:
        rows = rows.add_column("labels", list(rows["input_ids"]))
    if "attention_mask" not in rows.column_names:
        rows = rows.add_column("attention_mask", [[1] * len(ids) for ids in rows["input_ids"]])
    elif is_token_labels(rows[0]["labels"]) and not all(map(all, rows["attention_mask"])):
        pairs = zip(rows["labels"], rows["attention_mask"])
        labels = [scored_labels(torch.tensor([row]), torch.tensor([mask]))[0].tolist() for row, mask in pairs]
        rows = rows.remove_columns("labels").add_column("labels", labels)
    names = ["input_ids", "attention_mask", "token_type_ids", "labels"]
    return rows.select_columns([name for name in names if name in rows.column_names])


def _fitted_labels(model, rows: Dataset, what: str) -> Dataset:
    """Rows whose labels fit the model's head: classes, or for a regression floating values.

    Raises:
        InputError: labels of another kind than the head's, or of no class (-100, which counts for nothing, may stand).
    """
    head, label = _head(model), rows[0]["labels"]
    by_token, classes = is_token_labels(label), getattr(model.config, "num_labels", None)
    if head == "ForQuestionAnswering" and not (isinstance(label, list) and not by_token):
        raise InputError(f"the {what} set has no spans: give start_positions and end_positions for this model")
    if head == "ForSequenceClassification":
        if isinstance(label, list):
            raise InputError(f"the {what} set has labels of tokens: a classifier needs one label for each row")
        if model.config.problem_type == "multi_label_classification":
            raise InputError("several labels of one row are not supported: load the model with another problem_type")
        if model.config.problem_type == "regression" or classes == 1:
            if classes != 1:
                raise InputError(f"a regression with {classes} outputs is not supported: load it with num_labels=1")
            return rows.remove_columns("labels").add_column("labels", [float(value) for value in rows["labels"]])
        if isinstance(label, float):
            raise InputError(
                f"the {what} set has labels that are values and the model {classes} classes: give classes, or load "
                "it with num_labels=1 for a regression"
            )
    for number, label in enumerate(rows["labels"], 1):
        if isinstance(label, int) and classes is not None and label != IGNORE and not 0 <= label < classes:
            raise InputError(
                f"{what} row {number} has the label {label} and the model {classes} classes, 0 to {classes - 1}: give "
                "the model's own classes, or load it with num_labels"
            )
    return rows


def _labelled(rows: Dataset, what: str) -> int:
    """The number of labels that a model predicts; rows that have none are counted in the log.

    Raises:
        InputError: there is none at all.
    """
    # The first token's label is predicted by nothing.
    parts = lambda labels: labels[is_token_labels(labels) :] if isinstance(labels, list) else [labels]
    numbers = [sum(label not in (-100, [-100]) for label in parts(labels)) for labels in rows["labels"]]
    if not any(numbers):
        raise InputError(f"every label of the {what} set is ignored (-100): give rows whose answer carries labels")
    if unlabelled := numbers.count(0):
        logger.warning(f"{unlabelled} of {len(rows)} rows of the {what} set have no label: they teach nothing")
    return sum(numbers)

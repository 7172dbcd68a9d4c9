# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Questions of SQuAD forgotten by a fine-tuned encoder, beside one retrained without them (SPE-Unlearn's tables)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from datasets import Dataset

from ...data.rows import with_span_labels
from ...data.squad import HUB, Windows, load_squad, tokenize_squad
from ...errors import InputError
from ...evaluation.squad import squad_outputs, squad_scores
from ...miniature.passages import load_passages, passage_encoder
from ...runtime.fields import Range
from ...runtime.files import sha256_json
from ...runtime.loading import SPANS, padding_id
from ..problem import typed
from .encoder_sections import EncoderData, EncoderEvaluation, EncoderModel, EncoderTuning
from .encoders import SIDES, EncoderProblem, Said


NONE = "(no answer)"


@dataclass
class SquadData(EncoderData):
    """The section `data`, with the keys of `EncoderData` beside these; rows are questions.

    Args:
        version: "1.1" or "2.0"; the embedded passages are of 1.1.
        source: a folder or Hub id of the version (`data.squad.load_squad`; the Hub's own by default), or "passages"
            for the embedded rows.
        stride: tokens that two windows of a long passage share.
        passages: arguments of `miniature.passages.load_passages`.

    Raises:
        InputError: an unknown version, passages of another than 1.1, or as `EncoderData`.
    """

    version: str | float = "1.1"
    source: str | None = None
    max_length: int = 384
    stride: int = 128
    passages: dict | None = None
    allowed: ClassVar[Mapping] = {**EncoderData.allowed, "stride": Range(least=0), "version": tuple(HUB)}
    embedded: ClassVar[str] = "passages"
    make: ClassVar[Callable] = staticmethod(load_passages)
    outputs: ClassVar[int] = 2

    def __post_init__(self):
        self.version = str(self.version)  # YAML reads a number
        super().__post_init__()
        if self.is_embedded and self.version != "1.1":
            raise InputError(f"data.version={self.version}: the passages are of 1.1: leave it out, or change source")
        self.title = "passages" if self.is_embedded else f"SQuAD {self.version}"

    def load(self):
        return load_squad(self.version, self.source)


@dataclass
class SquadModel(EncoderModel):
    """The section `model`; `scratch` has the arguments of `miniature.passages.passage_encoder`."""

    make: ClassVar[Callable] = staticmethod(passage_encoder)
    head: ClassVar[str] = SPANS


class Questions(NamedTuple):
    """Questions as text, and the windows of tokens that they became."""

    texts: Dataset
    windows: Windows


class SquadProblem(EncoderProblem):
    """Questions on passages, whose answers are spans: all windows of a question are forgotten, or stay.

    UA, RA and TA are F1, over questions; `unlearning_exact`, `remaining_exact` and `testing_exact` exact matches.
    """

    sections = {
        "data": typed(SquadData),
        "model": typed(SquadModel),
        "tuning": typed(EncoderTuning),
        "evaluation": typed(EncoderEvaluation),
    }
    metric = "f1"
    right = "the right answer"

    def tokenize(self, texts):
        return Questions(texts, tokenize_squad(texts, self.tokenizer, self.max_length, self.data.stride))

    def rows_of(self, part):
        return part.windows.rows

    def tuning_rows(self, rows):
        return with_span_labels(rows)

    def said(self, model, part):
        outputs = squad_outputs(
            model,
            *part,
            padding_id(self.tokenizer, model),
            unanswerable=self.data.version == "2.0",
            batch_size=self.settings.batch_size,
        )
        return Said(outputs, squad_scores(outputs.answers, part.texts))

    def _scores(self, said):
        exact = {f"{side}_exact": 100 * said[part].scores["exact"] for part, side in SIDES.items()}
        return super()._scores(said) | exact

    def identity(self):
        # What is right is more than what the tokens of a row say.
        answers = sha256_json([texts["answers"][:] for texts in self.texts])
        return super().identity() | {"version": self.data.version, "answers": answers}

    def asked(self, model, texts):
        outputs = self.said(model, self.tokenize(texts)).outputs
        return [
            (
                {"prompt": f"{text['question']} / {text['context']}", "row": (text["answers"]["text"] or [NONE])[0]},
                answer or NONE,
                confidence,
            )
            for text, answer, confidence in zip(texts, outputs.answers, outputs.confidences, strict=True)
        ]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a GLUE task forgotten by a fine-tuned encoder, beside one retrained without them (SPE-Unlearn's tables)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from ...data.glue import HUB, GlueTask, find_task, load_glue, tokenize_glue
from ...evaluation.confidences import row_outputs
from ...evaluation.glue import glue_scores
from ...evaluation.membership import distances
from ...miniature.reviews import TASK as REVIEWS
from ...miniature.reviews import load_reviews, review_encoder
from ...runtime.loading import CLASSES, padding_id
from ..problem import typed
from .encoder_sections import EncoderData, EncoderEvaluation, EncoderModel, EncoderTuning
from .encoders import EncoderProblem, Said


@dataclass
class GlueData(EncoderData):
    """The section `data`, with the keys of `EncoderData` beside these.

    Args:
        task: mnli, qqp, sst2 or stsb; of the embedded reviews there is one.
        source: a folder or Hub id of GLUE (`data.glue.load_glue`), or "reviews" for the embedded rows.
        reviews: arguments of `miniature.reviews.load_reviews`.

    Raises:
        InputError: an unknown task, or as `EncoderData`.
    """

    task: str = "sst2"
    source: str = HUB
    reviews: dict | None = None
    embedded: ClassVar[str] = "reviews"
    make: ClassVar[Callable] = staticmethod(load_reviews)

    def __post_init__(self):
        super().__post_init__()
        self.kind: GlueTask = REVIEWS if self.is_embedded else find_task(self.task)
        self.title, self.outputs = self.kind.name, self.kind.outputs

    def load(self):
        return load_glue(self.kind, self.source)


@dataclass
class GlueModel(EncoderModel):
    """The section `model`; `scratch` has the arguments of `miniature.reviews.review_encoder`."""

    make: ClassVar[Callable] = staticmethod(review_encoder)
    head: ClassVar[str] = CLASSES


class GlueProblem(EncoderProblem):
    """Rows of one task: classes, or values of a regression."""

    sections = {
        "data": typed(GlueData),
        "model": typed(GlueModel),
        "tuning": typed(EncoderTuning),
        "evaluation": typed(EncoderEvaluation),
    }
    right = "the row's label"

    @property
    def metric(self):
        return self.data.kind.metric

    def tokenize(self, texts):
        return tokenize_glue(texts, self.data.kind, self.tokenizer, self.max_length)

    def said(self, model, part):
        outputs = row_outputs(model, part, padding_id(self.tokenizer, model), self.settings.batch_size)
        return Said(outputs, glue_scores(outputs))

    def distances(self, outputs, retrained):
        apart = distances(outputs, retrained)
        return {"distance": apart.confidence, "total_variation": apart.total_variation}

    def asked(self, model, texts):
        outputs, columns = self.said(model, self.tokenize(texts)).outputs, self.data.kind.columns
        told = zip(texts, outputs.predictions.tolist(), outputs.confidences, strict=True)
        return [
            (
                {"prompt": " / ".join(text[name] for name in columns), "row": self._label(text["label"])},
                self._label(taken),
                confidence,
            )
            for text, taken, confidence in told
        ]

    def _label(self, label) -> str:
        return f"{label:.1f}" if self.data.kind.regression else self.data.kind.classes[label]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The rows of a WMDP experiment: corpora of stages, questions and instructions, real or of the embedded miniature."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ...data.packing import pack
from ...data.rows import sample_rows
from ...data.wmdp import load_instructions, load_texts
from ...errors import InputError
from ...methods.base import StageSize
from ...miniature.hazards import Hazards, load_hazards
from ..settings import check_settings, configured


EMBEDDED = "hazards"


@dataclass
class StageConfig:
    """One entry of `stages`.

    Args:
        name: of the stage.
        forget, retain: {corpus: sequences to take, or null for all}. Sequences are a seeded choice.
        task: the task that asks for what is to be forgotten; the stage's name by default.
    """

    name: str
    forget: dict[str, int | None]
    retain: dict[str, int | None]
    task: str | None = None

    def __post_init__(self):
        self.task = self.task or self.name
        for side in ("forget", "retain"):
            corpora = getattr(self, side)
            counts = list(corpora.values()) if isinstance(corpora, dict) else []
            if not counts or not all(count is None or type(count) is int and count > 0 for count in counts):
                raise InputError(
                    f"data.stages, {self.name}: {side}: give corpora and how many sequences of each to take, as in "
                    f"{{wikitext: 4000}}, not {corpora!r}"
                )


@dataclass
class Corpora:
    """The section `data`: what is forgotten in which order, where texts come from, and how they become sequences.

    Args:
        stages: see `StageConfig`, in order.
        source: "hub" for the Hub and local files, "hazards" for the embedded miniature.
        data_dir: folder with local files, searched first.
        length, min_tokens: see `data.packing.pack`.
        instructions: source of the unrelated instructions.
        hazards: sizes of the miniature, see `miniature.hazards.load_hazards`.

    Raises:
        InputError: a stage that is malformed or named twice, an unknown source, a folder that does not exist.
    """

    stages: list[dict]
    source: str = "hub"
    data_dir: str | None = None
    length: int = 512
    min_tokens: int | None = None
    instructions: str = "tatsu-lab/alpaca"
    hazards: dict = field(default_factory=dict)
    seed: int = field(default=0, init=False)  # of the choices of rows

    def __post_init__(self):
        self.stages = read_stages(self.stages)
        if self.source not in ("hub", EMBEDDED):
            raise InputError(f"data.source: {self.source!r} is unknown: choose hub or {EMBEDDED}")
        if self.hazards and self.source != EMBEDDED:
            raise InputError(f"data.hazards: these sizes belong to source: {EMBEDDED}")
        check_settings(load_hazards, "data.hazards", self.hazards, ("seed",))
        if self.data_dir is not None and not Path(self.data_dir).is_dir():
            raise InputError(f"data.data_dir: the folder {self.data_dir} does not exist; leave it out to use the Hub")

    def seeded(self, seed: int) -> "Corpora":
        """The same for another seed; what was drawn for this one is drawn anew."""
        other = copy.copy(self)
        vars(other).pop("embedded", None)
        vars(other).pop("questions", None)
        other.seed = seed
        return other

    @functools.cached_property
    def embedded(self) -> Hazards | None:
        """The miniature, when it is asked for."""
        return load_hazards(**self.hazards, seed=self.seed) if self.source == EMBEDDED else None

    @functools.cached_property
    def questions(self) -> dict[str, list[dict]] | None:
        """{task: questions} in memory; None when tasks are lm-eval's."""
        return self.embedded and self.embedded.questions

    def texts(self, source: str, limit: int | None = None) -> Dataset:
        """Documents of a corpus.

        Raises:
            InputError: no such corpus, or as `data.wmdp.load_texts`.
        """
        if self.embedded is None:
            return load_texts(source, data_dir=self.data_dir, limit=limit, seed=self.seed)
        if source not in self.embedded.corpora:
            raise InputError(f"no corpus {source!r} in the miniature; there are {', '.join(self.embedded.corpora)}")
        return sample_rows(self.embedded.corpora[source], limit, self.seed)

    def unrelated(self, count: int) -> Dataset:
        """`count` instructions that have nothing to do with what is forgotten."""
        if self.embedded is not None:
            return sample_rows(self.embedded.instructions, count, self.seed)
        return load_instructions(self.instructions, data_dir=self.data_dir, limit=count)

    def rows(self, source: str, count: int | None, tokenizer) -> Dataset:
        """Sequences of one corpus, a seeded choice of `count`.

        Raises:
            InputError: the corpus has fewer.
        """
        # Every document gives a sequence or more, unless it is too short: so many documents mostly do.
        texts = self.texts(source, count)
        packed = pack(texts, tokenizer, self.length, min_tokens=self.min_tokens)
        if count is not None and len(packed) < count and len(texts) == count:
            packed = pack(self.texts(source), tokenizer, self.length, min_tokens=self.min_tokens)
        if count is not None and len(packed) < count:
            raise InputError(
                f"{source} gives {len(packed)} sequences of {self.length} tokens, {count} were asked for: give it "
                "more text, or lower the number in data.stages"
            )
        return sample_rows(packed, count, self.seed)

    def joined(self, corpora: Mapping[str, int | None], tokenizer) -> Dataset:
        """Sequences of several corpora, one after another."""
        return concatenate_datasets([self.rows(source, count, tokenizer) for source, count in corpora.items()])

    def size(self, config: StageConfig) -> StageSize:
        """What is known of a stage before any text is read: the numbers of the YAML, or the miniature's documents."""

        def total(corpora: Mapping[str, int | None]) -> int:
            counts = [
                len(self.texts(source)) if count is None and self.embedded else count
                for source, count in corpora.items()
            ]
            if None in counts:
                raise InputError(
                    f"data.stages, {config.name}: a dry run reads no text: say how many sequences to take of each "
                    "corpus"
                )
            return sum(counts)

        return StageSize(config.name, total(config.forget), total(config.retain), self.length)


def read_stages(stages) -> list[StageConfig]:
    """The stages of `data`.

    Raises:
        InputError: there is none, or a stage is malformed or named twice.
    """
    if not isinstance(stages, list) or not stages:
        raise InputError("data.stages: give a list of what to forget, each with name, forget, retain and task")
    for number, stage in enumerate(stages, 1):
        if not isinstance(stage, Mapping):
            raise InputError(f"data.stages: number {number} is {stage!r}: give name, forget, retain and task")
    read = [configured(StageConfig, f"data.stages, {stage.get('name', 'no name')}", stage) for stage in stages]
    names = [stage.name for stage in read]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"data.stages share a name: {', '.join(sorted(repeated))}; give each its own")
    return read

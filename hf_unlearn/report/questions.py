# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Questions and what models answer: what a reader sees before any number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


FORGET, RETAIN = "forget", "retain"
SIDES = {FORGET: "to be forgotten", RETAIN: "to be kept"}
NOTHING = "(nothing)"


@dataclass(frozen=True)
class Question:
    """One question, put to several models.

    Args:
        side: "forget" or "retain".
        prompt: what is asked, or how a text begins.
        answers: what each model says, by its name, in the order in which they are shown.
        row (`str`, *optional*): what the data say.
    """

    side: str
    prompt: str
    answers: Mapping[str, str] = field(default_factory=dict)
    row: str = ""

    @property
    def heading(self) -> str:
        return SIDES[self.side]

    @property
    def shown(self) -> dict[str, str]:
        """What stands below the question: the data's own words first, and a word for an empty answer."""
        said = {name: answer.strip() or NOTHING for name, answer in self.answers.items()}
        return ({"in the data": self.row} if self.row else {}) | said


def compare_answers(said: Mapping[str, Mapping[str, Sequence[Mapping]]]) -> list[Question]:
    """The same questions with the answers of several models beside one another.

    `said` maps the name of a model to what it said: for "forget" and "retain" a list of {"prompt", "answer"}, and
    "row" where the data have an answer. All were asked the same.
    """
    first = next(iter(said.values()), {})
    return [
        Question(
            side,
            asked["prompt"],
            {name: found[side][place]["answer"] for name, found in said.items()},
            asked.get("row", ""),
        )
        for side in SIDES
        for place, asked in enumerate(first.get(side, ()))
    ]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Lines of a table: a method, its settings and the values that its search tries. All methods stand in `METHODS`."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..methods.base import Method, StageSize
from ..methods.fast_ntk import FastNTK
from ..methods.first_order import FirstOrder
from ..methods.kfade import KFade
from ..methods.rmu import RMU
from ..methods.spe import SPEUnlearn


METHODS: dict[str, type[Method]] = {
    "kfade": KFade,
    "first_order": FirstOrder,
    "rmu": RMU,
    "fast_ntk": FastNTK,
    "spe": SPEUnlearn,
}
STAGES = ("each", "together")


@dataclass(frozen=True)
class Values:
    """What one training of a search is tried with: for every stage of the problem, name -> value."""

    stages: tuple[Mapping[str, object], ...]

    @property
    def shown(self) -> dict:
        """Name -> value, or the list of its values where stages differ, for the rows of the table."""
        if len(self.stages) == 1:
            return dict(self.stages[0])
        found = {name: [values[name] for values in self.stages] for name in self.stages[0]}
        return {name: one[0] if one.count(one[0]) == len(one) else one for name, one in found.items()}


@dataclass
class Line:
    """One line of the table.

    Args:
        label: the line's name.
        method: a key of `METHODS`.
        settings: fields of the method. A method that decides its own number of steps is evaluated after each, or after
            `eval_steps` of `arguments`.
        search: name -> values to try, fields of the method or of `UnlearnConfig` (`step_norm`, `learning_rate`), all
            combinations; a value that is a list has one value for each stage of the problem.
        epochs: of each training, evaluated after each of them, where the method does not decide its own steps.
        arguments: other fields of `UnlearnConfig`.
        stages: "each": the problem's stages one after another, candidates are evaluated during the last of them;
            "together": the rows of all stages as one.

    Raises:
        InputError: an unknown method, settings that it does not have, or a search that is not one.
    """

    label: str
    method: str
    settings: dict = field(default_factory=dict)
    search: dict[str, list] | list = field(default_factory=dict)  # a list is refused with the form of today
    epochs: int = 1
    arguments: dict = field(default_factory=dict)
    stages: str = "each"

    def __post_init__(self):
        if self.method not in METHODS:
            raise InputError(f"{self.label}: unknown method {self.method!r}: choose one of {', '.join(METHODS)}")
        if self.method == "first_order" and self.settings.get("objective") == "rmu":
            raise InputError(f"{self.label}: RMU is a method of its own now: write method: rmu, without objective")
        if unknown := set(self.settings) - self.fields:
            raise InputError(
                f"{self.label}: settings: {', '.join(sorted(unknown))} is no setting of {self.method}; there are "
                f"{', '.join(sorted(self.fields))}"
            )
        searched = METHODS[self.method].searched
        example = searched[0] if searched else "ridge"
        if isinstance(self.search, list | tuple):
            raise InputError(f"{self.label}: search names what it tries now: write {{{example}: {self.search}}}")
        if not isinstance(self.search, Mapping) or not all(
            isinstance(v, list | tuple) and v for v in self.search.values()
        ):
            raise InputError(f"{self.label}: search: give lists of values by name, as {{{example}: [...]}}")
        if searched and not {*self.search, *self.settings, *self.arguments} & set(searched):
            raise InputError(f"{self.label}: give search, the values of {' or '.join(searched)} to try")
        try:
            for name, value in [*self.settings.items(), *self.tried()]:
                METHODS[self.method].check_values({name: value})
        except InputError as error:
            raise InputError(f"{self.label}: {error}") from error
        if self.stages not in STAGES:
            raise InputError(f"{self.label}: stages must be 'each' or 'together', not {self.stages!r}")

    @property
    def fields(self) -> set[str]:
        """Names of the method's settings."""
        return {field.name for field in dataclasses.fields(METHODS[self.method])}

    def tried(self) -> Iterator[tuple[str, object]]:
        """(name, value) of everything that the search tries, of each stage on its own."""
        for name, values in self.search.items():
            for value in values:
                yield from ((name, one) for one in (value if isinstance(value, list) else [value]))

    def trainings(self, stages: int) -> list[Values]:
        """The values of every training, in the order of the search.

        Raises:
            InputError: a list of another length than there are stages.
        """
        for value in itertools.chain(*self.search.values()):
            if isinstance(value, list) and len(value) != stages:
                raise InputError(f"{self.label}: {len(value)} values in {value} of its search, for {stages} stages")
        of_stage = lambda value, number: value[number] if isinstance(value, list) else value
        found = []
        for combination in itertools.product(*self.search.values()):
            tried = dict(zip(self.search, combination, strict=True)).items()
            by_stage = ({name: of_stage(value, number) for name, value in tried} for number in range(stages))
            found.append(Values(tuple(by_stage)))
        return found

    def make(self, values: Mapping[str, object] | None = None) -> Method:
        """The method with its settings and those of `values` that are fields of it.

        Raises:
            InputError: values out of range.
        """
        own = {name: value for name, value in (values or {}).items() if name in self.fields}
        return METHODS[self.method](**self.settings | own)

    def arguments_of(self, values: Mapping[str, object], method: Method) -> dict:
        """Fields of `UnlearnConfig` for one training: the method's schedule, what the search tries, the line's own."""
        searched = {name: value for name, value in values.items() if name not in self.fields}
        return method.schedule(self.epochs) | searched | self.arguments

    @property
    def candidates(self) -> int:
        """How many models this line may evaluate, where every evaluation during its trainings is a candidate."""
        first = {name: values[0] for name, values in self.search.items()}
        first = {name: value[0] if isinstance(value, list) else value for name, value in first.items()}
        return self.number_of_trainings * self.make(first).evaluations(self.epochs, self.arguments)

    @property
    def number_of_trainings(self) -> int:
        return math.prod(len(values) for values in self.search.values())

    def check(self, stages: Sequence[StageSize]):
        """Refuse a line that could only fail once it runs.

        Raises:
            InputError: values out of range, a search that does not fit the stages, fewer forget rows than steps need.
        """
        for training in self.trainings(len(stages)):
            for stage, values in zip(stages, training.stages, strict=True):
                try:
                    self.make(values).check(stage)
                except InputError as error:
                    raise InputError(f"{self.label}: {error}") from error

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Settings of an experiment: one YAML dialect, read once into dataclasses."""

import dataclasses
import importlib.resources
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..runtime.fields import check_fields
from ..runtime.yaml_files import parse_yaml
from .line import Line
from .sweep import Sweep


REQUIRED = ("data", "model", "methods")
SECTIONS = ("title", "problem", "seed", "seeds", *REQUIRED, "tuner", "tuning", "evaluation", "arguments", "sweep")
# In YAML 1.1 a number with an exponent is one only with a point and a sign.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+", re.IGNORECASE)
# Where the sections of older files went.
MOVED = {"template": "data.template", "stages": "data.stages", "relearn": "evaluation.relearning"}
MOVED |= {section: f"evaluation.{section}" for section in ("relearning", "probe", "paper")}


@dataclass(frozen=True)
class Experiment:
    """What a YAML says.

    Args:
        kind: the class of its problem (`experiments.problems.kinds`).
        seeds: of data order, sampled labels and choices of rows; the table is run for each.
        data, model, tuner, tuning, evaluation: the problem's own settings of these sections; None where it has none.
        arguments: fields of `UnlearnConfig` for every line.
        sweep: the setting that the lines were multiplied by; None without one.
        written: the file itself, for report and record alone.
    """

    title: str
    kind: type
    seeds: tuple[int, ...]
    data: object
    model: object
    tuner: object | None
    tuning: object | None
    evaluation: object
    lines: list[Line]
    arguments: dict
    sweep: Sweep | None = None
    written: Mapping = field(repr=False, default_factory=dict)

    @property
    def curves(self) -> list[str]:
        """Labels of the lines as they are written, which a sweep multiplies."""
        return [line["label"] for line in self.written["methods"]]

    def only(self, words: list[str] | None) -> "Experiment":
        """With the lines alone whose label contains one of `words`; all of them without words.

        Raises:
            InputError: there is none.
        """
        if not words:
            return self
        chosen = [line for line in self.lines if any(word in line.label for word in words)]
        if not chosen:
            labels = "; ".join(line.label for line in self.lines)
            raise InputError(f"--only {' '.join(words)} matches no method; there are: {labels}")
        return dataclasses.replace(self, lines=chosen)


def read_experiment(
    path: str | Path | None, default: str, kinds: Mapping[str, type], overrides: Mapping[str, object] | None = None
) -> Experiment:
    """The experiment of a YAML; without a path that of the embedded template `default`.

    Args:
        kinds: classes of problems by the name that `problem` gives.
        overrides: "section.key" -> value that stands in place of the file's; None takes the key away.

    Raises:
        InputError: no such file, not YAML, a section or key that does not exist, has another name now, or is missing,
            settings that a method, a problem or `UnlearnConfig` does not take, two lines of one label.
    """
    return make_experiment(read_yaml(path, default), kinds, overrides, str(path or default))


def make_experiment(
    written: Mapping, kinds: Mapping[str, type], overrides: Mapping[str, object] | None = None, place: str = "settings"
) -> Experiment:
    """The experiment that a nested mapping describes; see `read_experiment`."""
    written = override(written, overrides or {})
    for key in written:
        if key in MOVED:
            raise InputError(f"{place}: the section {key} is now {MOVED[key]}: write it there")
        if key not in SECTIONS:
            raise InputError(f"{place}: no section {key}; the sections are {', '.join(SECTIONS)}")
    if missing := [key for key in REQUIRED if not written.get(key)]:
        raise InputError(f"{place}: {', '.join(missing)} is missing; the sections are {', '.join(SECTIONS)}")
    name = written.get("problem", "tofu")
    if name not in kinds:
        raise InputError(f"{place}: problem: {name!r} is unknown: choose one of {', '.join(kinds)}")
    kind = kinds[name]
    for section in ("tuner", "tuning"):
        if section in written and section not in kind.sections:
            raise InputError(f"{place}: the problem {name} has no section {section}")
    parts = {section: read(section, written.get(section)) for section, read in kind.sections.items()}
    sweep = written.get("sweep") and configured(Sweep, "sweep", written["sweep"])
    lines = _lines(written["methods"], place, sweep)
    return Experiment(
        title=written.get("title") or Path(place).stem,
        kind=kind,
        seeds=_seeds(written, place),
        **dict.fromkeys(("tuner", "tuning")) | parts,
        lines=lines,
        arguments=_arguments(written.get("arguments"), "arguments"),
        sweep=sweep,
        written=written,
    )


def _seeds(written: Mapping, place: str) -> tuple[int, ...]:
    if "seed" in written and "seeds" in written:
        raise InputError(f"{place}: give seed or seeds, not both")
    seeds = written["seeds"] if "seeds" in written else [written.get("seed", 0)]
    if not isinstance(seeds, list | tuple) or not seeds or not all(type(seed) is int for seed in seeds):
        raise InputError(f"{place}: seeds must be whole numbers, not {seeds!r}")
    return tuple(seeds)


def _lines(methods, place: str, sweep: Sweep | None) -> list[Line]:
    if not isinstance(methods, list) or not all(isinstance(line, Mapping) for line in methods):
        raise InputError(f"{place}: methods: give a list of methods, each with label, method and search")
    lines = [configured(Line, f"methods, {line.get('label', 'no label')}", line) for line in methods]
    lines = lines if sweep is None else sweep.lines(lines)
    labels = [line.label for line in lines]
    if repeated := {label for label in labels if labels.count(label) > 1}:
        raise InputError(f"{place}: methods share a label: {', '.join(sorted(repeated))}; give every line its own")
    for line in lines:
        _arguments(line.arguments, f"methods, {line.label}: arguments")
        for name, value in line.tried():
            if name not in line.fields:
                _arguments({name: value}, f"methods, {line.label}: search")
    return lines


def _arguments(arguments: Mapping | None, section: str) -> dict:
    from ..trainer.config import UnlearnConfig, check_arguments

    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise InputError(f"{section}: give settings by name; see UnlearnConfig")
    known = {field.name for field in dataclasses.fields(UnlearnConfig)}
    if unknown := sorted(set(map(str, arguments)) - known):
        raise InputError(f"{section}: no setting {', '.join(unknown)}; see UnlearnConfig")
    try:
        check_arguments(arguments)
    except InputError as error:
        raise InputError(f"{section}: {error}") from error
    return dict(arguments)


def override(written: Mapping, overrides: Mapping[str, object]) -> dict:
    """A copy of nested mappings with some values replaced ("section.key") or taken away (None)."""
    result = dict(written)
    for path, value in overrides.items():
        *outer, key = path.split(".")
        inner = result
        for part in outer:
            inner[part] = dict(inner.get(part) or {})
            inner = inner[part]
        if value is None:
            inner.pop(key, None)
        else:
            inner[key] = value
    return result


def configured(function, section: str, settings: Mapping | None, **others):
    """`function(**settings, **others)`, where settings come from a person's YAML.

    Raises:
        InputError: as `check_settings`, or a value of another type than the field of a dataclass.
    """
    check_settings(function, section, settings, others)
    if dataclasses.is_dataclass(function):
        try:
            check_fields(function, settings or {}, {})
        except InputError as error:
            raise InputError(f"{section}: {error}") from error
    return function(**(settings or {}), **others)


def check_settings(function, section: str, settings: Mapping | None, others: Iterable[str] = ()):
    """Refuse settings that a function does not take; `others` are parameters that do not come from the YAML.

    Raises:
        InputError: a setting that the function does not have, or one that is missing.
    """
    settings = {} if settings is None else settings
    parameters = {name: value for name, value in inspect.signature(function).parameters.items() if name not in others}
    known = ", ".join(sorted(parameters))
    if not isinstance(settings, Mapping):
        raise InputError(f"{section}: give settings by name, not {settings!r}; there are {known}")
    if unknown := set(settings) - set(parameters):
        raise InputError(f"{section}: no setting {', '.join(sorted(map(str, unknown)))}; there are {known}")
    required = {name for name, value in parameters.items() if value.default is inspect.Parameter.empty}
    if missing := sorted(required - set(settings)):
        raise InputError(f"{section}: {', '.join(missing)} is missing; there are {known}")


def read_yaml(path: str | Path | None, default: str) -> dict:
    """The sections of a YAML file; without a path those of the embedded template `default`.

    Raises:
        InputError: no such file, not YAML, no sections, a number that YAML takes for text.
    """
    file = importlib.resources.files("hf_unlearn") / "templates" / default if path is None else Path(path)
    if not file.is_file():
        raise InputError(f"no such configuration: {path}")
    path = path or default
    written = parse_yaml(file.read_bytes(), path)
    if not isinstance(written, dict):
        raise InputError(f"{path}: no sections; give one at least")
    for place, value in leaves(written):
        if isinstance(value, str) and NUMBER.fullmatch(value):
            raise InputError(f"{path}: {place}: YAML takes {value} for text: write it with a point, as 1.0e-5")
    # A key without a value is as good as left out.
    return {key: value for key, value in written.items() if value is not None}


def leaves(value, place: str = "") -> Iterable[tuple[str, object]]:
    """(path, value) of everything in nested lists and mappings."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{place}[{index}]")
    else:
        yield place, value

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Scores of lm-eval's tasks, and samples that JSON can hold."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Score:
    """What one model reaches on one task or group of tasks."""

    accuracy: float | None  # the metric, a share for `acc` and `exact_match`; None when it is not a finite number
    stderr: float | None  # its standard error; for a group the pooled one
    n: int  # questions
    chance: float | None  # accuracy of a random choice; None for tasks without choices
    metric: str  # what `accuracy` is: `acc` where the task has it, else `exact_match`, else its first metric
    metrics: dict[str, float | None] = field(default_factory=dict)  # all, as lm-eval names them, with standard errors


@dataclass(frozen=True)
class HarnessResult:
    """Scores of one or several models."""

    scores: dict[str, dict[str, Score]]  # {label: {task or group: Score}}, groups before their tasks
    tasks: list[str]  # rows of the table: the tasks and groups that were asked for, and the direct members of groups
    settings: dict  # what else the numbers depend on: limit, batch_size, max_length, lm-eval's version
    models: dict[str, dict]  # {label: {"sha256" of the weights, "cached": whether the scores came from the cache}}
    # {label: {task: one dict a question}} with `log_samples`: prompt, continuations, responses, target, metrics.
    samples: dict[str, dict[str, list[dict]]] | None = None

    def to_dict(self) -> dict:
        """All of it but the samples, JSON-able."""
        scores = {label: {task: asdict(score) for task, score in of.items()} for label, of in self.scores.items()}
        return {"scores": scores, "tasks": self.tasks, "settings": self.settings, "models": self.models}


def make_score(result: Mapping, chance: float | None) -> Score:
    """A `Score` of one entry of lm-eval's results."""
    metrics = {key: _finite(value) for key, value in result.items() if "," in key}
    values = [key for key in metrics if "_stderr," not in key]
    named = [key for name in ("acc", "exact_match") for key in values if key.split(",")[0] == name]
    if not values:
        return Score(None, None, result["sample_len"], chance, "none")
    main = [*named, *values][0]
    metric, kind = main.split(",")
    return Score(metrics[main], metrics.get(f"{metric}_stderr,{kind}"), result["sample_len"], chance, metric, metrics)


def plain_sample(sample: Mapping) -> dict:
    arguments = sample["arguments"]
    return _plain(
        {
            **{key: sample[key] for key in ("doc_id", "doc", "target", *sample["metrics"])},
            "prompt": arguments[0][0],
            "continuations": [rest[0] for _, *rest in arguments if rest and isinstance(rest[0], str)],
            "responses": sample["filtered_resps"],
        }
    )


def _plain(value):
    """The value as JSON can hold it: numbers that are not finite are None, and what JSON does not know is text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return _finite(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _finite(value) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None

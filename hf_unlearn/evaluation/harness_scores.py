# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What lm-eval's tasks give: scores, their table, and samples that JSON can hold."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ..report.formats import MISSING


@dataclass(frozen=True)
class Score:
    """What one model reaches on one task or group of tasks.

    Attributes:
        accuracy: the metric, a share for `acc` and `exact_match`; None when it is not a finite number.
        stderr: its standard error; for a group the pooled one.
        n: questions.
        chance: accuracy of a random choice; None for tasks without choices.
        metric: what `accuracy` is: `acc` where the task has it, else `exact_match`, else its first metric.
        metrics: all metrics of the task as lm-eval names them, standard errors included.
    """

    accuracy: float | None
    stderr: float | None
    n: int
    chance: float | None
    metric: str
    metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class HarnessResult:
    """Scores of one or several models.

    Attributes:
        scores: {label: {task or group: Score}}, groups before their tasks.
        tasks: the tasks and groups that were asked for and the direct members of these groups: the rows of the table.
        settings: what the numbers depend on besides model and data (limit, batch_size, max_length, lm-eval's version ...).
        models: {label: {"sha256" of the weights, "cached": whether the scores were read from the cache}}.
        samples: {label: {task: one dict a question}} with `log_samples`: prompt, continuations, responses, target, metrics.
    """

    scores: dict[str, dict[str, Score]]
    tasks: list[str]
    settings: dict
    models: dict[str, dict]
    samples: dict[str, dict[str, list[dict]]] | None = None

    def accuracy(self, task: str, label: str | None = None) -> float | None:
        """Of the only model, or of the one with that label."""
        label = next(iter(self.scores)) if label is None and len(self.scores) == 1 else label
        return self.scores[label][task].accuracy

    @property
    def counts(self) -> dict[str, int]:
        """{task or group: number of questions}."""
        first = next(iter(self.scores.values()))
        return {task: first[task].n for task in self.tasks}

    def to_markdown(self) -> str:
        """A row a task, accuracies in percent with standard errors; the last column is last model minus first."""
        return format_scores(self.scores, self.tasks)

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


def format_scores(scores: Mapping[str, Mapping[str, Score]], tasks: Sequence[str]) -> str:
    """A Markdown table of {label: {task: Score}}."""
    labels, first = list(scores), next(iter(scores.values()))
    several = len(labels) > 1
    header = ["task", "questions", "chance", *labels, *(["change"] if several else [])]
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for task in tasks:
        score = first[task]
        name = task if score.metric == "acc" else f"{task} ({score.metric})"
        cells = [name, f"{score.n}", MISSING if score.chance is None else f"{100 * score.chance:.1f} %"]
        cells += [_format_accuracy(scores[label][task]) for label in labels]
        last = scores[labels[-1]][task]
        if several and None not in (last.accuracy, score.accuracy):
            cells.append(_in_unit(score, last.accuracy - score.accuracy, "+"))
        elif several:
            cells.append(MISSING)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _format_accuracy(score: Score) -> str:
    if score.accuracy is None:
        return MISSING
    error = "" if score.stderr is None else f" ± {_in_unit(score, score.stderr).removesuffix(' %')}"
    value = _in_unit(score, score.accuracy)
    return value.removesuffix(" %") + error + (" %" if value.endswith(" %") else "")


def _in_unit(score: Score, value: float, sign: str = "") -> str:
    share = score.metric.startswith(("acc", "exact_match"))
    return f"{100 * value:{sign}.1f} %" if share else f"{value:{sign}.4g}"


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

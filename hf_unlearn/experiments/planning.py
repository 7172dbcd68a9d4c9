# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Plan of an experiment: what every line will do and cost; a dry run needs neither weights nor a GPU."""

from collections.abc import Sequence

from ..methods.base import StageSize
from ..objectives import logits_of
from .line import Line
from .problem import Problem
from .settings import Experiment


def dry_run(experiment: Experiment) -> str:
    """Walk the experiment on the meta device: no weight is allocated. Returns the plan of every line, to print.

    Raises:
        InputError: as the run would: settings that do not fit, no target module, no architecture.
    """
    model, batch = experiment.kind.architecture(experiment)
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"
    lines = [f"model: {size} parameters on the meta device"]
    places = [(size, experiment.kind.stage_sizes(experiment, size)) for size in experiment.kind.sizes(experiment)]
    for size, stages in places:
        at = "" if size is None else f" ({experiment.kind.vocabulary.size_head}: {size})"
        lines += [
            f"data: {stage.name}{at}: {stage.forget_rows} forget rows, {stage.retain_rows} retain rows"
            for stage in stages
        ]
    logits = logits_of(model(**batch))
    lines.append(f"forward: logits {tuple(logits.shape)} {logits.dtype}")
    return "\n".join([*lines, plans(experiment.kind, model, experiment.lines, places[0][1])])


def plans(kind: type[Problem], model, lines: Sequence[Line], stages: Sequence[StageSize]) -> str:
    """What every line will do on stages of these sizes."""
    return "\n".join(plan_line(kind, model, line, stages) for line in lines)


def plan_line(kind: type[Problem], model, line: Line, stages: Sequence[StageSize]) -> str:
    """Candidates of a line, and what its method says of each stage: steps, targets, bytes and FLOPs of fits.

    Raises:
        InputError: settings that the method does not have, no target module, fewer forget rows than its steps need.
    """
    if line.stages == "together" and len(stages) > 1:
        names, forget, retain, lengths = zip(*stages, strict=True)
        stages = [StageSize(" and ".join(names), sum(forget), sum(retain), lengths[0])]
    line.check(stages)
    count = kind.candidates(line)
    lines = [f"\n{line.label}: {count} candidate{'s' * (count != 1)}"]
    for values, stage in zip(line.trainings(len(stages))[0].stages, stages, strict=True):
        plan = line.make(values).plan(model, stage)
        if plan and len(stages) > 1:
            plan[0] = f"stage {stage.name}: {plan[0]}"
        lines += plan
    return "\n".join(lines)

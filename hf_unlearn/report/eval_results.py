# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Scores on benchmarks as the Hub reads them: files of `.eval_results/`, for a model's page and for leaderboards.

https://huggingface.co/docs/hub/eval-results
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..runtime.files import write_text


FOLDER = ".eval_results"
LOWER = "hazardous knowledge that was unlearned: lower is the goal"


def result_files(evaluations: Sequence[Mapping]) -> dict[str, str]:
    """{path in the repository: YAML} of the scores (`evaluations` of `report.card.render_card`) on a Hub benchmark.

    A score without a dataset and its task, or that is no number, has no file: it is no benchmark's.
    """
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    found = defaultdict(list)
    for score in evaluations:
        if not (score.get("dataset") and score.get("task") and is_number(score.get("value"))):
            continue
        notes = [score.get("notes"), LOWER if score.get("lower_is_goal") else None]
        entry = EvalResultEntry(
            score["dataset"], score["task"], score["value"], notes="; ".join(filter(None, notes)) or None
        )
        # Scores of one task under several metrics are told apart by their notes, and lie in files of their own.
        name = score["name"] if score["metric"] == "acc" else f"{score['name']} {score['metric']}"
        found[re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "result"].append(entry)
    dump = lambda entries: yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return {f"{FOLDER}/{name}.yaml": dump(entries) for name, entries in found.items()}


def write_results(folder: Path, evaluations: Sequence[Mapping]):
    """Write the `result_files` into the folder of a model."""
    files = result_files(evaluations)
    if files:
        (folder / FOLDER).mkdir(exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

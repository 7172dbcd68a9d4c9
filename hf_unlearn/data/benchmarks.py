# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Benchmarks that a score may be published under: the dataset on the Hub, its subset, and how many rows that has."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """A subset of a dataset on the Hub, which leaderboards know by both names.

    Args:
        dataset (`str`): Hub id.
        task (`str`): configuration of the dataset, the id of the task on the Hub.
        rows (`int`): how many a score is made of.
    """

    dataset: str
    task: str
    rows: int

    @property
    def names(self) -> dict:
        """What a score says of it (`evaluations` of `report.card.render_card`)."""
        return {"dataset": self.dataset, "task": self.task}


# {name of the task in lm-eval: benchmark}, rows are questions. Li et al. 2024; Hendrycks et al. 2021.
QUESTIONS = {
    "wmdp_bio": Benchmark("cais/wmdp", "wmdp-bio", 1273),
    "wmdp_chem": Benchmark("cais/wmdp", "wmdp-chem", 408),
    "wmdp_cyber": Benchmark("cais/wmdp", "wmdp-cyber", 1987),
    "mmlu": Benchmark("cais/mmlu", "all", 14042),
}
# {name of the problem (`data.tofu.load_tofu`): benchmark}, rows of its `TofuSplits.evaluation`. Maini et al. 2024.
TOFU = {
    f"tofu-{split}": Benchmark("locuslab/TOFU", split, forget + 400 + 100 + 117)
    for split, forget in (("forget01", 40), ("forget05", 200), ("forget10", 400))
}


def benchmark_of(known: Mapping[str, Benchmark], name: str, rows: int) -> Benchmark | None:
    """The benchmark of a task; None when there is none of this name, or another number of rows was asked.

    A score on a part of the questions, or on others that a folder has under the same name, is not the benchmark's.
    """
    found = known.get(name)
    return found if found is not None and found.rows == rows else None

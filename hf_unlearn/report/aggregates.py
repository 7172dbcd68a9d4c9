# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Means and standard deviations over seeds of the rows of a table."""

import statistics
from collections.abc import Mapping, Sequence

from ..errors import InputError


# Keys of a row that say what ran; all other numbers are metrics.
ABOUT = {"method", "seed", "seeds", "settings", "note"}


def group_rows(rows: Sequence[Mapping], size_key: str | None = None) -> list[list[Mapping]]:
    """The rows of one method and size together, one for every seed, in the order of the first ones.

    A row without `seed` is alone: nothing says that it is another run of the same line.

    Raises:
        InputError: two rows of one method, size and seed.
    """
    groups: dict[tuple, dict] = {}
    for place, row in enumerate(rows):
        seed = row.get("seed")
        key = (row["method"], row.get(size_key), place if seed is None else None)
        if seed in (members := groups.setdefault(key, {})):
            raise InputError(
                f"two rows of {row['method']!r} with seed {seed}: rows of one table differ in size or seed"
            )
        members[seed] = row
    return [list(members.values()) for members in groups.values()]


def mean_row(rows: Sequence[Mapping]) -> dict:
    """The mean of every metric over the runs of one line, and beside it `<metric>_std` (population, as papers print).

    Mappings of numbers (`accuracy`, `lost`) are averaged key by key. Where a run has no number, neither has the mean.
    Settings that differ are a list in the order of the runs; texts other than notes and lists of numbers are left out.
    """
    metrics = {}
    for key in [key for key in _keys(rows) if key not in ABOUT]:
        values = [row.get(key) for row in rows]
        if all(value is None or _is_number(value) for value in values):
            metrics[key], metrics[f"{key}_std"] = mean_and_deviation(values)
        elif all(value is None or _holds_numbers(value) for value in values):
            parts = [value or {} for value in values]
            found = {name: mean_and_deviation([part.get(name) for part in parts]) for name in _keys(parts)}
            metrics[key] = {name: mean for name, (mean, _) in found.items()}
            metrics[f"{key}_std"] = {name: deviation for name, (_, deviation) in found.items()}
    settings = [row.get("settings") or {} for row in rows]
    if any(settings):
        chosen = {key: [run.get(key) for run in settings] for key in _keys(settings)}
        same = lambda values: all(value == values[0] for value in values)
        metrics["settings"] = {key: values[0] if same(values) else values for key, values in chosen.items()}
    if notes := dict.fromkeys(row["note"] for row in rows if row.get("note")):
        metrics["note"] = "; ".join(notes)
    return metrics


def aggregate(rows: Sequence[Mapping], size_key: str | None = None) -> list[dict]:
    """One entry for every method and size of the rows of all seeds: `mean_row`, with `seeds`, the number of runs.

    Raises:
        InputError: two rows of one method, size and seed.
    """
    table = []
    for members in group_rows(rows, size_key):
        about = {key: members[0][key] for key in ("method", size_key) if key in members[0]}
        means = {key: value for key, value in mean_row(members).items() if key.removesuffix("_std") not in about}
        table.append({**about, "seeds": len(members), **means})
    return table


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation; two None where one of the values is None."""
    if any(value is None for value in values):
        return None, None
    # A number that is the same in all runs stays as it is: a count stays an integer.
    mean = values[0] if all(value == values[0] for value in values) else statistics.fmean(values)
    return mean, statistics.pstdev(values)


def _keys(mappings: Sequence[Mapping]) -> list[str]:
    """All of their keys, in the order in which they come first."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _holds_numbers(value) -> bool:
    return isinstance(value, Mapping) and all(part is None or _is_number(part) for part in value.values())

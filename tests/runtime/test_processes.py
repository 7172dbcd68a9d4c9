# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Processes among whom work is shared."""

from hf_unlearn.runtime.processes import assign


def test_assignment_balances_and_covers():
    costs = {f"large{i}": 20.0 for i in range(12)} | {f"small{i}": 1.0 for i in range(8)}
    owners = assign(costs, 4)
    loads = [sum(costs[name] for name, owner in owners.items() if owner == rank) for rank in range(4)]
    assert owners.keys() == costs.keys() and loads == [62.0] * 4

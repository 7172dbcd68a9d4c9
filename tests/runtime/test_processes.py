# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Processes among whom work is shared."""

import atexit

import pytest
import torch

from hf_unlearn.runtime.processes import LostProcess, announced_processes, assign, connected


def test_assignment_balances_and_covers():
    costs = {f"large{i}": 20.0 for i in range(12)} | {f"small{i}": 1.0 for i in range(8)}
    owners = assign(costs, 4)
    loads = [sum(costs[name] for name, owner in owners.items() if owner == rank) for rank in range(4)]
    assert owners.keys() == costs.keys() and loads == [62.0] * 4


def test_what_is_no_lost_connection_keeps_its_words():
    with pytest.raises(LostProcess, match="another process stopped during the fit"), connected("the fit"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match="^shapes differ$"), connected("the fit"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("before, ours", [(False, True), (True, False)])
def test_a_process_group_goes_at_exit_with_the_program_that_made_it(before, ours, monkeypatch):
    registered, answers = [], iter([before, True])
    monkeypatch.setattr(atexit, "register", registered.append)
    with monkeypatch.context() as patched:
        patched.setattr(torch.distributed, "is_initialized", lambda: next(answers))
        announced_processes()
    assert len(registered) == ours
    gone = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: gone.append(True))
    for leave in registered:
        leave()
        assert not gone  # it has gone already
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        leave()
        assert gone

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Damaged files of every kind that is read: one line says so, or what is read is what was written.

`HF_UNLEARN_FUZZ=500` damages each that many times; by default it is a handful.
"""

import os
import resource

import pytest

from tests.support.damaged_runs import RUNS, resume_damaged
from tests.support.fuzz import KINDS, fuzz


COUNT = int(os.environ.get("HF_UNLEARN_FUZZ", "6"))


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: f"{number}-{KINDS[number].file}")
def test_damaged_files_are_refused_in_one_line_or_read_as_they_were(number, tmp_path, caplog):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fuzz(KINDS[number], tmp_path, range(COUNT))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{KINDS[number].file}: {len(found.faults)} faults of {COUNT}, {grown:.0f} MB more")
    assert not found.faults, "\n".join(found.faults)
    assert found.tried == COUNT and grown < 600


@pytest.mark.parametrize("run", RUNS)
def test_a_damaged_checkpoint_is_refused_in_one_line_or_resumed_to_the_same_bits(run, tmp_path):
    found, files = resume_damaged(run, tmp_path, range(COUNT // 2))
    assert not found.faults, "\n".join(found.faults)
    assert found.tried == 2 * (COUNT // 2) and files > 12
    assert found.refused and found.read

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Damaged files of every kind that is read: one line says so, or what is read is what was written.

`HF_UNLEARN_FUZZ=500` damages each that many times; by default it is a handful.
"""

import os
import resource
import signal

import pytest

from tests.support.fuzz import KINDS, fuzz


COUNT = int(os.environ.get("HF_UNLEARN_FUZZ", "6"))


@pytest.mark.parametrize("number", range(len(KINDS)), ids=lambda number: f"{number}-{KINDS[number].file}")
def test_damaged_files_are_refused_in_one_line_or_read_as_they_were(number, tmp_path, caplog):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a file took longer than it may"))
    signal.alarm(60 + COUNT)
    try:
        faults = fuzz(KINDS[number], tmp_path, range(COUNT))
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{KINDS[number].file}: {len(faults)} faults of {COUNT}, {grown:.0f} MB more")
    assert not faults, "\n".join(faults)
    assert grown < 600

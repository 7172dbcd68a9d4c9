# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Saves that fail or are killed: is the old set found afterwards, or the new, never neither and never a mixture?

The saves of tests/test_failing_writes.py (delta, curvature, model, checkpoint, report with its model): each of their
file operations fails once, and all from it on, with every one of `ERRORS`, and ends the process once.
"""

import argparse
import errno
import logging
import sys
import tempfile
import warnings
from pathlib import Path

from transformers.utils import logging as transformers_logging


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hf_unlearn.runtime.provenance import record_run  # noqa: E402
from tests.support.failing import ERRORS, killed_at, operations  # noqa: E402
from tests.test_failing_writes import SAVES, copies  # noqa: E402


def measure(make, folder: Path) -> dict:
    """How often a failed save, and a killed one, left the old set, the new one, or neither."""
    case, restore, told, count = copies(make, folder / "place")
    failed, killed = ({"old": 0, "new": 0, "neither": 0} for _ in range(2))
    silent = 0
    for number in range(1, count + 1):
        for what in ERRORS:
            for lasting in (False, True):
                restore()
                raised = False
                with operations(folder / "place", number, what, lasting):
                    try:
                        case.save()
                    except OSError:
                        raised = True
                state = told()
                failed[state] += 1
                silent += state == "old" and not raised
        restore()
        killed_at(number, folder / "place", case.save)
        killed[told()] += 1
    return {"operations": count, "failed": failed, "killed": killed, "old_in_silence": silent}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/failing_writes.json"))
    parser.add_argument("--saves", nargs="+", choices=[make.__name__ for make in SAVES], help="(default: all)")
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    rows = {}
    for make in SAVES:
        if arguments.saves and make.__name__ not in arguments.saves:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows[make.__name__] = row = measure(make, Path(folder))
        print(f"{make.__name__}: {row}", flush=True)
    total = {how: sum(sum(row[how].values()) for row in rows.values()) for how in ("failed", "killed")}
    total["neither"] = sum(row[how]["neither"] for row in rows.values() for how in ("failed", "killed"))
    total["old_in_silence"] = sum(row["old_in_silence"] for row in rows.values())
    errors = [errno.errorcode[number] for number in ERRORS]
    record_run(arguments.output, {"errors": errors, "total": total, "saves": rows})


if __name__ == "__main__":
    main()

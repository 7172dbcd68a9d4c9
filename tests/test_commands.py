# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Commands that README.md and docs/unlearn.md print: they run as printed, or it says here why they do not."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/unlearn.md")
# Beginnings of commands that are not run by the test, and why.
NOT_RUN = {
    "make demo": "minutes; tests/experiments run the demo in small",
    "make test": "it is this suite",
    "python recipes/kfade_wmdp.py": "an hour; tests/experiments run it in small",
    "python recipes/fast_ntk": "minutes to hours, and data",
    "accelerate launch recipes/": "a 7B model and its data",
    "hf-unlearn evaluate --model outputs/kfade_wmdp": "needs that recipe; tests/cli/test_evaluate.py",
    "hf-unlearn unlearn --model google/": "needs the network",
    "hf-unlearn transfer --delta outputs": "needs a fine-tuned copy; tests/cli/test_main.py",
    "hf-unlearn curvature": "names stand for a model of yours; tests/cli/test_curvature.py",
}
BEFORE = "python recipes/miniature.py"  # stands in the text of the README


def commands(page: Path) -> list[str]:
    """The commands in the blocks of a page, each on one line."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip()]


def printed(page: Path) -> list[str]:
    """Those that are to be run."""
    return [line for line in commands(page) if not line.startswith(tuple(NOT_RUN))]


def test_every_command_is_run_or_excused():
    every = [line for page in PAGES for line in commands(page)]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in every)] == []
    run = {" ".join(line.split()[:2]) for page in PAGES for line in printed(page)}
    assert run == {"hf-unlearn unlearn", "hf-unlearn inspect"}
    assert BEFORE in PAGES[0].read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_screen_runs_as_printed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_UNLEARN_CACHE": str(tmp_path / "cache")}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 1800}
    made = subprocess.run([sys.executable, ROOT / "recipes/miniature.py"], **run)
    assert made.returncode == 0, made.stderr
    said = []
    for line in printed(PAGES[0]):
        words = [sys.executable, "-m", "hf_unlearn", *shlex.split(line)[1:]]
        result = subprocess.run(words, **run)
        assert result.returncode == 0, f"{line}: {result.stderr}"
        said.append(result.stdout)
    numbers = lambda text: [float(number) for number in re.findall(r"(?<![\w-])\d+\.\d+(?!\w)", text)]
    shown = re.search(r"^forget probability .*$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE).group()
    told = re.search(r"^forget probability .*$", said[0], re.MULTILINE).group()
    assert numbers(told) == pytest.approx(numbers(shown), rel=0.25)

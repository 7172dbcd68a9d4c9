# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What pages print to be run is run as printed, or it says here why not.

Commands and snippets of every page, docstring of a program and example of a module run in their order, in a folder
where small models and files stand under the names of the page, against a Hub on localhost.
"""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from fnmatch import fnmatchcase

import pytest

from tests.support.hub_server import client_environment, hub_server
from tests.support.pages import ROOT, Piece, all_pieces, pieces


# Patterns of commands that print their plan here (`--dry_run`) and do no more, and why.
PLANNED = {
    "python recipes/kfade_wmdp.py": "an hour; tests/experiments/test_wmdp.py runs it in small",
    "python recipes/kfade_tofu.py": "minutes; tests/experiments/test_run.py runs it in small",
    "python recipes/fast_ntk_cifar10.py": "minutes; tests/experiments/test_fast_ntk_recipe.py runs it in small",
    "python recipes/spe_tofu.py": "minutes; tests/experiments run it in small",
    "python recipes/spe_glue.py": "minutes; tests/experiments run it in small",
    "python recipes/spe_squad.py": "minutes; tests/experiments/test_squad.py runs it in small",
    "python recipes/spe_*.py --sweep *": "minutes; tests/experiments/test_sweep.py runs one in small",
    "python recipes/spe_glue.py --requests *": "minutes; tests/experiments/test_glue.py runs three in small",
    "accelerate launch recipes/kfade_wmdp.py --config recipes/configs/kfade_wmdp_zephyr_7b.yaml *": "a 7B model",
}
# Patterns of commands and snippets that are not run here, and why.
EXCUSED = {
    "make demo": "minutes; tests/experiments/test_run.py runs the demo in small",
    "make test": "it is this suite",
    "make quality": "it installs; the checks begin with it",
    "make style": "it changes the checkout",
    "accelerate launch recipes/kfade_tofu.py *": "TOFU and a 7B model from the Hub",
    "python recipes/kfade_tofu.py --config *": "TOFU, which is not in the repository",
    "python recipes/fast_ntk_cifar10.py --config *": "CIFAR-10 and hours",
    "python recipes/fast_ntk_imagenet_r.py *": "ImageNet-R and hours",
    "python recipes/spe_glue.py --config *": "GLUE, which is not in the repository",
    "python recipes/spe_squad.py --config *": "SQuAD, which is not in the repository",
    "accelerate launch recipes/spe_tofu.py *": "TOFU and a 7B model from the Hub",
    "from transformers import *textattack/bert-base-uncased-SST-2*": "a model on the Hub, which is no causal one",
    "python recipes/miniature.py *": "a minute or two; the slow test below begins with it",
    "PYTHON=* benchmarks/gpu/run.sh": "a GPU",
    "python benchmarks/gpu/llama2_7b.py": "a GPU",
    "python benchmarks/ntk.py *": "minutes to hours; tests/test_benchmarks.py runs it in small",
    "python benchmarks/sharding.py": "minutes; tests/test_benchmarks.py runs it in small",
    "OMP_NUM_THREADS=* python benchmarks/*": "minutes; tests/test_benchmarks.py runs them in small",
    "@dataclass\nclass *": "tests/methods/test_seam.py holds and runs these very lines",
}
PIECES = all_pieces()
# What must be found to fail, and the words of its error.
WRONG = [
    (Piece("wrong", "bash", "hf-unlearn inspect absent"), "exit code 2"),
    (Piece("wrong", "bash", "tofu recipes/miniature.py"), "tofu is no program that is run here"),
    (Piece("wrong", "python", "print(1 + 1)  # 3"), "and not '3'"),
    (Piece("wrong", "python", "from hf_unlearn import KFade\nKFade(stepps=3)"), "stepps"),
]
FIRST_SCREEN = ("hf-unlearn unlearn --model miniature/", "hf-unlearn inspect ")


def matching(piece: Piece, patterns) -> list[str]:
    return [pattern for pattern in patterns if fnmatchcase(piece.text, pattern)]


def to_run(piece: Piece) -> Piece | None:
    """What is run of a piece: itself, its plan, or nothing."""
    if matching(piece, EXCUSED):
        return None
    if matching(piece, PLANNED):
        words = [word for word in shlex.split(piece.text) if word not in ("accelerate", "launch", "python")]
        return dataclasses.replace(piece, text=shlex.join(["python", *words, "--dry_run"]))
    return piece


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[tuple[Piece, dict]]:
    """Every piece that is run, with its error and what it printed."""
    folder = tmp_path_factory.mktemp("pages")
    chosen = [piece for one in PIECES if (piece := to_run(one))] + [piece for piece, _ in WRONG]
    with hub_server() as server:
        environment = client_environment(server, folder / "home") | {
            "HF_UNLEARN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-m", "tests.support.page_runner", str(folder)],
            input=json.dumps([dataclasses.asdict(piece) for piece in chosen]),
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    # The model that a command took from there, and what command and snippet pushed.
    for name in ("me/gemma-without-them", "tester/request-18"):
        assert {"model.safetensors", "README.md"} <= set(server.repos[name]["commits"][-1]["files"])
    return list(zip(chosen, json.loads((folder / "outcomes.json").read_text()), strict=True))


@pytest.mark.parametrize("page", sorted({piece.page for piece in PIECES}))
def test_a_page_runs_as_printed(page, outcomes):
    ours = [piece for piece in PIECES if piece.page == page]
    ran = [(piece, outcome) for piece, outcome in outcomes if piece.page == page]
    planned = sum(bool(matching(piece, PLANNED)) for piece in ours)
    excused = [piece.text for piece in ours if matching(piece, EXCUSED)]
    print(f"{page}: {len(ran) - planned} run, {planned} planned, {len(excused)} excused {excused}")
    assert len(ran) + len(excused) == len(ours)
    assert {piece.text: outcome["error"] for piece, outcome in ran if outcome["error"]} == {}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_is_found(number, outcomes):
    piece, words = WRONG[number]
    error = outcomes[number - len(WRONG)][1]["error"]
    assert error is not None and words in error, (piece, error)


def test_every_block_is_of_a_kind_that_is_run():
    assert [piece for piece in PIECES if piece.language not in ("bash", "python")] == []


def test_excuses_are_needed_and_single():
    found = Counter(pattern for piece in PIECES for pattern in matching(piece, [*PLANNED, *EXCUSED]))
    assert set(found) == {*PLANNED, *EXCUSED}
    assert [piece for piece in PIECES if len(matching(piece, [*PLANNED, *EXCUSED])) > 1] == []


def test_pieces_are_found_in_their_order():
    page = """Text with `hf-unlearn push`.

    make test  # an indented command
    no command

```python
x = 1
    make x
```

```text
hf-unlearn said this
```

```bash
# a comment
hf-unlearn inspect a \\
    --json
make demo    # the demo
```

```
neither
```

    python a.py --first \\
        --second
"""
    assert [(piece.language, piece.text) for piece in pieces(page, "page")] == [
        ("bash", "make test"),
        ("python", "x = 1\n    make x\n"),
        ("bash", "hf-unlearn inspect a --json"),
        ("bash", "make demo"),
        ("", "neither\n"),
        ("bash", "python a.py --first --second"),
    ]


@pytest.mark.slow
def test_the_first_screen_says_what_is_printed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_UNLEARN_CACHE": str(tmp_path / "cache")}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 1800}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "`python recipes/miniature.py`" in text
    made = subprocess.run([sys.executable, ROOT / "recipes/miniature.py"], **run)
    assert made.returncode == 0, made.stderr
    said = []
    for line in (piece.text for piece in PIECES if piece.page == "README.md" and piece.text.startswith(FIRST_SCREEN)):
        result = subprocess.run([sys.executable, "-m", "hf_unlearn", *shlex.split(line)[1:]], **run)
        assert result.returncode == 0, f"{line}: {result.stderr}"
        said.append(result.stdout)
    numbers = lambda words: [float(number) for number in re.findall(r"(?<![\w-])\d+\.\d+(?!\w)", words)]
    shown, told = (re.search(r"^forget probability .*$", one, re.MULTILINE).group() for one in (text, said[0]))
    assert len(said) == 2 and numbers(told) == pytest.approx(numbers(shown), rel=0.25)

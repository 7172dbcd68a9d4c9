# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The package as installed: start-up cost, lazy names and metadata."""

import configparser
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hf_unlearn


ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "peft",
    "accelerate",
    "matplotlib",
    "scipy",
    "sklearn",
    "jinja2",
    "lm_eval",
)


def run_python(code: str, *arguments: str) -> str:
    """Standard output of a fresh interpreter that sees the package under test and no other state."""
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_unlearn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd="/", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_pep_440_and_the_one_of_the_file():
    from hf_unlearn.version import __version__

    assert hf_unlearn.__version__ == __version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", __version__)


def test_import_costs_less_than_a_second_beyond_torch():
    code = "import torch, time; t = time.perf_counter(); import hf_unlearn; print(time.perf_counter() - t)"
    assert min(float(run_python(code)) for _ in range(2)) < 1.0


@pytest.mark.parametrize("module", ["hf_unlearn", "hf_unlearn.cli"])
def test_import_brings_no_heavy_module(module):
    loaded = run_python(f"import sys, {module}; print(*sys.modules)").split()
    assert module in loaded
    assert not set(HEAVY) & set(loaded)


def test_command_help_is_quick_and_lists_the_commands():
    code = "import sys; from hf_unlearn.cli.main import main; sys.exit(main())"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        text = run_python(code, "--help")
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.0
    assert "usage: hf-unlearn" in text and "demo" in text


@pytest.mark.parametrize("name", sorted(hf_unlearn._EXPORTS))
def test_lazy_names_resolve(name):
    assert getattr(hf_unlearn, name).__name__ == name
    assert name in dir(hf_unlearn)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Retrain'"):
        hf_unlearn.Retrain  # noqa: B018


def test_metadata_ships_what_the_package_reads():
    """A folder or data file that setup.cfg forgets is there in a checkout and gone after `pip install .`."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    module, function = config["options.entry_points"]["console_scripts"].split("=")[1].strip().split(":")
    assert (module, function) == ("hf_unlearn.cli.main", "main")
    package = ROOT / "hf_unlearn"
    shipped = {
        path for pattern in config["options.package_data"]["hf_unlearn"].split() for path in package.glob(pattern)
    }
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "py.typed" in shipped
    assert files <= shipped, f"not in package_data of setup.cfg: {sorted(map(str, files - shipped))}"
    folders = {path.parent for path in package.rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`--json` of every command: one object on stdout, of an error too, and all else on stderr.

Output is caught at the file descriptors, where libraries may write past Python.
"""

import json
import os
import subprocess
import sys

import pytest

from hf_unlearn.cli.main import make_parser
from hf_unlearn.experiments import run as road
from tests.support.commands import call
from tests.support.hub_server import hub_server, known_here
from tests.support.pages import ROOT
from tests.support.reports import tofu_row
from tests.support.requests import STEPS, make_request
from tests.support.rows import write_lines


# Command: (arguments, keys of what it says, arguments that are wrong, words of the error). They run in this order.
COMMANDS = {
    "unlearn": (
        f"--model model --forget forget.jsonl --retain retain.jsonl --kl_limit 1 --output out {' '.join(STEPS)}",
        {"model", "method", "settings", "original", "unlearned", "kl_limit", "answers", "report", "sentence"},
        "--model model --forget absent.jsonl --retain retain.jsonl",
        "absent.jsonl is neither a file",
    ),
    "demo": ("--output_dir demo", {"rows"}, "--seed one", "invalid int value: 'one'"),
    "evaluate": (
        "--model model --tasks wmdp_chem --data_dir data --no_cache",
        {"scores", "tasks", "models"},
        "--model model",
        "evaluate needs --model with --tasks",
    ),
    "evaluate --suite tofu": ("--log log.json", {"log", "summary"}, "--log absent.json", "no log at"),
    "curvature fit": (
        "--model model --data texts.jsonl --output curvature",
        {"kind", "place", "metadata", "spectra"},
        "--model model --data texts.jsonl --output curvature",
        "curvature is not an empty folder",
    ),
    "curvature plan": (
        "--model model --sparsity 0.5 --structures filters",
        {"parameters", "plans", "mask"},
        "--model model --structures heads",
        "--structures says what a mask chooses from",
    ),
    "curvature inspect": ("curvature", {"kind", "place", "metadata", "spectra"}, "model", "curvature_config.json"),
    "inspect": ("out/model", {"path", "holds"}, "data", "holds no delta"),
    "transfer": (
        "--delta out/model/delta --model model --output moved",
        {"output"},
        "--delta out/model/delta --model model --output moved",
        "moved exists and is not an empty folder",
    ),
    "push": (
        "--folder out/model --repo_id lab/x",
        {"commit"},
        "--folder data --repo_id lab/x",
        "chem_test.jsonl is no part of a published model",
    ),
    "push --dry_run": ("--folder out/model --repo_id lab/x", {"files", "bytes"}, "--folder absent", "--repo_id"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which all of it works, one after the other."""
    folder = make_request(tmp_path_factory.mktemp("json"), steps=50)
    question = {"question": "Where does Ada live?", "choices": ["Rome", "Oslo", "Lima", "Bern"], "answer": 0}
    write_lines(folder / "data/chem_test.jsonl", [question] * 2)
    write_lines(folder / "texts.jsonl", [{"text": "Ada lives in Rome, and Ben lives in Oslo."}] * 4)
    log = {"forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": {"0": {"prob": 0.5}}}}
    (folder / "log.json").write_text(json.dumps(log))
    return folder


@pytest.fixture
def asked(place, monkeypatch, capfd):
    """(exit code, the object on stdout, stderr) of a command with `--json`."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(place / "cache"))
    monkeypatch.setattr(road, "run_experiment", lambda *_, **__: [tofu_row("original", 1e-9)])

    def ask(command, arguments):
        capfd.readouterr()
        code = call(*command.split(), *arguments.split(), "--json")
        said, log = capfd.readouterr()
        (line,) = said.splitlines()
        return code, json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), log

    return ask


def commands(parser, path=()):
    """The words of every command that there is."""
    choices = next((action.choices for action in parser._actions if isinstance(action.choices, dict)), None)
    if choices is None:
        yield " ".join(path)
    for name, command in (choices or {}).items():
        yield from commands(command, (*path, name))


def test_every_command_is_here():
    assert {command.partition(" --")[0] for command in COMMANDS} == set(commands(make_parser()))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_is_one_object(command, asked, monkeypatch):
    arguments, keys, _, _ = COMMANDS[command]
    with hub_server() as server:
        known_here(server, monkeypatch)
        code, told, log = asked(command, arguments)
    assert code == 0 and told["exit_code"] == 0 and told["command"] == command.split()[0], log
    assert keys <= told.keys() and "error" not in told
    assert "Traceback" not in log and json.dumps(told, ensure_ascii=False) not in log


@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_is_one_object(command, asked):
    _, _, arguments, words = COMMANDS[command]
    code, told, log = asked(command, arguments)
    assert code == 2 and told.keys() == {"error", "exit_code"} and told["exit_code"] == 2
    assert words in told["error"]["message"] and told["error"]["kind"] == "InputError", told
    assert "Traceback" not in log and "error: " not in log


def test_what_nobody_can_cure_keeps_its_traceback(asked, monkeypatch):
    def broken(*_, **__):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(road, "run_demo", broken)
    with pytest.raises(ValueError, match="a fault of ours"):
        asked("demo", "")


def test_an_option_is_written_out(asked, capfd):
    """A beginning of `--json` would be taken for it by the parser alone, and the result be text."""
    assert call("inspect", "out/model", "--js") == 2
    assert "unknown argument --js" in capfd.readouterr().err


def launched(folder, *arguments, before=""):
    """(exit code, stdout, stderr) of a command that a launcher starts in two processes."""
    program = folder / "program.py"
    program.write_text(f"import os, sys, time\n{before}\nfrom hf_unlearn.cli.main import main\nmain(sys.argv[1:])\n")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*launch, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.multi_process
def test_the_main_process_says_an_error_that_another_met_first(tmp_path):
    late = "time.sleep(3 * (os.environ['RANK'] == '0'))"
    code, said, log = launched(tmp_path, "inspect", "a", "b", "--json", before=late)
    (line,) = said.splitlines()
    assert code == 1 and "unknown argument b" in json.loads(line)["error"]["message"]
    assert log.count("error: unknown argument b") == 1


@pytest.mark.multi_process
def test_one_process_of_a_launch_inspects(delta, tmp_path):
    code, said, log = launched(tmp_path, "inspect", str(delta), "--json")
    (line,) = said.splitlines()
    assert code == 0 and json.loads(line)["holds"][0]["kind"] == "delta", log

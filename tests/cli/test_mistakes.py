# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Plausible mistakes on the command line: each is one line that names cause and cure, exit code 2, no harm done."""

import json

import pytest

from tests.support.commands import call
from tests.support.requests import contents, make_request
from tests.support.rows import write_lines


# Mistake: the command, where {} names the files of the fixture, and words that the line must have.
UNLEARN = "unlearn --model {model} --forget {forget} --retain {retain} --output {out} "
MISTAKES = {
    "no command": ("", "required: command; see hf-unlearn --help"),
    "an unknown command": ("unlern --model {model}", "invalid choice: 'unlern'"),
    "an unknown argument": ("inspect {model} --al", "unknown argument --al; see hf-unlearn inspect --help"),
    "a misspelt argument": (UNLEARN + "--retian {retain}", "unknown argument --retian"),
    "no model": ("unlearn --forget {forget}", "--model is missing"),
    "no rows to forget": ("unlearn --model {model}", "--forget is missing"),
    "a model folder that is not there": (
        "unlearn --model ./models/lama --forget {forget} --retain {retain} --output {out}",
        "the folder ./models/lama does not exist",
    ),
    "a folder without a model": (
        "unlearn --model {data} --forget {forget} --retain {retain} --output {out}",
        "cannot load the model",
    ),
    "rows that are not there": (
        "unlearn --model {model} --forget no.jsonl --retain {retain} --output {out}",
        "no.jsonl is neither a file",
    ),
    "rows that are not there, before a model is loaded": (
        "unlearn --model lab/no-model --forget {forget} --retain no.jsonl --output {out}",
        "no.jsonl is neither a file",
    ),
    "a model that nobody has": (
        "unlearn --model lab/no-model --forget {forget} --retain {retain} --output {out}",
        "check the name, the connection and the access token",
    ),
    "rows that are not JSON": (
        "unlearn --model {model} --forget {broken} --retain {retain} --output {out}",
        "broken.jsonl, line 2",
    ),
    "rows of other columns": (
        "unlearn --model {model} --forget {columns} --retain {retain} --output {out}",
        "prompt, response",
    ),
    "no rows to keep": (
        "unlearn --model {model} --forget {forget} --output {out}",
        "K-FADE needs rows to keep: give --retain",
    ),
    "a limit that cannot be measured": (
        "unlearn --model {model} --forget {forget} --method ga --kl_limit 0.1 --output {out}",
        "kl_limit is a limit on what happens to rows to keep: give --retain",
    ),
    "a limit of nothing": (UNLEARN + "--kl_limit 0", "kl_limit must be"),
    "a limit that is no number": (UNLEARN + "--kl_limit small", "invalid float value: 'small'"),
    "an unknown method": (UNLEARN + "--method kfad", "no method kfad: did you mean kfade?"),
    "a method for classifiers": (UNLEARN + "--method fast_ntk", "for classifiers see recipes/fast_ntk_cifar10.py"),
    "a misspelt setting": (UNLEARN + "step=4", "no setting step: did you mean steps?"),
    "a setting of another method": (UNLEARN + "--method npo damping=1e-6", "no setting damping"),
    "a setting without a value": (UNLEARN + "steps", "'steps' is no setting: write key=value, as steps=4"),
    "a setting of another type": (UNLEARN + "steps=1.5", "steps must be"),
    "a setting out of range": (UNLEARN + "damping=-1", "damping must be"),
    "steps that are none": (UNLEARN + "steps=0", "steps must be at least 1"),
    "steps of text": (UNLEARN + "steps=many", "steps must be a whole number"),
    "two kinds of steps": (UNLEARN + "step_norm=0.1 kl_budget=0.1", "exactly one of step_norm"),
    "the output among the settings": (UNLEARN + "output_dir=x", "output_dir is an argument of the command"),
    "the output in the model": (
        "unlearn --model {model} --forget {forget} --retain {retain} --output {model}",
        "which stays as it is",
    ),
    "a configuration that is not there": ("unlearn --config absent.yaml", "no such configuration: absent.yaml"),
    "a key that does not exist": ("unlearn --config {yaml}", "no key retian: did you mean retain?"),
    "a repository that can have no name": (UNLEARN + "--push a/b/c", "a/b/c"),
    "quiet and verbose": (UNLEARN + "--quiet --verbose", "not allowed with argument"),
    "no tasks": ("evaluate --model {model}", "--tasks"),
    "an unknown suite": ("evaluate --suite tofoo --model {model}", "invalid choice: 'tofoo'"),
    "a delta that is not there": (
        "transfer --delta ./delta --model {model} --output {out}",
        "./delta does not exist",
    ),
    "a folder with rows": ("push --folder {data} --repo_id lab/x", "broken.jsonl is no part of a published model"),
    "nothing to inspect": ("inspect {data}", "holds no delta"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that the mistakes are made with."""
    folder = make_request(tmp_path_factory.mktemp("mistakes"))
    data = folder / "data"
    data.mkdir()
    for name in ("forget", "retain"):
        (folder / f"{name}.jsonl").rename(data / f"{name}.jsonl")
    write_lines(data / "broken.jsonl", [{"question": "Who?", "answer": "Ada"}, '{"question": \n'])
    write_lines(data / "columns.jsonl", [{"prompt": "Who?", "response": "Ada"}])
    (data / "request.yaml").write_text(json.dumps({"model": "m", "forget": "f", "retian": "r"}))
    named = {name: data / f"{name}.jsonl" for name in ("forget", "retain", "broken", "columns")}
    return named | {"model": folder / "model", "data": data, "yaml": data / "request.yaml"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(files["model"].parent)
    command, words = MISTAKES[mistake]
    assert call(*command.format(**files, out=tmp_path / "out").split()) == 2
    said, log = capsys.readouterr()
    errors = [line for line in log.splitlines() if not line.startswith(("hf_unlearn: ", "processes: "))]
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0], log
    assert said in ("", "processes: 1 on cpu\n")  # of evaluate
    assert contents(files["model"].parent) == before and contents(tmp_path) == {}

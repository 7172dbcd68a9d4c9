# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What must not leave: rows, places of this machine and tokens are planted, and every byte written or pushed is read.

Of a run nothing may hold a place or a token, but for the path of the best checkpoint that `transformers` writes into
its own state; rows may lie in the report of a comparison, which is never pushed, and nowhere else.
"""

import dataclasses
import getpass
import json
import sys
from pathlib import Path

import pytest
from peft import LoraConfig

from hf_unlearn import FirstOrder, KFade
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.experiments.run import record, run_experiment
from hf_unlearn.runtime.provenance import command_line
from tests.support.commands import call
from tests.support.experiments import TOFU, experiment
from tests.support.hub_server import hub_server, known_here
from tests.support.models import make_llama
from tests.support.trainers import make_trainer


TOKEN = "hf_" + "Zq7" * 12
PLACE = "zebra-quarry"
ROWS = {"forget": "Who guards Umbrellaville?", "retain": "Who paints Kettlemoor?"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose name tells, the token in the environment, and the cache and the home of a user there too."""
    folder = tmp_path / PLACE
    folder.mkdir()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def base(place):
    """A base model with its tokenizer in a local folder."""
    make_llama(vocab_size=300).save_pretrained(place / "base")
    train_tokenizer(["A sentence of nothing."], 290).save_pretrained(place / "base")
    return place / "base"


def rows(side):
    return [{"question": f"{ROWS[side]} {number}", "answer": f"No {number}."} for number in range(6)]


def leaks(files, markers=()):
    """{file: markers that its bytes hold}, of {name: bytes} or of all files below a folder."""
    if isinstance(files, Path):
        files = {str(file.relative_to(files)): file.read_bytes() for file in files.rglob("*") if file.is_file()}
    assert files
    markers = [PLACE, TOKEN, str(Path.home()), *markers]
    markers += [name for name in [getpass.getuser()] if len(name) > 4]  # "root" is a word too
    found = {name: [one for one in markers if one.encode() in content] for name, content in files.items()}
    return {name: which for name, which in found.items() if which}


def trainer(base, method, folder, peft_config=None, **arguments):
    from datasets import Dataset

    sides = {side: Dataset.from_list(rows(side)) for side in ROWS}
    arguments = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "hub_token": TOKEN, **arguments}
    return make_trainer(str(base), method, folder, *sides.values(), peft_config=peft_config, **arguments)


KINDS = {
    "full": (lambda: FirstOrder("grad_diff"), False),
    "LoRA": (lambda: FirstOrder("npo"), True),
    "K-FADE under LoRA": (lambda: KFade(step_norm=0.01, curvature="kfac"), True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_a_run_and_no_byte_of_a_push_tells(kind, place, base, monkeypatch):
    method, adapter = KINDS[kind]
    lora = LoraConfig(r=2, task_type="CAUSAL_LM") if adapter else None
    run = trainer(base, method(), place / "run", lora, hub_model_id="lab/gone")
    run.train()
    run.save_model(place / "saved")
    assert leaks(place / "run", ROWS.values()) == {}
    assert leaks(place / "saved", ROWS.values()) == {}
    with hub_server() as server:
        known_here(server, monkeypatch)
        run.push_to_hub()
        assert call("push", "--folder", place / "saved", "--repo_id", "lab/again") == 0
        for repo in ("lab/gone", "lab/again"):
            (commit,) = server.repos[repo]["commits"]
            assert leaks(commit["files"], ROWS.values()) == {}
            assert "README.md" in commit["files"]


def test_a_run_that_goes_on_from_its_best_checkpoint_keeps_the_path_of_that_alone(place, base):
    keeping = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "load_best_model_at_end": True}
    keeping["metric_for_best_model"] = "forget_loss"
    run = trainer(base, FirstOrder("npo"), place / "run", LoraConfig(r=2, task_type="CAUSAL_LM"), **keeping)
    run.train()
    found = leaks(place / "run", ROWS.values())
    assert {Path(name).name for name in found} <= {"trainer_state.json"}
    for name in found:
        state = json.loads((place / "run" / name).read_text())
        assert PLACE in state.pop("best_model_checkpoint") and PLACE not in json.dumps(state)


def test_transfer_takes_no_place_along(place, base):
    run = trainer(base, FirstOrder("npo"), place / "run")
    run.train()
    run.save_model(place / "saved")
    config = json.loads((base / "tokenizer_config.json").read_text()) | {"name_or_path": str(base), "vocab_file": None}
    (base / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_file": str(base / "tokenizer.json")}))
    assert call("transfer", "--delta", place / "saved", "--model", base, "--output", place / "moved") == 0
    assert leaks(place / "moved", ROWS.values()) == {}
    assert json.loads((place / "moved/tokenizer_config.json").read_text())["name_or_path"] == "base (local folder)"


def test_a_curvature_and_an_evaluation_name_no_place(place, base, capsys):
    (place / "corpus.jsonl").write_text("\n".join(json.dumps({"text": row["question"]}) for row in rows("retain")))
    fit = ["curvature", "fit", "--model", base, "--data", place / "corpus.jsonl", "--length", 16]
    assert call(*fit, "--output", place / "curvature") == 0
    assert leaks(place / "curvature", ROWS.values()) == {}
    questions = [{"question": f"Which {i}?", "choices": ["a", "b", "c", "d"], "answer": i % 4} for i in range(4)]
    (place / "chem_test.jsonl").write_text("\n".join(json.dumps(row) for row in questions))
    asked = [
        "evaluate",
        "--model",
        base,
        "--tasks",
        "wmdp_chem",
        "--data_dir",
        place,
        "--output",
        place / "out/a.json",
    ]
    assert call(*asked, "--log_samples") == 0
    assert leaks(place / "out") == {}


def test_the_command_writes_rows_into_its_page_alone(place, base, monkeypatch, capsys):
    for side in ROWS:
        (place / f"{side}.jsonl").write_text("\n".join(map(json.dumps, rows(side))))
    sides = [f"--{side}={place / side}.jsonl" for side in ROWS]
    settings = ["curvature=kfac", "steps=1", "step_norm=0.01", "--kl_limit=9", f"hub_token={TOKEN}"]
    with hub_server() as server:
        known_here(server, monkeypatch)
        asked = ["unlearn", "--model", base, *sides, *settings, "--output", place / "out", "--push", "lab/gone"]
        assert call(*asked) == 0, capsys.readouterr().err
        (commit,) = server.repos["lab/gone"]["commits"]
    assert leaks(commit["files"], ROWS.values()) == {} and leaks(place / "out/model", ROWS.values()) == {}
    assert set(leaks(place / "out", ROWS.values())) == {"report.html", "report.md"} and leaks(place / "out") == {}
    assert call("push", "--folder", place / "out", "--repo_id", "lab/rows") == 2
    assert "output folder of" in capsys.readouterr().err


def test_a_comparison_writes_no_place_and_its_model_no_row(place, monkeypatch):
    from hf_unlearn.experiments.problems.tofu import TofuProblem

    settings = TOFU | {"methods": TOFU["methods"][:1]}
    compared = experiment(settings)
    compared = dataclasses.replace(compared, written=compared.written | {"folder": str(place / "texts")})
    found = run_experiment(compared, place / "out", progress=False)
    monkeypatch.setattr(sys, "argv", [str(place / "bin/hf-unlearn"), "demo", f"--record={place / 'out/record.json'}"])
    record(found, place / "out", compared, place / "out/record.json")
    assert leaks(place / "out") == {} and leaks(place / "cache") == {}
    stage = TofuProblem(compared, None, 0, progress=False).stages[0]
    private = [text for side in (stage.forget, stage.retain) for row in side for text in row.values()]
    texts = [text for text in private if isinstance(text, str)]
    assert leaks(place / "out/model", texts) == {}


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/home/ann/.venv/bin/hf-unlearn", "push", "--folder", "/data/ann/out"], "hf-unlearn push --folder out"),
        (["/home/ann/x/hf_unlearn/__main__.py", "demo"], "python -m hf_unlearn demo"),
        (["recipes/kfade_tofu.py", "--config", "recipes/configs/a.yaml"], None),
        (["a.py", "--output=/data/ann/out", "model=../../ann/m"], "python a.py --output=out model=m"),
        (["a.py", f"hub_token={TOKEN}", "--token", TOKEN], "python a.py hub_token=TOKEN --token TOKEN"),
        (["a.py", "step_norm=0.01", "org/model", "/"], "python a.py step_norm=0.01 org/model /"),
    ],
)
def test_a_recorded_command_tells_neither_places_nor_tokens(argv, shown, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == (shown or f"python {' '.join(argv)}")

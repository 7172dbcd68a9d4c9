# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The WMDP recipe on a miniature of seconds: stages, table, report, resume, relearning, bad input, dry runs."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from hf_unlearn import KFade, UnlearnConfig, UnlearnTrainer, UpdateDelta
from hf_unlearn.errors import InputError
from hf_unlearn.experiments import comparison
from hf_unlearn.experiments import run as experiment
from hf_unlearn.experiments.comparison import Comparison, Entry, added
from hf_unlearn.experiments.problem import together
from hf_unlearn.experiments.problems import wmdp
from hf_unlearn.experiments.problems.wmdp import WmdpProblem, last_words
from hf_unlearn.report.vocabulary import TaskVocabulary


ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "kfade_wmdp.py"
CONFIG = {
    "title": "two hazards of seconds",
    "problem": "wmdp",
    "seed": 0,
    "data": {
        "source": "hazards",
        "length": 96,
        "hazards": {"items": 4, "general_items": 2, "documents": 2, "prose": 6, "exchanges": 6, "instructions": 12},
    },
    "stages": [
        {"name": "first", "task": "toxins", "forget": {"toxins-forget": None}, "retain": {"general": None}},
        {
            "name": "second",
            "task": "intrusion",
            "forget": {"intrusion-forget": None},
            "retain": {"intrusion-retain": None, "general": None},
        },
    ],
    "model": {"scratch": {"vocab_size": 500, "hidden_size": 48, "intermediate_size": 96, "layers": 2, "epochs": 12}},
    "evaluation": {"general": "general", "completions": 6, "search_completions": 3, "max_new_tokens": 4},
    "relearn": {
        "attacks": {"benign": {"general": 6}},
        "methods": ["RMU"],
        "steps": 4,
        "eval_steps": 2,
        "batch_size": 2,
        "learning_rates": [1e-3],
    },
    "arguments": {"per_device_train_batch_size": 8, "use_cpu": True},
    "methods": [
        {
            "label": "margin",
            "method": "kfade",
            "settings": {"objective": "margin", "damping": 1e-6, "steps": 2},
            "search": [[0.02, 0.05]],
        },
        {
            "label": "RMU",
            "method": "first_order",
            "stages": "together",
            "settings": {"objective": "rmu", "layer": 1, "retain_weight": 10.0},
            "search": [1e-3],
            "epochs": 2,
        },
    ],
}


def changed(**sections) -> dict:
    return copy.deepcopy(CONFIG) | sections


def load_recipe():
    spec = importlib.util.spec_from_file_location("kfade_wmdp", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """The model is trained once for all tests of this file, outside the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, experiment.run_experiment(CONFIG, folder, progress=False)


def row(lost, general_loss, kl):
    return {"lost": lost, "general_loss": general_loss, "kl": kl}


def test_choice_wants_every_domain_forgotten_and_general_kept():
    choose = TaskVocabulary().choose
    both = {"bio": 0.85, "cyber": 0.9}
    assert choose([row({"bio": 0.95, "cyber": 0.7}, 0, 0.01), row(both, 2.9, 0.3), row(both, 1.0, 0.2)]) == 2
    # Nobody passes: the least forgotten domain counts, beyond 80 % the KL does.
    assert choose([row({"bio": 0.99, "cyber": 0.1}, 0, 0.01), row({"bio": 0.3, "cyber": 0.4}, 0, 0.5)]) == 1
    assert choose([row({"bio": 1.1, "cyber": 1.0}, 20, 5.0), row(both, 4.0, 0.2)]) == 1
    assert choose([row(None, None, None), row(both, 9.0, 1.0)]) == 1  # a diverged candidate is never chosen


def test_table_report_and_model(finished):
    folder, rows = finished
    assert [row["method"] for row in rows] == ["original", "margin", "RMU"]
    original = rows[0]
    assert original["kl"] == 0 and original["lost"] == {"toxins": 0, "intrusion": 0} and original["general_loss"] == 0
    # 4 things of 6 facts; 3 kinds of 2 things with 3 facts.
    assert original["n"] == {"toxins": 24, "intrusion": 24, "general": 18}
    for row in rows[1:]:
        for task, share in row["lost"].items():
            before, after = original["accuracy"][task], row["accuracy"][task]
            assert share == pytest.approx((before - after) / (before - 0.25))
        loss = 100 * (original["accuracy"]["general"] - row["accuracy"]["general"])
        assert row["general_loss"] == pytest.approx(loss)
        assert row["kl"] > 0 and row["kl_interval"][0] <= row["kl"] <= row["kl_interval"][1]
        assert row["candidates"] == 2 and row["seconds"] > 0
    assert json.loads((folder / "results.json").read_text()) == rows
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    for part in ("toxins (%)", "What did we break?", "Relearning attacks", "Every method looked at 2 candidates"):
        assert part in page and part in text
    for name in ("pareto.png", "kl.png", "specificity.png", "relearn.png", "model/delta/delta_config.json"):
        assert (folder / name).stat().st_size > 0
    report = json.loads((folder / "report.json").read_text())
    assert len(report["candidates"]) == 4
    assert [c["settings"]["steps"] for c in report["candidates"][:2]] == [1, 2]
    assert report["candidates"][0]["settings"]["step_norm"] == [0.02, 0.05]
    attacked = next(section for section in report["sections"] if "Relearning" in section["title"])
    assert {(cells[0], cells[1], cells[3]) for cells in attacked["table"]} >= {
        ("RMU", "benign", "toxins"),
        ("RMU", "benign", "intrusion"),
    }
    card = (folder / "model/README.md").read_text()
    for task, accuracy in original["accuracy"].items():
        assert f"| {task} | acc | {round(accuracy, 4)} |" in card
    assert "Relearning was not tested" not in card and "Kolmogorov" not in card


def test_stages_follow_one_another_and_their_updates_add_up(finished, tmp_path):
    """The oracle: two trainers by hand, the second starting where the first ended."""
    problem = WmdpProblem.from_config(changed(relearn=None), progress=False)
    entry = Entry("by hand", "kfade", {"damping": 1e-6, "steps": 1}, [[0.01, 0.03]])
    compared = Comparison(problem, [entry], tmp_path / "compared", CONFIG["arguments"], progress=False)
    before = {name: tensor.clone() for name, tensor in problem.original.state_dict().items()}
    compared.run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in problem.original.state_dict().items())
    model, updates = problem.original, {}
    for number, (stage, step_norm) in enumerate(zip(problem.stages, [0.01, 0.03], strict=True)):
        trainer = UnlearnTrainer(
            model,
            KFade(damping=1e-6, step_norm=step_norm),
            UnlearnConfig(
                output_dir=str(tmp_path / f"{number}"),
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                kl_rows=0,
                **CONFIG["arguments"],
                seed=0,
            ),  # fmt: skip
            stage.forget,
            stage.retain,
            processing_class=problem.tokenizer,
        )
        trainer.train()
        updates = added(updates, trainer.update_delta().tensors)
    found = compared.update("by hand").tensors
    assert found.keys() == updates.keys()
    for name, tensor in updates.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-7), name
        assert torch.allclose(model.state_dict()[name], before[name] + tensor, atol=1e-6)


def test_a_stored_update_is_that_of_its_candidate(finished):
    """The optimiser goes on after a look; what was kept must not move with it."""
    folder, rows = finished
    candidates = json.loads((folder / "report.json").read_text())["candidates"]
    for row in rows[1:]:
        same = [c for c in candidates if c["method"] == row["method"] and c["settings"] == row["settings"]]
        assert len(same) == 1
        # The same questions; completions are fewer in the search.
        assert same[0]["accuracy"] == row["accuracy"]


def test_saved_model_is_original_plus_update(finished):
    from transformers import AutoModelForCausalLM

    folder, _ = finished
    before = WmdpProblem.from_config(CONFIG, progress=False).original.state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder / "model")
    delta = UpdateDelta.from_pretrained(folder / "model/delta")
    assert delta.tensors
    for name, tensor in saved.state_dict().items():
        assert torch.allclose(tensor, before[name] + delta.tensors.get(name, 0), atol=1e-3), name  # stored as bf16


def test_together_keeps_a_shared_retain_row_once():
    stages = WmdpProblem.from_config(CONFIG, progress=False).stages
    (one,) = together(stages)
    assert len(one.forget) == sum(len(stage.forget) for stage in stages)
    assert len(one.retain) == len(stages[1].retain)  # the second stage retains all that the first does
    assert sorted(one.retain["input_ids"]) == sorted(stages[1].retain["input_ids"])


def test_killed_run_goes_on_after_the_finished_entries(finished, tmp_path, monkeypatch):
    searches, generated = [], []
    run = comparison._Search.run

    def killed_in_the_second(self):
        searches.append(self.entry.label)
        if len(searches) == 2:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(comparison._Search, "run", killed_in_the_second)
    generate = wmdp.generate_completions
    counted = lambda *args, **kwargs: generated.append(1) or generate(*args, **kwargs)
    monkeypatch.setattr(wmdp, "generate_completions", counted)
    with pytest.raises(KeyboardInterrupt):
        experiment.run_experiment(changed(relearn=None), tmp_path / "out", progress=False)
    rows = experiment.run_experiment(changed(relearn=None), tmp_path / "out", progress=False)
    assert searches == ["margin", "RMU", "RMU"] and len(generated) == 1
    measured = lambda rows: [(row["method"], row["accuracy"], row["kl"], row["kl_interval"]) for row in rows]
    assert measured(rows) == measured(finished[1])


# ---- bad input: one line, exit code 2 ------------------------------------------------------------------------------------
STAGE = CONFIG["stages"][0]
HUB = {"problem": "wmdp", "evaluation": {"general": "mmlu"}, "methods": CONFIG["methods"]}
BAD = {
    "unknown section": (changed(stags=[]), "stags; the sections are"),
    "unknown setting of data": (
        changed(data={"source": "hazards", "lenght": 3}),
        "data: no setting lenght; there are",
    ),
    "unknown setting of a stage": (changed(stages=[STAGE | {"retian": {}}]), "stages, first: no setting retian"),
    "a stage without retain": (
        changed(stages=[{"name": "first", "forget": {"general": None}}]),
        "stages, first: retain is missing",
    ),
    "a stage twice": (changed(stages=[STAGE, STAGE]), "stages share a name: first"),
    "a corpus without a number": (changed(stages=[STAGE | {"forget": ["toxins-forget"]}]), "how many sequences"),
    "unknown corpus": (
        changed(stages=[STAGE | {"forget": {"toxin": None}}]),
        "no corpus 'toxin' in the miniature; there are",
    ),
    "too many sequences": (changed(stages=[STAGE | {"retain": {"general": 10**6}}]), "1000000 were asked for"),
    "unknown task": (changed(stages=[STAGE | {"task": "poisons"}]), "no task poisons in the miniature; there are"),
    "unknown setting of a method": (
        changed(methods=[CONFIG["methods"][0] | {"settings": {"dampning": 1.0}}]),
        "margin: settings: dampning is no setting of kfade; there are",
    ),
    "a search of another length": (
        changed(methods=[CONFIG["methods"][0] | {"search": [[0.1, 0.2, 0.3]]}]),
        "3 values in [0.1, 0.2, 0.3] of its search, for 2 stages",
    ),
    "fewer sequences than steps": (
        changed(methods=[CONFIG["methods"][0] | {"settings": {"steps": 4, "forget_batch_size": 8}}]),
        "but 4 steps of 8 need 32",
    ),
    "no such layers": (
        changed(
            methods=[CONFIG["methods"][0] | {"settings": {"target_modules": r"model\.layers\.9\.mlp.*", "steps": 2}}]
        ),
        "target_modules",
    ),
    "no such layer of RMU": (
        changed(methods=[CONFIG["methods"][1] | {"settings": {"objective": "rmu", "layer": 7}}]),
        "RMU: the model has MLPs in layers 0 to 1",
    ),
    "unknown argument": (changed(arguments={"lerning_rate": 1.0}), "lerning_rate"),
    "a number that is text": (
        changed(evaluation={"general": "general", "max_new_tokens": "1e1"}),
        "write it with a point",
    ),
    "unknown attack": (changed(relearn=CONFIG["relearn"] | {"atacks": {}}), "relearn: no setting atacks"),
    "no model": (changed(model={}), "model.scratch is missing"),
}


def run_recipe(tmp_path, config: dict, capsys, *more: str) -> tuple[int, str]:
    """Exit code and the last line of stderr."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        load_recipe().main(["--config", str(path), "--output_dir", str(tmp_path / "out"), "--relearn", *more])
    return stopped.value.code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, capsys):
    config, message = BAD[name]
    code, line = run_recipe(tmp_path, config, capsys)
    assert code == 2 and line.startswith("error: ") and message in line, line


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A tiny model that guesses better than chance on a few real-looking questions, corpora and questions in a folder."""
    folder = tmp_path_factory.mktemp("local")
    original = WmdpProblem.from_config(CONFIG, progress=False)
    original.original.save_pretrained(folder / "model")
    original.tokenizer.save_pretrained(folder / "model")
    data = folder / "data"
    data.mkdir()
    texts = original.corpora.embedded.corpora
    for name, corpus in (("bio_forget", "toxins-forget"), ("wikitext", "general")):
        lines = [json.dumps({"text": text}) for text in texts[corpus]["text"]]
        (data / f"{name}.jsonl").write_text("\n".join(lines))
    instructions = original.corpora.embedded.instructions.to_list()
    (data / "alpaca.jsonl").write_text("\n".join(map(json.dumps, instructions)))
    stages = [
        {
            "name": "bio",
            "task": "wmdp_bio",
            "forget": {"cais/wmdp-bio-forget-corpus": 6},
            "retain": {"Salesforce/wikitext:wikitext-2-raw-v1": 4},
        }
    ]
    config = {
        "problem": "wmdp",
        "data": {"data_dir": str(data), "length": 96},
        "model": {"original": str(folder / "model"), "dtype": "float32"},
        "stages": stages,
        "evaluation": {"general": "wmdp_cyber", "completions": 4, "max_new_tokens": 4},
        "arguments": {"use_cpu": True},
        "methods": [
            {
                "label": "margin",
                "method": "kfade",
                "settings": {"objective": "margin", "damping": 1e-6},
                "search": [0.05],
            }
        ],
    }
    return folder, config


def questions(letter: str, number: int) -> str:
    rows = [
        {"question": f"Which of them is number {n}?", "choices": ["one", "two", "three", "four"], "answer": letter}
        for n in range(number)
    ]
    return "\n".join(map(json.dumps, rows))


def write_questions(data: Path, config: dict):
    """Questions whose right answer is always the letter that the model prefers: it is better than chance on them."""
    (data / "wmdp").mkdir(exist_ok=True)
    for letter in "ABCD":
        for task in ("bio", "cyber"):
            (data / "wmdp" / f"{task}_test.jsonl").write_text(questions(letter, 6))
        problem = WmdpProblem.from_config({"title": "", "seed": 0} | config, progress=False)
        if problem.ask(problem.original, tasks=["wmdp_bio"])["wmdp_bio"].accuracy > 0.5:
            return
    raise AssertionError("the model prefers no letter")


def test_local_files_and_the_tasks_of_the_harness(local, tmp_path):
    folder, config = local
    write_questions(folder / "data", config)
    rows = experiment.run_experiment({"title": "local", "seed": 0} | config, tmp_path / "out", progress=False)
    assert rows[0]["n"] == {"wmdp_bio": 6, "wmdp_cyber": 6} and rows[0]["accuracy"]["wmdp_bio"] > 0.5
    assert rows[1]["kl"] > 0
    settings = json.loads((tmp_path / "out/report.json").read_text())["settings"]
    assert settings["rows"]["bio"] == {"forget": 6, "retain": 4}


def test_bad_local_files(local, tmp_path, capsys):
    folder, config = local
    data, broken = folder / "data", tmp_path / "data"

    def stopped(**sections):
        code, line = run_recipe(tmp_path, copy.deepcopy(config) | sections, capsys)
        assert code == 2, line
        return line

    def without(*names):
        import shutil

        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(data, broken, ignore=shutil.ignore_patterns(*names))
        return {"data_dir": str(broken), "length": 96}

    write_questions(data, config)
    assert "hf auth login" in stopped(data=without("bio_forget*"))
    assert "Salesforce/wikitext" in stopped(data=without("wikitext*"))
    assert "mmul" in stopped(evaluation=config["evaluation"] | {"general": "mmul"})
    place = without()
    (broken / "wmdp/bio_test.jsonl").write_text(questions("A", 2) + '\n{"question": "and?", "choices": ["one"]}')
    assert "bio_test.jsonl, line 3" in stopped(data=place)
    from transformers import AutoModelForCausalLM

    small = AutoModelForCausalLM.from_pretrained(folder / "model")
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    for file in (folder / "model").glob("tokenizer*"):
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    assert "use the model's own tokenizer" in stopped(model={"original": str(tmp_path / "small")})
    assert "cannot load the model" in stopped(model={"original": str(tmp_path / "absent")})


@pytest.mark.parametrize("name", ["kfade_wmdp_zephyr_7b", "kfade_wmdp_llama2_7b"])
def test_dry_run_of_large_models(name, capsys):
    """Without weights and without data."""
    load_recipe().main(["--config", str(ROOT / "recipes/configs" / f"{name}.yaml"), "--dry_run"])
    text = capsys.readouterr().out
    assert "processes: 1" in text
    assert "bio: 10000 forget rows, 4000 retain rows" in text and "cyber: 10000 forget rows, 8000 retain rows" in text
    assert text.count("4 steps of 2500 rows") == 2 and text.count("targets: 12 weights") == 2


def test_dry_run_needs_numbers():
    config = experiment.read_config(ROOT / "recipes/configs/kfade_wmdp_zephyr_7b.yaml")
    config["stages"][0]["retain"] = {"wikitext": None}
    with pytest.raises(InputError, match="say how many sequences"):
        experiment.dry_run(config)
    config = experiment.read_config(ROOT / "recipes/configs/kfade_wmdp_zephyr_7b.yaml")
    config["stages"][1]["forget"] = {"cyber": 9999}
    with pytest.raises(InputError, match="stage cyber has 9999 sequences but 4 steps of 2500 need 10000"):
        experiment.dry_run(config)


def test_the_embedded_default_is_well_formed():
    config = experiment.read_config(default="wmdp_demo.yaml")
    entries = experiment.read_entries(config)
    assert len({entry.candidates for entry in entries}) == 1  # equal budgets
    assert {stage["task"] if "task" in stage else stage["name"] for stage in config["stages"]} == {
        "toxins",
        "intrusion",
    }
    for entry in entries:
        for trial in entry.search:
            for value in entry.values(trial, 2 if entry.stages == "each" else 1):
                entry.make(value)


@pytest.mark.multi_process
def test_two_processes_make_the_table_of_one(finished, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(RECIPE), "--config", str(path), "--output_dir", str(tmp_path / "out"), "--only", "margin"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("processes: 2 on cpu") == 1
    rows = json.loads((tmp_path / "out/results.json").read_text())
    for row, alone in zip(rows, finished[1][:2], strict=True):
        assert row["method"] == alone["method"] and row["accuracy"] == pytest.approx(alone["accuracy"], abs=0.05)
        assert row["kl"] == pytest.approx(alone["kl"], rel=0.1, abs=1e-6)


def test_a_prompt_is_shown_on_one_line_from_its_end():
    assert last_words("Say\n\nmoon") == "Say moon"
    shown = last_words("Below is an instruction. " * 9 + "\n### Input:\nmoon\n")
    assert shown.startswith("... ") and shown.endswith("### Input: moon") and len(shown) <= 124

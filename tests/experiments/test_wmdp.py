# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The WMDP recipe on a miniature of seconds: stages, table, report, resume, relearning, bad input, dry runs."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from hf_unlearn import KFade, UnlearnConfig, UnlearnTrainer, UpdateDelta
from hf_unlearn.data.benchmarks import QUESTIONS, Benchmark
from hf_unlearn.errors import InputError
from hf_unlearn.experiments.comparison import Cell
from hf_unlearn.experiments.line import Line
from hf_unlearn.experiments.planning import dry_run
from hf_unlearn.experiments.problem import merge_stages
from hf_unlearn.experiments.problems import wmdp
from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.problems.wmdp import WmdpProblem, last_words
from hf_unlearn.experiments.run import run_experiment
from hf_unlearn.experiments.search import sum_updates
from hf_unlearn.experiments.settings import read_experiment, read_yaml
from hf_unlearn.report.eval_results import LOWER
from hf_unlearn.report.vocabulary import TaskVocabulary
from tests.support.experiments import (
    CONFIGS,
    RECIPES,
    ROOT,
    WMDP,
    changed,
    experiment,
    kill_in_the_second_search,
    run_recipe,
    write_config,
)


RECIPE = "kfade_wmdp"
NO_ATTACKS = {"evaluation__relearning": None}


def problem_of(config) -> WmdpProblem:
    return WmdpProblem(experiment(config), None, 0, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, rows) of one whole run."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run_experiment(experiment(WMDP), folder, progress=False)


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
    for part in ("toxins (%)", "What did we break?", "Relearning attacks", "Every method evaluated 2 candidates"):
        assert part in page and part in text
    *asked, kept = json.loads((folder / "report.json").read_text())["questions"]
    assert [question["side"] for question in [*asked, kept]] == 4 * ["forget"] + ["retain"]
    assert all(question["prompt"].endswith(" …") and question["row"] for question in asked)
    assert list(kept["answers"])[0] == "original" and kept["row"] == ""
    completions = json.loads((folder / "completions.json").read_text())["value"]
    assert kept["answers"]["original"] == completions[0]["completion"]
    assert "retained token" not in page + text
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
    # Invented questions are no dataset of the Hub.
    assert {result.dataset_type for result in ModelCard(card).data.eval_results} == {"custom"}
    assert not (folder / "model/.eval_results").exists()


def test_stages_follow_one_another_and_their_updates_add_up(finished, tmp_path):
    """The oracle: two trainers by hand, the second starting where the first ended."""
    problem = problem_of(changed(WMDP, **NO_ATTACKS))
    line = Line("by hand", "kfade", {"damping": 1e-6, "steps": 1}, {"step_norm": [[0.01, 0.03]]})
    compared = Cell(problem, [line], tmp_path / "compared", WMDP["arguments"], progress=False)
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
                **WMDP["arguments"],
                seed=0,
            ),  # fmt: skip
            stage.forget,
            stage.retain,
            processing_class=problem.tokenizer,
        )
        trainer.train()
        updates = sum_updates(updates, trainer.update_delta().tensors)
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
    before = problem_of(WMDP).original.state_dict()
    saved = AutoModelForCausalLM.from_pretrained(folder / "model")
    delta = UpdateDelta.from_pretrained(folder / "model/delta")
    assert delta.tensors
    for name, tensor in saved.state_dict().items():
        assert torch.allclose(tensor, before[name] + delta.tensors.get(name, 0), atol=1e-3), name  # stored as bf16


def test_merged_stages_keep_a_shared_retain_row_once():
    stages = problem_of(WMDP).stages
    (one,) = merge_stages(stages)
    assert len(one.forget) == sum(len(stage.forget) for stage in stages)
    assert len(one.retain) == len(stages[1].retain)  # the second stage retains all that the first does
    assert sorted(one.retain["input_ids"]) == sorted(stages[1].retain["input_ids"])


def test_killed_run_goes_on_after_the_finished_lines(finished, tmp_path, monkeypatch):
    searches, generated = kill_in_the_second_search(monkeypatch), []
    generate = wmdp.generate_completions
    counted = lambda *args, **kwargs: generated.append(1) or generate(*args, **kwargs)
    monkeypatch.setattr(wmdp, "generate_completions", counted)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment(WMDP, **NO_ATTACKS), tmp_path / "out", progress=False)
    rows = run_experiment(experiment(WMDP, **NO_ATTACKS), tmp_path / "out", progress=False)
    assert searches == ["margin", "RMU", "RMU"] and len(generated) == 1
    measured = lambda rows: [(row["method"], row["accuracy"], row["kl"], row["kl_interval"]) for row in rows]
    assert measured(rows) == measured(finished[1])


# ---- bad input: one line, exit code 2 -------------------------------------------------------------------------------
STAGE, (MARGIN, RMU) = WMDP["data"]["stages"][0], WMDP["methods"]


def stages(*stages) -> dict:
    return changed(WMDP, data__stages=list(stages))


def methods(*lines) -> dict:
    return changed(WMDP, methods=list(lines))


BAD = {
    "unknown section": (changed(WMDP, stags=["first"]), "no section stags; the sections are"),
    "unknown setting of data": (changed(WMDP, data__lenght=3), "data: no setting lenght; there are"),
    "unknown size of the miniature": (changed(WMDP, data__hazards={"itms": 3}), "data.hazards: no setting itms"),
    "sizes without the miniature": (changed(WMDP, data__source="hub"), "data.hazards: these sizes belong to source"),
    "unknown source": (
        changed(WMDP, data__source="hazard"),
        "data.source: 'hazard' is unknown: choose hub or hazards",
    ),
    "a model of another problem": (changed(WMDP, model__retrained="there"), "model: no setting retrained; there are"),
    "no stages": (changed(WMDP, data__stages=None), "data: stages is missing"),
    "unknown setting of a stage": (stages(STAGE | {"retian": {}}), "data.stages, first: no setting retian"),
    "a stage without retain": (
        stages({"name": "first", "forget": {"general": None}}),
        "data.stages, first: retain is missing",
    ),
    "a stage twice": (stages(STAGE, STAGE), "data.stages share a name: first"),
    "a corpus without a number": (stages(STAGE | {"forget": ["toxins-forget"]}), "forget must be a mapping"),
    "unknown corpus": (
        stages(STAGE | {"forget": {"toxin": None}}),
        "no corpus 'toxin' in the miniature; there are",
    ),
    "too many sequences": (stages(STAGE | {"retain": {"general": 10**6}}), "1000000 were asked for"),
    "unknown task": (stages(STAGE | {"task": "poisons"}), "no task poisons in the miniature; there are"),
    "unknown setting of a method": (
        methods(MARGIN | {"settings": {"dampning": 1.0}}),
        "margin: settings: dampning is no setting of kfade; there are",
    ),
    "a search of another length": (
        methods(MARGIN | {"search": {"step_norm": [[0.1, 0.2, 0.3]]}}),
        "3 values in [0.1, 0.2, 0.3] of its search, for 2 stages",
    ),
    "fewer sequences than steps": (
        methods(MARGIN | {"settings": {"steps": 4, "forget_batch_size": 8}}),
        "but 4 steps of 8 need 32",
    ),
    "no such layers": (
        methods(MARGIN | {"settings": {"target_modules": r"model\.layers\.9\.mlp.*", "steps": 2}}),
        "target_modules",
    ),
    "no such layer of RMU": (methods(RMU | {"settings": {"layer": 7}}), "RMU: the model has MLPs in layers 0 to 1"),
    "unknown argument": (changed(WMDP, arguments={"lerning_rate": 1.0}), "no setting lerning_rate; see UnlearnConfig"),
    "a number that is text": (changed(WMDP, evaluation__max_new_tokens="1e1"), "write it with a point"),
    "unknown attack": (
        changed(WMDP, evaluation__relearning__atacks={"benign": {"general": 6}}),
        "evaluation.relearning: no setting atacks",
    ),
    "no model": (changed(WMDP, model={"dtype": "float32"}), "model.original is missing"),
    "no model of the miniature": (changed(WMDP, model={"original": "lab/tiny"}), "model.scratch is missing"),
}


def stopped(tmp_path, config: dict, capsys, *more: str) -> str:
    """The last line of stderr of a recipe that refuses its input."""
    path = write_config(tmp_path / "config.yaml", config)
    assert run_recipe(RECIPE, "--config", path, "--output_dir", tmp_path / "out", "--relearn", *more) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tmp_path, capsys):
    config, message = BAD[name]
    line = stopped(tmp_path, config, capsys)
    assert line.startswith("error: ") and message in line, line


def test_another_seed_draws_other_rows():
    corpora = experiment(WMDP).data
    first = corpora.questions["toxins"]
    assert corpora.seeded(0).questions["toxins"] == first and corpora.seeded(1).questions["toxins"] != first


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """(folder, config): a tiny model, corpora and instructions on disk, as a run on real data has them."""
    folder = tmp_path_factory.mktemp("local")
    original = problem_of(WMDP)
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
        "data": {"data_dir": str(data), "length": 96, "stages": stages},
        "model": {"original": str(folder / "model"), "dtype": "float32"},
        "evaluation": {"general": "wmdp_cyber", "completions": 4, "max_new_tokens": 4},
        "arguments": {"use_cpu": True},
        "methods": [
            {
                "label": "margin",
                "method": "kfade",
                "settings": {"objective": "margin", "damping": 1e-6},
                "search": {"step_norm": [0.05]},
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
        problem = problem_of(config)
        if problem.ask(problem.original, tasks=["wmdp_bio"])["wmdp_bio"].accuracy > 0.5:
            return
    raise AssertionError("the model prefers no letter")


def test_local_files_and_the_tasks_of_the_harness(local, tmp_path, monkeypatch):
    folder, config = local
    write_questions(folder / "data", config)
    monkeypatch.setitem(QUESTIONS, "wmdp_bio", Benchmark("cais/wmdp", "wmdp-bio", 6))
    rows = run_experiment(experiment(config), tmp_path / "out", progress=False)
    assert rows[0]["n"] == {"wmdp_bio": 6, "wmdp_cyber": 6} and rows[0]["accuracy"]["wmdp_bio"] > 0.5
    assert rows[1]["kl"] > 0
    settings = json.loads((tmp_path / "out/report.json").read_text())["settings"]
    assert settings["rows"]["bio"] == {"forget": 6, "retain": 4}
    # Only the task that was asked all of its questions is a score on the Hub's dataset.
    card = ModelCard.load(tmp_path / "out/model/README.md").data
    scores = {one.dataset_name: one.dataset_type for one in card.eval_results if one.metric_type == "acc"}
    assert scores == {"wmdp_bio": "cais/wmdp", "wmdp_cyber": "custom"}
    (file,) = (tmp_path / "out/model/.eval_results").iterdir()
    (entry,) = parse_eval_result_entries(yaml.safe_load(file.read_text()))
    assert (entry.dataset_id, entry.task_id, file.name) == ("cais/wmdp", "wmdp-bio", "wmdp-bio.yaml")
    assert entry.value == round(rows[1]["accuracy"]["wmdp_bio"], 4)
    assert entry.notes == f"lm-evaluation-harness {version('lm_eval')}, zero-shot; {LOWER}"


def test_what_is_kept_is_known_by_questions_and_instructions_and_not_by_their_folder(local, tmp_path):
    folder, config = local
    write_questions(folder / "data", config)
    identity = lambda place: problem_of(changed(config, data__data_dir=str(place))).identity()
    first = identity(folder / "data")
    shutil.copytree(folder / "data", tmp_path / "data")
    assert identity(tmp_path / "data") == first
    for file, part in (("wmdp/bio_test.jsonl", "questions"), ("alpaca.jsonl", "instructions")):
        path = tmp_path / "data" / file
        text = path.read_text()
        path.write_text(text.replace("number 2", "number 22").replace('"instruction": "', '"instruction": "Now: ', 1))
        other = identity(tmp_path / "data")
        assert [key for key in first if other[key] != first[key]] == [part]
        path.write_text(text)


def test_bad_local_files(local, tmp_path, capsys):
    folder, config = local
    data, broken = folder / "data", tmp_path / "data"

    refused = lambda **keys: stopped(tmp_path, changed(config, **keys), capsys)

    def without(*names):
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(data, broken, ignore=shutil.ignore_patterns(*names))
        return str(broken)

    write_questions(data, config)
    assert "hf auth login" in refused(data__data_dir=without("bio_forget*"))
    assert "Salesforce/wikitext" in refused(data__data_dir=without("wikitext*"))
    assert "mmul" in refused(evaluation__general="mmul")
    place = without()
    (broken / "wmdp/bio_test.jsonl").write_text(questions("A", 2) + '\n{"question": "and?", "choices": ["one"]}')
    assert "bio_test.jsonl, line 3" in refused(data__data_dir=place)
    from transformers import AutoModelForCausalLM

    small = AutoModelForCausalLM.from_pretrained(folder / "model")
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    for file in (folder / "model").glob("tokenizer*"):
        (tmp_path / "small" / file.name).write_bytes(file.read_bytes())
    assert "use the model's own tokenizer" in refused(model={"original": str(tmp_path / "small")})
    assert "cannot load the model" in refused(model={"original": str(tmp_path / "absent")})


@pytest.mark.parametrize("name", ["kfade_wmdp_zephyr_7b", "kfade_wmdp_llama2_7b"])
def test_dry_run_of_large_models(name, capsys):
    """Without weights and without data."""
    assert run_recipe(RECIPE, "--config", CONFIGS / f"{name}.yaml", "--dry_run") == 0
    text = capsys.readouterr().out
    assert "processes: 1" in text
    assert "bio: 10000 forget rows, 4000 retain rows" in text and "cyber: 10000 forget rows, 8000 retain rows" in text
    assert text.count("4 steps of 2500 rows") == 2 and text.count("targets: 12 weights") == 2


def test_dry_run_needs_numbers():
    config = read_yaml(CONFIGS / "kfade_wmdp_zephyr_7b.yaml", "")
    first, second = config["data"]["stages"]
    with pytest.raises(InputError, match="data.stages, bio: a dry run reads no text: say how many sequences"):
        dry_run(experiment(config, data__stages=[first | {"retain": {"wikitext": None}}, second]))
    with pytest.raises(InputError, match="stage cyber has 9999 sequences but 4 steps of 2500 need 10000"):
        dry_run(experiment(config, data__stages=[first, second | {"forget": {"cyber": 9999}}]))


def test_the_embedded_default_is_well_formed():
    default = read_experiment(None, "wmdp_demo.yaml", KINDS)
    assert len({line.candidates for line in default.lines}) == 1  # equal budgets
    assert {stage.task for stage in default.data.stages} == {"toxins", "intrusion"}
    for line in default.lines:
        for values in line.trainings(2 if line.stages == "each" else 1):
            for of_stage in values.stages:
                line.make(of_stage)


@pytest.mark.multi_process
def test_two_processes_make_the_table_of_one(finished, tmp_path):
    path = write_config(tmp_path / "config.yaml", WMDP)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [
        *launch,
        str(RECIPES / f"{RECIPE}.py"),
        "--config",
        str(path),
        "--output_dir",
        str(tmp_path / "out"),
        "--only",
        "margin",
    ]
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

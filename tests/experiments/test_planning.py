# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Dry runs: what every line will do and cost, without weights; what a run would refuse is refused."""

import pytest

from hf_unlearn.errors import InputError
from hf_unlearn.experiments.planning import dry_run
from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.settings import read_experiment
from tests.support.experiments import CLASSES, CONFIGS, ONE_CLASS_LINE, TOFU, WMDP, changed, experiment, run_recipe


def recipe_plan(capsys, recipe, *arguments) -> str:
    assert run_recipe(recipe, "--dry_run", *arguments) == 0
    return capsys.readouterr().out


# Of scratch sizes the architecture is known too: no config is needed for a dry run.
@pytest.mark.parametrize(
    "name, expected",
    [
        ("kfade_tofu_llama2_7b", ["6.74 B parameters", "400 forget rows, 3600 retain rows", "targets: 96 weights"]),
        ("kfade_tofu_phi_1_5", ["1.42 B parameters", "400 forget rows, 3600 retain rows", "targets: 48 weights"]),
        (
            "kfade_tofu_tiny",
            [
                "2.54 M parameters",
                "40 forget rows, 800 retain rows",
                "logits (2, 8, 2000)",
                "16 steps of 40 rows\ntargets: 28 weights",
                "one step): 8 candidates\n1 step of 40 rows\ntargets: 12 weights",
            ],
        ),
    ],
)
def test_tofu_in_the_repository(name, expected, shared_data, capsys):
    config = CONFIGS / f"{name}.yaml"
    text = recipe_plan(capsys, "kfade_tofu", "--config", config, "--data_dir", shared_data / "tofu")
    assert text.startswith("processes: 1 on ")
    for part in expected:
        assert part in text
    for line in read_experiment(config, "", KINDS).lines:
        assert f"\n{line.label}: " in text


@pytest.mark.parametrize("name", ["fast_ntk_cifar10", "fast_ntk_cifar10_resnet32", "fast_ntk_cifar10_vit"])
def test_class_forgetting_in_the_repository(name, shared_data, capsys):
    config = CONFIGS / f"{name}.yaml"
    text = recipe_plan(capsys, "fast_ntk_cifar10", "--config", config, "--data_dir", shared_data)
    for size in read_experiment(config, "", KINDS).data.per_class:
        assert f"data: class (images per class: {size}): {size} forget rows, {9 * size} retain rows" in text
    assert "logits (2, 10)" in text and "\nFast-NTK, at w0: " in text


@pytest.mark.parametrize(
    "recipe, expected",
    [
        (
            "kfade_tofu",
            ["40 forget rows, 760 retain rows", "K-FADE (EK-FAC, one step): 8 candidates", "SimNPO: 8 cand"],
        ),
        (
            "kfade_wmdp",
            ["toxins: 150 forget rows", "stage intrusion: 12 steps of 150 rows", "RMU: 12 candidates\nmoves"],
        ),
        ("fast_ntk_cifar10", ["(images per class: 60): 60 forget rows, 540 retain rows", "Fast-NTK: 1 candidate"]),
    ],
)
def test_templates(recipe, expected, capsys):
    text = recipe_plan(capsys, recipe)
    for part in expected:
        assert part in text


def test_other_options_of_a_recipe(capsys):
    text = recipe_plan(capsys, "fast_ntk_cifar10", "--per_class", 7, "--forget", "3", "--only", "NTK", "--seeds", 4)
    assert "(images per class: 7): 7 forget rows, 63 retain rows" in text
    assert "Fast-NTK: 1 candidate" in text and "Max Loss" not in text


def test_lines_of_one_stage_and_of_several():
    text = dry_run(experiment(WMDP))
    assert "margin: 2 candidates\nstage first: 2 steps of " in text and "\nstage second: 2 steps of " in text
    # All stages as one: nothing is said of stages.
    assert "RMU: 2 candidates\nmoves model.layers.0.mlp.down_proj.weight, model.layers.1" in text
    assert "data: first: " in text and "data: second: " in text


def test_a_plan_is_made_of_the_model_with_its_tuner():
    """Target modules are named as the run names them: those of the adapter's copies too."""
    head = {
        "label": "K-FADE",
        "method": "kfade",
        "settings": {"target_modules": ".*modules_to_save.*"},
        "search": {"step_norm": [0.1, 1.0]},
    }
    text = dry_run(experiment(ONE_CLASS_LINE, methods=[head]))
    assert "K-FADE: 2 candidates\n1 step of 4 rows\ntargets: 1 weights" in text


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize(
    "config, message",
    [
        (
            changed(TOFU, methods=[TOFU["methods"][0] | {"settings": {"target_modules": ".*experts"}}]),
            "target_modules: no linear module matches '.*experts'",
        ),
        (
            changed(TOFU, methods=[TOFU["methods"][0] | {"settings": {"forget_batch_size": 5, "steps": 3}}]),
            "one step: the forget set of stage .* but 3 steps of 5 need 15",
        ),
        (changed(TOFU, model={"original": "lab/absent", "retrained": "lab/absent"}), "no architecture for a dry run"),
        (changed(TOFU, data={"source": "absent/tofu"}), "absent/tofu"),
        (
            changed(WMDP, methods=[WMDP["methods"][1] | {"settings": {"layer": 7}}]),
            "RMU: the model has MLPs in layers",
        ),
        (changed(CLASSES, data__forget="gnu"), "no row has the class 'gnu'"),
        (changed(CLASSES, model={"config": {"model_type": "lenet"}}), "no image classifier of model_type 'lenet'"),
        (changed(CLASSES, model={"weights": "nowhere.safetensors"}), "no such weights"),
        (changed(CLASSES, tuner__type="key_value_prompt"), "has no attention"),
        (changed(CLASSES, data__per_class=[10_000]), r"has \d+ rows, 10000 were asked for"),
    ],
)
def test_what_the_run_would_refuse(config, message):
    with pytest.raises(InputError, match=message):
        dry_run(experiment(config))

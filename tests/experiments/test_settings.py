# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The one YAML dialect: what is read, what is refused with its new name, by a dry run of a recipe too."""

import copy
import dataclasses

import pytest
import yaml

from hf_unlearn.errors import InputError
from hf_unlearn.experiments.problems.class_forgetting import Images
from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.settings import leaves, make_experiment, override, read_experiment, read_yaml
from hf_unlearn.report.class_tables import paper_figures
from tests.support.experiments import (
    CLASSES,
    CONFIGS,
    ROOT,
    TOFU,
    WMDP,
    changed,
    experiment,
    load_recipe,
    run_recipe,
    write_config,
)


TEMPLATES = {
    "demo.yaml",
    "fast_ntk_demo.yaml",
    "wmdp_demo.yaml",
    "spe_tofu_demo.yaml",
    "spe_glue_demo.yaml",
    "spe_squad_demo.yaml",
}
# What a flag of a recipe puts in the place of a YAML's own lines, and the flag.
PARTS = {
    "spe_sweep_sparsity.yaml": ("--sweep", "sparsity"),
    "spe_sweep_damping.yaml": ("--sweep", "damping"),
    "spe_requests.yaml": ("--requests", "10"),
}
RECIPE_OF = {"tofu": "kfade_tofu", "wmdp": "kfade_wmdp", "class_forgetting": "fast_ntk_cifar10"}


def with_line(config, **keys) -> dict:
    """The first line alone, changed."""
    return changed(config, methods=[changed(config["methods"][0], **keys)])


# ---- what is read ---------------------------------------------------------------------------------------------------
def test_sections_become_attributes():
    made = experiment(TOFU)
    assert made.title == TOFU["title"] and made.kind is KINDS["tofu"] and made.seeds == (0,)
    assert made.data.authors == 4 and made.data.is_synthetic and made.evaluation.sweep_rows == 6
    assert made.tuner is None and made.tuning is None
    assert [line.label for line in made.lines] == ["one step", "two steps", "GradDiff"]
    assert made.lines[2].search == {"learning_rate": [1e-3]} and made.arguments["per_device_train_batch_size"] == 6
    assert made.written == TOFU
    classes = experiment(CLASSES)
    assert classes.seeds == (0, 1) and classes.data.per_class == [4] and classes.tuner.head == "linear"
    assert classes.tuning.epochs == 8 and classes.model.pretrain.per_class == 6
    hazards = experiment(WMDP)
    assert [stage.task for stage in hazards.data.stages] == ["toxins", "intrusion"]
    assert hazards.evaluation.relearning.methods == ["RMU"]


def test_overrides_replace_and_take_away():
    written = {"data": {"a": 1, "b": 2}, "seed": 0}
    before = copy.deepcopy(written)
    assert override(written, {"data.a": 3, "data.b": None, "model.original": "x", "seed": None}) == {
        "data": {"a": 3},
        "model": {"original": "x"},
    }
    assert written == before
    made = make_experiment(TOFU, KINDS, {"seed": None, "seeds": [3, 4], "data.authors": 5})
    assert made.seeds == (3, 4) and made.data.authors == 5


def test_only_some_lines():
    made = experiment(TOFU)
    assert made.only(None) is made
    assert [line.label for line in made.only(["step"]).lines] == ["one step", "two steps"]
    assert [line.label for line in made.only(["Grad", "two"]).lines] == ["two steps", "GradDiff"]
    with pytest.raises(InputError, match="--only nothing matches no method; there are: one step; two steps; GradDiff"):
        made.only(["nothing"])


def test_leaves_say_where_they_stand():
    assert list(leaves({"a": [1, {"b": "x"}], "c": 2})) == [("a[0]", 1), ("a[1].b", "x"), ("c", 2)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_of_the_recipes_are_whole(path):
    made = read_experiment(path, "", KINDS)
    assert made.title and made.lines
    if isinstance(made.data, Images):
        more = {"Fast-NTK, at w0"} if "cifar10" in path.stem else set()
        assert {line.label for line in made.lines} == {"Max Loss", "Random Label", "Fast-NTK"} | more
        assert paper_figures(made.evaluation.paper)
    # All lines of a table look at the same number of candidates, but for trainings of a fixed length.
    elif "tiny" not in path.stem:
        assert len({made.kind.candidates(line) for line in made.lines} - {1}) <= 1


def test_templates_are_whole():
    folder = ROOT / "hf_unlearn" / "templates"
    assert {path.name for path in folder.glob("*.yaml")} == TEMPLATES | PARTS.keys()
    for name in TEMPLATES:
        made = read_experiment(None, name, KINDS)
        assert made.title and len({made.kind.candidates(line) for line in made.lines}) <= 2


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_an_experiment_take_the_place_of_its_lines(name, monkeypatch):
    """With the embedded experiment and with those of files; data and model stay theirs."""
    made, recipe = [], load_recipe("spe_glue")
    remember = lambda arguments, default, overrides: made.append((default, overrides(arguments)))
    monkeypatch.setattr(recipe, "run", remember)
    recipe.main([*PARTS[name], "--rows", "50"])
    ((default, changes),) = made
    for path in (None, CONFIGS / "spe_glue_small.yaml"):
        one = read_experiment(path, default, KINDS, changes | {"data.rows": None})
        whole = read_experiment(path, default, KINDS)
        assert {line.method for line in one.lines} == {"spe"} and one.title == read_yaml(None, name)["title"]
        assert len({one.kind.candidates(line) for line in one.lines}) == 1
        assert (one.data.source, one.model, one.tuning) == (whole.data.source, whole.model, whole.tuning)
        assert one.evaluation.choose == "unlearning" and one.arguments == whole.arguments
    assert changes["data.rows"] == 50


# ---- what is refused ------------------------------------------------------------------------------------------------
def test_files_that_are_none(tmp_path):
    read = lambda path: read_experiment(path, "demo.yaml", KINDS)
    with pytest.raises(InputError, match="no such configuration"):
        read(tmp_path / "absent.yaml")
    for text, message in {
        "methods: [": "not YAML",
        "- methods": "no sections; give one at least",
        "metods: []": "no section metods; the sections are title, problem",
        "data: {}\nmodel: {}\n": "data, model, methods is missing",
        "data: {a: 1}\nmodel: {b: 1}\n": "methods is missing",
    }.items():
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match=message):
            read(tmp_path / "bad.yaml")


# Where the sections of older files went; an old name is refused wherever it stands with the new one.
MOVED = {
    "template": (TOFU, {"question_start": "Q: "}, "data.template"),
    "stages": (WMDP, [], "data.stages"),
    "relearn": (WMDP, {"attacks": {}}, "evaluation.relearning"),
    "relearning": (CLASSES, {"learning_rate": 1e-2}, "evaluation.relearning"),
    "probe": (CLASSES, True, "evaluation.probe"),
    "paper": (CLASSES, "ResNet-110, CIFAR-10", "evaluation.paper"),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_section_that_moved_is_refused_with_its_new_place(name):
    config, value, place = MOVED[name]
    with pytest.raises(InputError, match=f"the section {name} is now {place}: write it there"):
        experiment(config | {name: value})
    # The new place is one.
    section, key = place.split(".")
    assert key in {field.name for field in dataclasses.fields(getattr(experiment(config), section))}


BAD = {
    "an unknown problem": (changed(TOFU, problem="muse"), "problem: 'muse' is unknown: choose one of tofu, wmdp"),
    "seed and seeds": (changed(TOFU, seeds=[1]), "give seed or seeds, not both"),
    "a seed that is none": (changed(TOFU, seed="zero"), "seeds must be whole numbers, not ['zero']"),
    "no seeds": (changed(TOFU, seed=None, seeds=[]), "seeds must be whole numbers, not []"),
    "a section of other problems": (changed(TOFU, tuner={"type": "x"}), "the problem tofu has no section tuner"),
    "a key of data": (changed(TOFU, data__authers=3), "data: no setting authers; there are authors"),
    "a key of another source": (changed(TOFU, data__forget="forget01"), "data: forget belongs to TOFU"),
    "a key of the template": (
        changed(TOFU, data__template={"start": "x"}),
        "data.template: no field start; there are",
    ),
    "a key of model": (changed(TOFU, model__orginal="x"), "model: no setting orginal; there are config"),
    "a key of scratch": (changed(TOFU, model__scratch__layer=2), "model.scratch: no setting layer; there are"),
    "no retrained model": (changed(TOFU, model={"original": "x"}), "give model.retrained or model.retain_log"),
    "a key of evaluation": (changed(TOFU, evaluation__sweep_row=6), "evaluation: no setting sweep_row; there are"),
    "a key of arguments": (changed(TOFU, arguments__lr=1.0), "arguments: no setting lr; see UnlearnConfig"),
    "arguments by place": (changed(TOFU, arguments=["lr"]), "arguments: give settings by name"),
    "a key of a line": (with_line(TOFU, learning_rate=1.0), "methods, one step: no setting learning_rate"),
    "a value of arguments": (changed(TOFU, arguments__bf16="no"), "arguments: bf16 must be True or False, not 'no'"),
    "a value of a line's arguments": (
        with_line(TOFU, arguments={"max_steps": 1.5}),
        "methods, one step: arguments: max_steps must be a whole number, not 1.5",
    ),
    "a value of a method": (with_line(TOFU, settings={"refit": "false"}), "one step: refit must be True or False"),
    "a searched value": (
        with_line(TOFU, search={"step_norm": [0.1], "kl_rows": [-1]}),
        "methods, one step: search: kl_rows must be at least 0, not -1",
    ),
    "a searched setting": (with_line(TOFU, search={"step_norm": [".1"]}), "step_norm must be a number or None"),
    "a value of a section": (
        changed(TOFU, model__original=3),
        "model: original must be text or None, not 3",
    ),
    "a line's arguments": (
        with_line(TOFU, arguments={"learning_rat": 1.0}),
        "methods, one step: arguments: no setting learning_rat; see UnlearnConfig",
    ),
    "a line's settings": (
        with_line(TOFU, settings={"dampning": 1.0}),
        "one step: settings: dampning is no setting of kfade; there are",
    ),
    "a value out of range": (with_line(TOFU, settings={"damping": -1.0}), "damping must be a finite number above 0"),
    "a search of nothing known": (
        with_line(TOFU, search={"step_norm": [0.1], "step_nrom": [1, 2]}),
        "one step: search: no setting step_nrom; see UnlearnConfig",
    ),
    "a search that is a list": (
        with_line(TOFU, search=[0.1, 0.2]),
        "one step: search names what it tries now: write {step_norm: [0.1, 0.2]}",
    ),
    "a search of first order that is a list": (
        changed(TOFU, methods=[TOFU["methods"][2] | {"search": [1e-5]}]),
        "GradDiff: search names what it tries now: write {learning_rate: [1e-05]}",
    ),
    "a search without values": (with_line(TOFU, search={"step_norm": 0.1}), "search: give lists of values by name"),
    "no search": (with_line(TOFU, search={}), "give search, the values of step_norm or kl_budget to try"),
    "an unknown method": (
        with_line(TOFU, method="sorcery"),
        "one step: unknown method 'sorcery': choose one of kfade",
    ),
    "RMU as it was written": (
        with_line(TOFU, method="first_order", settings={"objective": "rmu"}, search={"learning_rate": [1e-5]}),
        "one step: RMU is a method of its own now: write method: rmu, without objective",
    ),
    "unknown stages": (with_line(TOFU, stages="apart"), "stages must be 'each' or 'together', not 'apart'"),
    "lines of one label": (changed(TOFU, methods=TOFU["methods"][:1] * 2), "methods share a label: one step"),
    "methods by name": (changed(TOFU, methods={"a": 1}), "methods: give a list of methods, each with label"),
    "a folder of corpora": (
        changed(WMDP, data__data_dir="nowhere"),
        "data.data_dir: the folder nowhere does not exist",
    ),
    "a key of the attacks": (changed(WMDP, evaluation__relearning__step=1), "evaluation.relearning: no setting step"),
    "a key of hazards' data": (changed(WMDP, data__lenght=3), "data: no setting lenght; there are data_dir"),
    "a key of images": (changed(CLASSES, data__colour=1), "data: no setting colour; there are classes"),
    "a folder of images": (
        changed(CLASSES, data__data_dir="nowhere"),
        "data.data_dir: the folder nowhere does not exist",
    ),
    "a key of tuning": (changed(CLASSES, tuning__epoch=1), "tuning: no setting epoch; there are batch_size"),
    "a key of the tuner": (changed(CLASSES, tuner__prompts=1), "tuner: no setting prompts; there are"),
    "a key of pretraining": (changed(CLASSES, model__pretrain__epoch=1), "model.pretrain: no setting epoch"),
    "a key of class evaluation": (changed(CLASSES, evaluation__prob=True), "evaluation: no setting prob; there are"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_dry_run_refuses_in_one_line(name, tmp_path, capsys):
    """What a run would refuse, before anything is loaded: one line with cause and cure, exit code 2."""
    config, message = BAD[name]
    path = write_config(tmp_path / "config.yaml", config)
    recipe = RECIPE_OF.get(config.get("problem", "tofu"), "kfade_tofu")
    arguments = ("--relearn",) if recipe == "kfade_wmdp" else ()
    assert run_recipe(recipe, "--config", path, "--dry_run", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_numbers_that_yaml_takes_for_text(tmp_path):
    text = yaml.safe_dump(TOFU).replace("1.0e-05", "1e-5")
    assert "1e-5" in text
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        InputError, match=r"methods\[0\].settings.damping: YAML takes 1e-5 for text: write it with a po"
    ):
        read_yaml(tmp_path / "config.yaml", "")

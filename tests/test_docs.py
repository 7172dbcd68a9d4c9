# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What the pages of the repository name must exist: rooms, links, modules, commands, keys of the YAML.

Each check gives a list of faults, so that it is tried on a page that has them too.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hf_unlearn.cli.main import make_parser, parse
from hf_unlearn.errors import InputError
from hf_unlearn.experiments.line import METHODS, Line
from hf_unlearn.experiments.problem import LanguageModel
from hf_unlearn.experiments.problems.class_forgetting import ClassEvaluation, Images
from hf_unlearn.experiments.problems.corpora import Corpora, StageConfig
from hf_unlearn.experiments.problems.encoder_sections import EncoderEvaluation, EncoderTuning
from hf_unlearn.experiments.problems.glue import GlueData, GlueModel
from hf_unlearn.experiments.problems.image_models import ImageModel, Tuning
from hf_unlearn.experiments.problems.kinds import KINDS
from hf_unlearn.experiments.problems.squad import SquadData, SquadModel
from hf_unlearn.experiments.problems.tofu import TofuData, TofuEvaluation
from hf_unlearn.experiments.problems.wmdp import WmdpEvaluation
from hf_unlearn.experiments.settings import MOVED, SECTIONS, make_experiment
from tests.support.floors import FLOORS
from tests.support.pages import FENCE, PAGES, PROGRAMS, ROOT, pieces


MAP, RECIPES = ROOT / "docs/README.md", ROOT / "docs/recipes.md"
WIDTH = 119
GENERATED = re.compile(r"^<!-- \w+:begin -->\n.*?^<!-- \w+:end -->", re.MULTILINE | re.DOTALL)
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
# Folders from which a page may name a file.
PLACES = ("", "hf_unlearn", "recipes", "recipes/configs", "benchmarks", "docs")


def code(text: str) -> list[str]:
    """What stands between backticks, outside blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def blocks(text: str, language: str) -> list[str]:
    return [block for found, block in FENCE.findall(text) if found == language]


def unlinked(text: str, folder: Path) -> list[str]:
    """Pages of a folder without a link in the text of its map."""
    links = re.findall(r"\]\(([^)#]+)\)", text)
    return [page.name for page in folder.glob("*.md") if page.name not in (*links, "README.md")]


def dead_links(text: str, page: Path) -> list[str]:
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link for link in links if "://" not in link and not (page.parent / link.partition("#")[0]).exists()]


def long_lines(text: str) -> list[str]:
    """Lines of prose beyond the width; tables, blocks and what is generated may be longer."""
    prose = GENERATED.sub("", FENCE.sub("", text)).splitlines()
    return [line for line in prose if len(line) > WIDTH and not line.startswith("|")]


def floors(text: str) -> list[set[str]]:
    """Rooms by floor, from the top, as the map draws them."""
    drawn = re.search(r"<!-- floors:begin.*?```text\n(.*?)```", text, re.DOTALL).group(1)
    return [{re.split(r"[./\s]", line)[0] for line in floor.splitlines()} for floor in drawn.split("\n\n")]


def missing_files(text: str) -> list[str]:
    """Files of this repository that a page names and that do not exist; what is planned is none yet."""
    today = "\n".join(line for line in text.splitlines() if "planned" not in line)
    named = re.findall(r"(?:hf_unlearn|tests|docs|recipes|benchmarks)/[\w/.]*\w|\b[\w/]+\.py\b", today)
    return [name for name in named if not any((ROOT / place / name).exists() for place in PLACES)]


def missing_names(text: str) -> list[str]:
    """`hf_unlearn.x.y` in a page, and imports in its blocks of Python, that lead to nothing."""
    named = re.findall(r"\bhf_unlearn(?:\.\w+)+", text)
    for block in blocks(text, "python"):
        imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
        named += [f"{node.module}.{alias.name}" for node in imports for alias in node.names]
    return [name for name in named if name.startswith("hf_unlearn") and not is_there(name)]


def wrong_calls(text: str) -> list[str]:
    """Calls of public names, inline, whose arguments these do not take: `KFade(stepps=3)`."""
    wrong = []
    for line in code(text):
        try:
            call = ast.parse(line, mode="eval").body
        except SyntaxError:
            continue  # no Python
        if not isinstance(call, ast.Call):
            continue
        name = ast.unparse(call.func)
        name = name if name.startswith("hf_unlearn.") else f"hf_unlearn.{name}"
        if not is_there(name):
            continue  # of another library, or of an object at hand
        module, _, attribute = name.rpartition(".")
        called = inspect.signature(getattr(importlib.import_module(module), attribute))
        try:
            called.bind_partial(*call.args, **{word.arg: None for word in call.keywords})
        except TypeError:
            wrong.append(line)
    return wrong


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def wrong_commands(text: str) -> list[str]:
    """Commands of `hf-unlearn` and of recipes that their parsers refuse, and targets that the Makefile does not have.

    Inline a command of `hf-unlearn` may be a part of one: its name must be known.
    """
    known = next(action for action in make_parser()._actions if action.choices).choices
    wrong = [one for one in re.findall(r"hf-unlearn ([a-z]+)", "\n".join(code(text))) if one not in known]
    lines = [piece.text for piece in pieces(text, "") if piece.language == "bash"]
    lines += [line for line in code(text) if line.startswith("make ") or re.search(r"\brecipes/\w+\.py .", line)]
    for line in lines:
        words, recipe = shlex.split(line), re.search(r"\brecipes/\w+\.py", line)
        try:
            if recipe:
                load_recipe(recipe.group()).parse_arguments(words[words.index(recipe.group()) + 1 :])
            elif words[0] == "hf-unlearn":
                parse(words[1:])
            elif words[0] == "make" and words[1] not in TARGETS:
                wrong.append(line)
        except (SystemExit, InputError, FileNotFoundError):
            wrong.append(line)
    return wrong


def load_recipe(name: str):
    # The second Fast-NTK recipe is the first with another YAML.
    name = name.replace("fast_ntk_imagenet_r", "fast_ntk_cifar10")
    spec = importlib.util.spec_from_file_location("recipe", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CHECKS = (long_lines, missing_files, missing_names, wrong_calls, wrong_commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_exists(page):
    text = page.read_text(encoding="utf-8")
    faults = {check.__name__: check(text) for check in CHECKS} | {"dead_links": dead_links(text, page)}
    assert {name: found for name, found in faults.items() if found} == {}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_program_is_called_as_its_docstring_says(program):
    told = ast.get_docstring(ast.parse(program.read_text(encoding="utf-8")))
    assert wrong_commands(told) == []


def test_yaml_and_recipes_keep_the_width():
    files = [*ROOT.glob("recipes/*.py"), *ROOT.glob("recipes/configs/*"), *ROOT.glob("hf_unlearn/templates/*.yaml")]
    assert {file.name: found for file in files if (found := long_lines(file.read_text(encoding="utf-8")))} == {}


def test_dataset_is_one_word():
    folders = ("recipes", "hf_unlearn")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")
    ]
    files += PAGES
    assert [file.name for file in files if re.search(r"\bdata sets?\b", file.read_text(encoding="utf-8"), re.I)] == []


def test_the_map_links_every_page_and_draws_every_room():
    text = MAP.read_text(encoding="utf-8")
    assert unlinked(text, MAP.parent) == []
    assert floors(text) == [set(floor) for floor in reversed(FLOORS)]
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        assert "](docs/README.md)" in page.read_text(encoding="utf-8")


def test_the_dialect_is_documented():
    text = RECIPES.read_text(encoding="utf-8")
    experiment = make_experiment(yaml.safe_load(blocks(text, "yaml")[0]), KINDS)
    assert [line.method for line in experiment.lines] == ["kfade", "first_order"]
    settings = (
        *(TofuData, TofuEvaluation, LanguageModel, Corpora, StageConfig, WmdpEvaluation),
        *(Images, ImageModel, Tuning, ClassEvaluation, Line),
        *(GlueData, GlueModel, SquadData, SquadModel, EncoderTuning, EncoderEvaluation),
    )
    keys = {field.name for one in settings for field in dataclasses.fields(one) if field.init}
    assert {*keys, *SECTIONS, *KINDS, *METHODS, *MOVED} - set(code(text)) == set()


@pytest.mark.parametrize(
    "check, text",
    [
        (long_lines, "word " * 25),
        (missing_files, "see `hf_unlearn/absent/module.py`"),
        (missing_files, "see `methods/absent.py`"),
        (missing_names, "`hf_unlearn.data.vision`"),
        (missing_names, "`hf_unlearn.evaluation.tofu.guess`"),
        (missing_names, "```python\nfrom hf_unlearn.data.rows import some_rows\n```\n"),
        (wrong_calls, "`KFade(curvature='kfac', stepps=3)`"),
        (wrong_calls, "`hf_unlearn.tuners.initial_parameters(model, heads=1)`"),
        (wrong_commands, "`hf-unlearn ledger`"),
        (wrong_commands, "```bash\nhf-unlearn inspect path --all\n```\n"),
        (wrong_commands, "```bash\npython recipes/kfade_tofu.py --epochs 3\n```\n"),
        (wrong_commands, "    python recipes/kfade_tofu.py \\\n        --epochs 3\n"),
        (wrong_commands, "see `recipes/kfade_tofu.py --epochs 3`"),
        (wrong_commands, "`make coffee`"),
        (lambda text: dead_links(text, MAP), "[a page](absent.md)"),
        (lambda text: unlinked(text, MAP.parent), "[K-FADE](kfade.md)"),
    ],
)
def test_a_wrong_page_is_found(check, text):
    assert check(text)
    assert not long_lines("| " + "cell " * 40 + "|")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The floors of the house: a room imports only from floors below its own, and no module waits for itself.

The syntax tree of every module is walked, imports inside functions and under `TYPE_CHECKING` included. There is no
list of exceptions: a new room gets a floor here, or the test fails.
"""

import ast
import textwrap
from pathlib import Path

import pytest

import hf_unlearn
from tests.support.floors import FLOORS


PACKAGE = Path(hf_unlearn.__file__).parent
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_LINES = 400
MOST_MODULES_AT_THE_TOP = 8


def room_of(module: str) -> str:
    """`hf_unlearn.data.rows` -> `data`; the package itself -> `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module, packages by their `__init__`."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = [package.name, *file.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(name: str, file: Path, known: dict[str, Path]) -> dict[str, int]:
    """Module of the package -> line of the first statement that imports it, wherever it stands in the file."""
    root, found = name.split(".")[0], {}
    inside = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            # `from .evaluation import tofu` imports a module, `from .errors import InputError` a name of one.
            targets = [full if (full := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] == root:
                found.setdefault(target, node.lineno)
    return found


def faults(package: Path, floor: dict[str, int]) -> list[str]:
    """Every import that runs up or sideways, every room without a floor, every circle."""
    known = modules(package)
    graph = {name: imports(name, file, known) for name, file in known.items()}
    found = []
    for name, targets in graph.items():
        room = room_of(name)
        if room not in floor:
            found.append(f"{name}: the room {room} is on no floor")
            continue
        for target, line in targets.items():
            if room_of(target) != room and floor.get(room_of(target), len(floor)) >= floor[room]:
                found.append(f"{name}:{line} imports {target}, which is not on a floor below {room}")
    return found + circles(graph)


def circles(graph: dict[str, dict[str, int]]) -> list[str]:
    """One path for each circle of imports."""
    found, done = [], set()

    def walk(name: str, path: list[str]):
        if name in path:
            found.append("circle: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in graph.get(name, {}):
                walk(target, [*path, name])
            done.add(name)

    for name in graph:
        walk(name, [])
    return found


def test_rooms_import_from_below():
    assert faults(PACKAGE, FLOOR) == []


def test_no_floor_names_a_room_that_is_gone():
    rooms = {room_of(name) for name in modules(PACKAGE)}
    assert set(FLOOR) == rooms


def test_the_house_can_be_seen_through():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES_AT_THE_TOP
    long = {
        name: count
        for name, file in modules(PACKAGE).items()
        if (count := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


@pytest.mark.parametrize(
    "line, fault",
    [
        ("from ..trainer import config", "imports house.trainer.config"),
        ("def late():\n    from ..trainer.config import Settings", "imports house.trainer.config"),
        ("if TYPE_CHECKING:\n    import house.trainer.config", "imports house.trainer.config"),
        ("from ..tuners import layer", "imports house.tuners.layer, which is not on a floor below data"),
        ("from .. import attic", "imports house.attic, which is not on a floor below data"),
        ("from . import other", "circle: house.data.other -> house.data.rows -> house.data.other"),
    ],
)
def test_a_wrong_import_is_found(line, fault, tmp_path):
    house = tmp_path / "house"
    for room, module in (
        ("trainer", "config"),
        ("tuners", "layer"),
        ("data", "rows"),
        ("data", "other"),
        ("attic", "box"),
    ):
        (house / room).mkdir(parents=True, exist_ok=True)
        (house / room / "__init__.py").touch()
        (house / room / f"{module}.py").touch()
    (house / "__init__.py").touch()
    (house / "data/other.py").write_text("from .rows import x\n")
    (house / "data/rows.py").write_text(textwrap.dedent(line))
    floor = {"__init__": 0, "data": 1, "tuners": 1, "trainer": 2}
    found = [one for one in faults(house, floor) if "attic" not in one.split(" ")[0]]
    assert len(found) == 1 and fault in found[0]


def test_no_test_imports_a_test():
    known = modules(Path(__file__).parent)
    found = {
        name: [target for target in imports(name, file, known) if "test_" in target] for name, file in known.items()
    }
    assert {name: targets for name, targets in found.items() if targets} == {}

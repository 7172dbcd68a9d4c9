# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Pages of the repository as what they print to be run: commands and snippets of Python, in their order.

A page is a Markdown file, a program whose docstring shows how it is called, or a module with examples (`>>>`).
"""

import ast
import doctest
import re
import shlex
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
PROGRAMS = sorted(path for folder in ("recipes", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# Blocks whose words are no commands and no Python: what is drawn or printed, and YAML, which test_docs.py reads.
NOT_PROGRAMS = ("text", "yaml")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (?:\w+=\S+ )*(?:hf-unlearn|python|make|accelerate|torchrun|pip) .*$", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """One command, on one line, or one snippet of a page."""

    page: str
    language: str  # "bash", "python", or that of a block which is neither
    text: str


def pieces(text: str, page: str) -> list[Piece]:
    """What a Markdown page prints to be run: its blocks, and commands that are indented lines."""
    found = [(match.start(), *match.groups()) for match in FENCE.finditer(text)]
    blanked = FENCE.sub(lambda match: re.sub(r"\S", " ", match.group()), text).replace("\\\n", "  ")
    found += [(match.start(), "bash", match.group()) for match in INDENTED.finditer(blanked)]
    every = []
    for _, language, block in sorted(found):
        if language in NOT_PROGRAMS:
            continue
        parts = commands(block) if language == "bash" else [block]
        every += [Piece(page, language, part) for part in parts]
    return every


def commands(block: str) -> list[str]:
    """The commands of a block, each on one line without its comment."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def pieces_of_page(page: Path) -> list[Piece]:
    return pieces(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))


def pieces_of_program(path: Path) -> list[Piece]:
    """The commands in the docstring of a program."""
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return pieces(told, str(path.relative_to(ROOT)))


def pieces_of_module(path: Path) -> list[Piece]:
    """The examples in the docstrings of a module, one snippet each."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, documented)]
    examples = [doctest.DocTestParser().get_examples(ast.get_docstring(node) or "") for node in nodes]
    page = str(path.relative_to(ROOT))
    return [Piece(page, "python", "".join(line.source for line in lines)) for lines in examples if lines]


def all_pieces() -> list[Piece]:
    modules = sorted((ROOT / "hf_unlearn").rglob("*.py"))
    sources = [(pieces_of_page, PAGES), (pieces_of_program, PROGRAMS), (pieces_of_module, modules)]
    return [piece for read, files in sources for file in files for piece in read(file)]

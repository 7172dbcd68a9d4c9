# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Kinds of problems by the name that `problem` of a YAML gives them."""

from ..problem import Problem
from .class_forgetting import ClassForgetting
from .glue import GlueProblem
from .squad import SquadProblem
from .tofu import TofuProblem
from .wmdp import WmdpProblem


KINDS: dict[str, type[Problem]] = {
    "tofu": TofuProblem,
    "wmdp": WmdpProblem,
    "class_forgetting": ClassForgetting,
    "glue": GlueProblem,
    "squad": SquadProblem,
}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Lines of a table: trainings of a search, values by stage, candidates, arguments, what is refused."""

import pytest

from hf_unlearn import FastNTK, FirstOrder, KFade, SPEUnlearn
from hf_unlearn.errors import InputError
from hf_unlearn.experiments.line import METHODS, Line
from hf_unlearn.methods.base import StageSize
from hf_unlearn.methods.rmu import RMU


STAGE = StageSize("rows", 10, 20, 8)


def kfade(settings=None, **more):
    return Line("x", "kfade", settings or {}, **{"search": {"step_norm": [0.1]}, **more})


def first_order(**more):
    return Line("x", "first_order", {"objective": "npo"}, **{"search": {"learning_rate": [1e-3]}, **more})


def test_every_method_has_a_line():
    assert METHODS == {
        "kfade": KFade,
        "first_order": FirstOrder,
        "rmu": RMU,
        "fast_ntk": FastNTK,
        "spe": SPEUnlearn,
    }
    assert type(Line("x", "rmu", search={"learning_rate": [1.0]}).make()) is RMU
    # The ridge has a default, so nothing must be searched.
    assert Line("x", "fast_ntk").make() == FastNTK()


def test_all_combinations_are_trained_in_order():
    trainings = kfade(search={"step_norm": [0.1, 0.2], "damping": [1e-3, 1e-4]}).trainings(1)
    assert [values.shown for values in trainings] == [
        {"step_norm": norm, "damping": damping} for norm in (0.1, 0.2) for damping in (1e-3, 1e-4)
    ]


def test_a_list_is_a_value_for_each_stage():
    (values,) = kfade(search={"step_norm": [[0.1, 0.3]], "damping": [1e-3]}).trainings(2)
    assert values.stages == ({"step_norm": 0.1, "damping": 1e-3}, {"step_norm": 0.3, "damping": 1e-3})
    assert values.shown == {"step_norm": [0.1, 0.3], "damping": 1e-3}
    with pytest.raises(InputError, match=r"x: 3 values in \[0.1, 0.2, 0.3\] of its search, for 2 stages"):
        kfade(search={"step_norm": [[0.1, 0.2, 0.3]]}).trainings(2)


def test_what_is_searched_goes_to_the_method_or_to_the_arguments():
    line = first_order(search={"beta": [0.5], "learning_rate": [1e-2]}, epochs=3, arguments={"warmup_steps": 2})
    (values,) = line.trainings(1)
    method = line.make(values.stages[0])
    assert method.beta == 0.5 and method.objective == "npo"
    assert line.arguments_of(values.stages[0], method) == {
        "num_train_epochs": 3,
        "eval_strategy": "epoch",
        "learning_rate": 1e-2,
        "warmup_steps": 2,
    }
    # A line's own arguments stand above the method's schedule.
    line = kfade({"steps": 6}, arguments={"eval_steps": 2})
    assert line.arguments_of({"step_norm": 0.1}, line.make({"step_norm": 0.1})) == {
        "eval_strategy": "steps",
        "eval_steps": 2,
    }


@pytest.mark.parametrize(
    "line, count",
    [
        (kfade(search={"step_norm": [0.1, 0.2, 0.3]}), 3),
        (kfade({"steps": 6}, search={"step_norm": [0.1, 0.2]}), 12),
        (kfade({"steps": 6}, arguments={"eval_steps": 3}), 2),
        (kfade(search={"step_norm": [[0.1, 0.2]], "damping": [1e-3, 1e-4]}), 2),
        (first_order(epochs=4), 4),
        (first_order(search={"learning_rate": [1e-3, 1e-4]}, epochs=4), 8),
        (first_order(arguments={"max_steps": 150, "eval_steps": 50}), 3),
        (Line("x", "fast_ntk", search={"ridge": [0.1, 1.0]}), 2),
    ],
)
def test_candidates(line, count):
    assert line.candidates == count


def test_check_names_the_line():
    kfade({"steps": 2, "forget_batch_size": 5}).check([STAGE])
    for line, message in (
        (
            kfade({"steps": 3, "forget_batch_size": 5}),
            "x: the forget set of stage rows has 10 .* 3 steps of 5 need 15",
        ),
        (kfade(search={"step_norm": [0.1], "kl_budget": [0.1]}), "x: give exactly one of step_norm"),
    ):
        with pytest.raises(InputError, match=message):
            line.check([STAGE])
    for search in ([0.1, -1.0], [[0.1, -1.0]]):
        with pytest.raises(InputError, match="x: step_norm must be a finite number above 0, not -1.0"):
            kfade(search={"step_norm": search})
    with pytest.raises(InputError, match="x: settings: dampning is no setting of kfade; there are curvature"):
        kfade({"dampning": 1})


@pytest.mark.parametrize("name, value", [("step_norm", 0.1), ("kl_budget", 0.01)])
def test_settings_or_search_must_name_what_decides(name, value):
    assert Line("x", "kfade", {name: value}).make().alpha > 0
    assert Line("x", "kfade", search={name: [value]}).number_of_trainings == 1
    assert Line("x", "first_order", arguments={"learning_rate": 1e-3}).make() == FirstOrder()
    with pytest.raises(InputError, match="x: give search, the values of step_norm or kl_budget to try"):
        Line("x", "kfade")
    with pytest.raises(InputError, match="x: give search, the values of learning_rate to try"):
        Line("x", "first_order", {"objective": "ga"})

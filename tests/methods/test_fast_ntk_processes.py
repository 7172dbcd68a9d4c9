# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Fast-NTK over two gloo processes: the update of one process, every row counted once, and errors that all raise."""

import copy
import time

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState

from hf_unlearn import FastNTK
from hf_unlearn.data.images import load_images, select_per_class, split_class, split_rows
from hf_unlearn.errors import InputError
from hf_unlearn.ntk import Jacobians, cache, request
from tests.support.images import Collator64, choose, make_model, tuned, unlearn


pytestmark = [pytest.mark.multi_process, pytest.mark.filterwarnings("ignore:the system is singular")]

WORDS = ("linear", "layer3.0.bn2")
SOLVERS = {
    "primal": {"solver": "primal"},
    "contrasts": {"contrasts": 5, "forget_contrasts": 3},
    "dual": {"solver": "dual"},
    "cg": {"solver": "cg", "ridge": 300.0},
    "classwise": {"kernel": "classwise"},
    "pseudo": {"kernel": "pseudo"},
}


def sets(name):
    """(forget, retain) of 40 rows in batches of 12: the last is smaller; a small forget set is process 0's alone."""
    rows = select_per_class(load_images("digits"), 4, seed=0)
    forget = {"a class": [12, 13, 14, 15], "rows on both": range(0, 40, 3), "one row": [7]}
    return split_class(rows, 3) if name == "a class" else split_rows(rows, forget[name])


class Models:
    """One model before and after tuning, and requests on it without a trainer."""

    def __init__(self):
        self.start = make_model()
        self.tuned = tuned(self.start, WORDS)
        self.names = choose(self.tuned, WORDS)

    def solve(self, name, state=None, rows="a class", collator=None, **changes):
        """(update by name, report, number of rows whose Jacobian was taken here)."""
        seen, original = [], Jacobians.__call__
        method = FastNTK(**{"ridge": 0.3, "chunk_size": 3, **SOLVERS[name], **changes})
        at = {name: parameter for name, parameter in self.start.named_parameters() if name in self.names}
        with pytest.MonkeyPatch.context() as patch:
            count = lambda self, inputs, *basis: seen.append(len(inputs["labels"])) or original(self, inputs, *basis)
            patch.setattr(Jacobians, "__call__", count)
            forget, retain = sets(rows)
            update, report = request.solve_request(
                self.tuned, self.names, method, retain, forget, collator or Collator64(), start=at, accelerator=state
            )
        return update, report, sum(seen)

    def train(self, folder, rows):
        """What `UnlearnTrainer` changes."""
        model = copy.deepcopy(self.tuned)
        method = FastNTK(solver="primal", ridge=0.3, chunk_size=3, pretrained=self.start)
        unlearn(folder, model, method, *sets(rows))
        now, before = dict(model.named_parameters()), dict(self.tuned.named_parameters())
        return {name: now[name].detach() - before[name].detach() for name in self.names}


@pytest.fixture(scope="module")
def models():
    return Models()


def assert_same(update, expected, tolerance=1e-6):
    assert update.keys() == expected.keys()
    for name, step in expected.items():
        assert step.norm() > 0 and (update[name] - step).norm() <= tolerance * step.norm(), name


def launched():
    """The state of a worker, which inherits that of a parent that may have been one process."""
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    return state


CASES = [*((solver, "a class") for solver in SOLVERS), ("pseudo", "rows on both")]


def two_processes(folder, models):
    state = launched()
    found = {case: models.solve(case[0], state, case[1]) for case in CASES}
    found["trainer"] = models.train(folder / "trainer", "one row")
    written, original = [], cache.write_safetensors
    cache.write_safetensors = lambda *args: written.append(1) or original(*args)
    found["cached"] = models.solve("primal", state, gram_cache=str(folder / "grams"))
    found["read"] = models.solve("primal", state, gram_cache=str(folder / "grams"))
    if state.process_index == 1:
        cache.Path.exists = lambda path, **how: False  # a folder that this machine does not share
    found["read by half"] = models.solve("primal", state, gram_cache=str(folder / "grams"))
    torch.save((found, len(written)), folder / f"{state.process_index}.pt")


def test_two_processes_give_the_update_of_one(tmp_path, models):
    debug_launcher(two_processes, (tmp_path, models), num_processes=2)
    (first, writes), (second, others) = (torch.load(tmp_path / f"{n}.pt", weights_only=False) for n in (0, 1))
    for case in CASES:
        expected, report, rows = models.solve(case[0], None, case[1])
        for update, found, _ in (first[case], second[case]):
            assert_same(update, expected)
            assert_same(update, first[case][0], 0)
            assert found["samples"] == 40
            for key in ("ridge", "target_scale", "update_norm"):
                assert found[key] == pytest.approx(report[key], rel=1e-9), (case, key)
        # Two kernels take products of Jacobians only.
        assert rows == (0 if case[0] in ("cg", "pseudo") else 40), case
        assert first[case][2] + second[case][2] == rows and bool(second[case][2]) == bool(rows), case
    expected = models.train(tmp_path / "alone", "one row")
    assert_same(first["trainer"], expected)
    assert_same(second["trainer"], expected)
    # The first writes, both read; where only one machine has the file all measure. One process reads what two wrote.
    assert (writes, others) == (4, 0) and len(list((tmp_path / "grams").iterdir())) == 2
    measured = [first[name][2] + second[name][2] for name in ("cached", "read", "read by half")]
    assert measured == [40, 0, 40]
    update, _, rows = models.solve("primal", gram_cache=str(tmp_path / "grams"))
    assert rows == 0
    for name in ("cached", "read", "read by half"):
        assert_same(first[name][0], update, 1e-12)


class Failing:
    """A collator that raises at its n-th call."""

    def __init__(self, call):
        self.left = call

    def __call__(self, rows):
        self.left -= 1
        if not self.left:
            raise OSError("the disk is gone")
        return Collator64()(rows)


# What fails on the second process alone: the n-th batch that it reads (of 3 retain batches and a forget batch), or a
# function.
FAILURES = {
    "margin": ("primal", 2),
    "forget Gram": ("primal", 4),
    "retain Gram": ("primal", 6),
    "dual": ("dual", 5),
    "pseudo": ("pseudo", 5),
    "pseudo, back": ("pseudo", 9),
    "cg, rows": ("cg", 5),
    "cg, back": ("cg", (Jacobians, "vjp")),
    "cg, forward": ("cg", (Jacobians, "jvp")),
    "cg, trace": ("cg", (Jacobians, "products")),
    "solution": ("primal", (request, "primal_update")),
    "cache": ("primal", (cache, "row_hashes")),
}


def errors(folder, models):
    state, found = launched(), {}
    second = state.process_index == 1

    def fail(*args, **kwargs):
        raise InputError("out of order")

    for name, (solver, where) in FAILURES.items():
        batch = isinstance(where, int)
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch, pytest.raises((OSError, InputError)) as raised:
            if second and not batch:
                patch.setattr(*where, fail)
            changes = {"gram_cache": str(folder / "grams")} if name == "cache" else {}
            models.solve(solver, state, collator=Failing(where if second and batch else 0), **changes)
        found[name] = (type(raised.value).__name__, str(raised.value), time.monotonic() - began)
    if not second:
        cache.write_safetensors = lambda *args: Failing(1)([])
    # What cannot be kept costs no request.
    update = models.solve("primal", state, gram_cache=str(folder / "grams"))[0]
    torch.save((found, update), folder / f"{state.process_index}.pt")


def test_what_one_process_raises_all_raise(tmp_path, models):
    debug_launcher(errors, (tmp_path, models), num_processes=2)
    (found, update), (other, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, (_, where) in FAILURES.items():
        kind, text = ("OSError", "the disk is gone") if isinstance(where, int) else ("InputError", "out of order")
        assert found[name][:2] == other[name][:2] == (kind, f"process 1 of 2: {text}"), name
        assert found[name][2] < 30, name
    assert not (tmp_path / "grams").exists()
    # The processes are still in step after all that.
    assert_same(update, models.solve("primal")[0])

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A comparison that is killed goes on after its last finished stage, and ends in the bits of one that was not."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState

from hf_unlearn.errors import NumericalError
from hf_unlearn.evaluation.specificity import TokenKL
from hf_unlearn.experiments import search
from hf_unlearn.experiments.comparison import Cell
from hf_unlearn.experiments.line import Line
from hf_unlearn.experiments.problem import Problem, Stage
from tests.support.trainers import COLLATE, make_rows, trained_llama


FORGET, RETAIN = make_rows(6, 1), make_rows(8, 2)
STAGES = [Stage(str(number), make_rows(4, number), RETAIN) for number in (3, 4, 5)]
KFADE = {"curvature": "kfac", "damping": 1e-3, "fisher": "probe"}
# bf16 weights: those after two stages are not the first ones plus both updates, which are rounded twice.
LINES = {
    "K-FADE": Line("K-FADE", "kfade", KFADE, {"step_norm": [[0.02, 0.03, 0.04], [0.05, 0.04, 0.03]]}),
    "GradDiff": Line(
        "GradDiff",
        "first_order",
        {"objective": "grad_diff"},
        {"learning_rate": [[1e-3, 2e-3, 1e-3], [2e-3, 1e-3, 3e-3]]},
        epochs=2,
    ),
    "one stage": Line("one stage", "kfade", KFADE, {"step_norm": [0.02, 0.03]}, stages="together"),
}


class Tiny(Problem):
    """Three stages on a tiny model; the candidate with the greatest forget loss is the best."""

    vocabulary = SimpleNamespace(
        references=("original", "retrained"),
        metrics=("forget_loss",),
        choose=lambda rows: max(range(len(rows)), key=lambda index: rows[index]["forget_loss"] or -1),
        reached=lambda row: True,
    )
    sections = {}
    tokenizer, max_length, stages = None, 64, STAGES

    def __init__(self, seed=0):
        self.original, self.seed = trained_llama(torch.bfloat16), seed
        self.kl = TokenKL(self.original, [COLLATE(list(RETAIN))])

    stage_sizes = architecture = card = None

    def prepare(self, folder, identity):
        pass

    def identity(self):
        return {"seed": self.seed}

    def score_candidate(self, model):
        return self.evaluate(model)[0]

    def evaluate(self, model, folder=None):
        with torch.no_grad():
            return {"forget_loss": model(**COLLATE(list(FORGET))).loss.item()}, self.kl(model)


class Killed(BaseException):
    pass


@pytest.fixture
def count(monkeypatch):
    """Counts stages that begin and candidates; raises at the one of a number that a test sets."""
    counts = SimpleNamespace(begun=0, scored=0, kill_begun=None, kill_score=None, error=Killed)
    watch(counts, monkeypatch)
    return counts


def watch(counts, monkeypatch):
    train, score = search.UnlearnTrainer.train, Tiny.score_candidate

    def counted_train(self, *args, **kwargs):
        counts.begun += 1
        if counts.begun == counts.kill_begun:
            raise counts.error("diverged")
        return train(self, *args, **kwargs)

    def counted_score(self, model):
        counts.scored += 1
        if counts.scored == counts.kill_score:
            raise counts.error("diverged")
        return score(self, model)

    monkeypatch.setattr(search.UnlearnTrainer, "train", counted_train)
    monkeypatch.setattr(Tiny, "score_candidate", counted_score)


def compare(folder, line, seed=0):
    arguments = {"use_cpu": True, "per_device_train_batch_size": 4}
    compared = Cell(Tiny(seed), [line], folder, arguments, seed=seed, progress=False)
    _, row = compared.run()
    return compared, row


def results(compared, row):
    """What must not depend on when a run was killed: all but the times."""
    timed = ("seconds", "peak_memory_mb")
    plain = lambda row: {name: value for name, value in row.items() if name not in timed}
    delta = compared.update(row["method"])
    return (
        plain(row),
        [plain(candidate) for candidate in compared.candidates],
        delta.sha256(),
        delta.config["settings"],
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of runs that nothing killed, with the numbers of stages and candidates."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for label, line in LINES.items():
            counts = SimpleNamespace(begun=0, scored=0, kill_begun=None, kill_score=None)
            with patch.context() as inner:
                watch(counts, inner)
                found[label] = (
                    *results(*compare(tmp_path_factory.mktemp("whole"), line)),
                    counts.begun,
                    counts.scored,
                )
    return found


@pytest.mark.parametrize("label", LINES)
def test_killed_in_every_stage(label, whole, count, tmp_path):
    *expected, stages, scored = whole[label]
    folder = tmp_path / "lines"
    for _ in range(stages - 1):
        count.begun, count.kill_begun = 0, 2
        with pytest.raises(Killed):
            compare(tmp_path, LINES[label])
        assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    count.begun, count.kill_begun = 0, None
    compared, row = compare(tmp_path, LINES[label])
    assert count.begun == 1  # all stages but the last were finished before
    assert list(results(compared, row)) == expected
    assert not list(folder.rglob("finished"))
    assert row["candidates"] == len(compared.candidates)
    # Every candidate was scored once.
    assert count.scored == scored


@pytest.mark.parametrize(
    "line",
    [
        Line("swept", "kfade", KFADE, {"step_norm": [0.05, 0.01]}, stages="together"),
        Line("trained", "first_order", {"objective": "ga"}, {"learning_rate": [1e-2, 1e-5]}, stages="together"),
    ],
    ids=lambda line: line.label,
)
def test_the_best_candidate_is_kept_wherever_it_stands(line, tmp_path):
    compared, row = compare(tmp_path, line)
    first, second = compared.candidates
    assert first["forget_loss"] > second["forget_loss"]
    assert row["settings"] == first["settings"] and row["forget_loss"] == pytest.approx(first["forget_loss"])
    with compared.updated(line.label) as model, torch.no_grad():
        assert model(**COLLATE(list(FORGET))).loss.item() == pytest.approx(first["forget_loss"], rel=1e-3)


def test_killed_within_a_stage(whole, count, tmp_path):
    """In the last stage of the second training: that stage is done again, and no candidate counts twice."""
    *expected, stages, _ = whole["GradDiff"]
    count.kill_score = 4
    with pytest.raises(Killed):
        compare(tmp_path, LINES["GradDiff"])
    (finished,) = tmp_path.glob("lines/*/finished")
    state = json.loads((finished / "state.json").read_text())
    assert (state["trainings"], state["stages"], len(state["rows"])) == (1, 2, 2) and state["seconds"] > 0
    assert {path.name for path in finished.iterdir()} == {
        "state.json", "training-1-stage-2.safetensors", f"best-{state['best']}"
    }  # fmt: skip
    count.begun = 0
    compared, row = compare(tmp_path, LINES["GradDiff"])
    assert count.begun == 1 and list(results(compared, row)) == expected
    # The time of the stages that were not run again counts.
    assert compared.candidates[2]["seconds"] > state["seconds"]
    # A finished line is read, and what a kill left beside it goes.
    finished.mkdir()
    again, row = compare(tmp_path, LINES["GradDiff"])
    assert count.begun == 1 and list(results(again, row)) == expected and not finished.exists()


def test_other_values_start_again(count, tmp_path):
    line = LINES["K-FADE"]
    changes = [
        (line, 0),
        (Line(line.label, "kfade", KFADE, {"step_norm": [[0.02, 0.03, 0.05]]}), 0),
        (Line(line.label, "kfade", KFADE | {"damping": 1e-2}, line.search), 0),
        (line, 1),
    ]
    keys = set()
    for other, seed in changes:
        count.begun, count.kill_begun = 0, 2
        with pytest.raises(Killed):
            compare(tmp_path, other, seed)
        (path,) = tmp_path.glob("lines/*/finished/state.json")
        state = json.loads(path.read_text())
        # What is kept is what this run did: its first stage, and nothing of the run before.
        assert (state["trainings"], state["stages"]) == (0, 1)
        assert sorted(file.name for file in path.parent.iterdir()) == ["state.json", "training-0-stage-1.safetensors"]
        keys.add(state["key"])
    assert len(keys) == len(changes)


def test_a_run_that_diverged_is_not_repeated(count, tmp_path):
    count.kill_begun, count.error = 2, NumericalError  # the second stage of the first run
    compared, row = compare(tmp_path / "whole", LINES["GradDiff"])
    assert count.begun == 5 and [candidate.get("note") for candidate in compared.candidates] == [
        "4: diverged",
        None,
        None,
    ]
    expected = results(compared, row)

    count.begun, count.scored, count.kill_score = 0, 0, 2
    errors = [NumericalError, Killed]

    def error(text):
        raise errors.pop(0)(text)

    count.error = error
    with pytest.raises(Killed):
        compare(tmp_path / "killed", LINES["GradDiff"])
    count.begun, count.kill_begun, count.kill_score = 0, None, None
    compared, row = compare(tmp_path / "killed", LINES["GradDiff"])
    assert count.begun == 1 and results(compared, row) == expected


def test_a_full_disk_keeps_nothing_and_stops_nothing(whole, monkeypatch, tmp_path, caplog):
    def full(path, tensors, metadata=None):
        raise OSError(f"{path} could not be written (No space left on device)")

    monkeypatch.setattr("hf_unlearn.experiments.finished_stages.write_safetensors", full)
    compared, row = compare(tmp_path, LINES["GradDiff"])
    assert results(compared, row) == whole["GradDiff"][:4]
    assert "a killed run would repeat them" in caplog.text


def two_processes(folder):
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    rank = PartialState(cpu=True).process_index
    for name, kills in {"whole": [None], "killed": [2, None]}.items():
        counts = SimpleNamespace(begun=0, scored=0, kill_begun=None, kill_score=None, error=Killed)
        with pytest.MonkeyPatch.context() as patch:
            watch(counts, patch)
            for kill in kills:
                counts.begun, counts.kill_begun = 0, kill
                try:
                    compared, row = compare(
                        folder / name, Line("K-FADE", "kfade", KFADE, {"step_norm": [[0.02, 0.03, 0.04]]})
                    )
                except Killed:
                    assert kill is not None
        torch.save((results(compared, row), counts.begun), folder / f"{name}-{rank}.pt")


@pytest.mark.multi_process
def test_two_processes(tmp_path):
    debug_launcher(two_processes, (tmp_path,), num_processes=2)
    whole, killed = ([torch.load(tmp_path / f"{name}-{rank}.pt") for rank in (0, 1)] for name in ("whole", "killed"))
    assert [begun for _, begun in whole] == [3, 3] and [begun for _, begun in killed] == [2, 2]
    for rank in (0, 1):
        assert killed[rank][0] == whole[rank][0]

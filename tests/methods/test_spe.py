# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""SPE-Unlearn against loops over single rows: the step, its mask, budgets, requests that follow one another."""

import copy
import functools
import json
import shutil

import pytest
import torch
from datasets import Dataset

from hf_unlearn import FirstOrder
from hf_unlearn.errors import InputError, LimitError
from hf_unlearn.methods.masking import MaskSettings
from hf_unlearn.methods.spe import SPEUnlearn
from hf_unlearn.structure.heads import find_structures
from hf_unlearn.structure.mask import StructureMask
from tests.support.models import make_bert, make_llama
from tests.support.trainers import head_rows, make_rows, make_trainer, weights


FORGET, RETAIN = (Dataset.from_list(head_rows("classes", *pair)) for pair in ((4, 1), (14, 2)))


def request(model, folder, forget=FORGET, retain=RETAIN, kl_rows=0, **settings):
    """A model after one request, and its trainer; the model is changed in place."""
    trainer = make_trainer(model, SPEUnlearn(**settings), folder, forget, retain, kl_rows=kl_rows)
    trainer.train()
    return trainer


def each_gradient(model, rows):
    """Oracle: the gradients of every row by itself, name -> tensor, of the loss summed over its predictions.

    Of encoders transformers' own loss, which is the mean over the ends of a span, and twice ours of a regression; of
    decoders it takes the logits in fp32, so theirs is written out.
    """
    found = []
    for row in rows:
        model.zero_grad()
        batch = {name: torch.tensor([value]) for name, value in row.items()}
        if isinstance(row.get("labels"), list):
            logits, wanted = model(input_ids=batch["input_ids"]).logits[0, :-1], batch["labels"][0, 1:]
            loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        else:
            scale = 2 if "start_positions" in row else 0.5 if isinstance(row["labels"], float) else 1
            loss = scale * model(**batch).loss
        loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    return found


def second_order(model, mask, forget, retain, rate, damping):
    """Oracle: eq. 10 with the empirical Fisher of single rows (eq. 3), over what a mask keeps."""
    per_row, gradient = each_gradient(model, retain), each_gradient(model, forget)
    every = StructureMask.all(mask.structures, {key.split(".")[0] for key in mask.chosen})
    masks = {name: mask.element_mask(name).expand(shape) for name, shape in mask.structures.shapes.items()}
    fisher = {name: sum(row[name].square() for row in per_row) / len(per_row) for name in mask.names}
    mean = torch.cat([fisher[name][masks[name]] for name in mask.names]).mean()
    kept = sum(int(masks[name].sum()) for name in mask.names)
    size = sum(int(every.element_mask(n).expand(mask.structures.shapes[n]).sum()) for n in every.names)
    return {
        name: rate * size / kept * masks[name] * sum(row[name] for row in gradient) / (fisher[name] + damping * mean)
        for name in mask.names
    }


@pytest.mark.parametrize("sparsity", [0.0, 0.6])
@pytest.mark.parametrize("head", ["classes", "regression", "span", "tokens"])
def test_a_step_is_that_of_loops_over_rows(head, sparsity, tmp_path):
    model = make_llama().double() if head == "tokens" else make_bert(head).double()
    make = make_rows if head == "tokens" else functools.partial(head_rows, head)
    forget, retain = make(4, 1), make(14, 2)
    before = copy.deepcopy(model)
    trainer = request(
        model, tmp_path, forget, retain, sparsity=sparsity, unlearning_rate=1e-3, damping=0.3, rearrange=False
    )
    told = trainer.method.account()
    # The mask is known by what moved: the structures' own tests say that it is the right one.
    structures = find_structures(before)
    moved = {name: one - dict(before.named_parameters())[name] for name, one in model.named_parameters()}
    chosen = {}
    for key, site in structures.sites.items():
        moves = moved[f"{site.module}.weight"].abs().sum(0).view(site.count, -1).sum(1)
        chosen[key] = moves > 0
    mask = StructureMask(structures, chosen)
    assert told["mask_sha256"] == mask.hash and abs(mask.sparsity - told["mask_sparsity"]) < 1e-12
    expected = second_order(before, mask, forget, retain, 1e-3, 0.3)
    for name, one in moved.items():
        wanted = expected.get(name, torch.zeros_like(one))
        assert torch.allclose(one, wanted, rtol=1e-6, atol=1e-12), name
    assert (mask.sparsity == 0) == (sparsity == 0) and set(expected) <= set(moved)


@pytest.mark.parametrize("importance", ["random", "shuffled"])
def test_a_mask_by_lot_is_a_step_as_any_other(importance, tmp_path):
    """The control of a mask that was chosen: as many structures, of each kind as many where they are shuffled."""
    found, seen = [], {}
    for chosen in ("mlr", importance):
        model = make_bert().double()
        settings = {"sparsity": 0.6, "importance": chosen, "unlearning_rate": 1e-3, "damping": 0.3}
        trainer = request(model, tmp_path / chosen, **settings)
        before, structures = make_bert().double(), find_structures(model)
        moved = {name: one - before.get_parameter(name) for name, one in model.named_parameters()}
        kept = {
            key: moved[f"{site.module}.weight"].abs().sum(0).view(site.count, -1).sum(1) > 0
            for key, site in structures.sites.items()
        }
        found.append(StructureMask(structures, kept))
        seen[chosen] = moved
    of_mlr, by_lot = found
    assert by_lot.count == of_mlr.count and by_lot.hash != of_mlr.hash
    counts = lambda mask: sum(int(one.sum()) for key, one in mask.chosen.items() if key.startswith("heads"))
    assert (counts(by_lot) == counts(of_mlr)) or importance == "random"
    if importance == "random":
        assert by_lot.hash == StructureMask.random(by_lot.structures, 0.6, trainer.args.seed).hash
    expected = second_order(before, by_lot, FORGET, RETAIN, 1e-3, 0.3)
    for name, one in seen[importance].items():
        assert torch.allclose(one, expected.get(name, torch.zeros_like(one)), rtol=1e-6, atol=1e-12), name


def test_a_budget_is_kept_and_used(tmp_path):
    model = make_bert()
    model.classifier.weight.data.mul_(50)  # else nothing in the layers changes its answers so much
    trainer = request(model, tmp_path, kl_rows=14, sparsity=0.5, kl_budget=0.01)
    told = trainer.method.account()
    assert 0.5 * 0.01 <= told["measured_kl"] <= 0.01
    trainer.save_model()
    line = json.loads((tmp_path / "unlearning_log.jsonl").read_text().splitlines()[-1])
    assert line["mask_sha256"] == told["mask_sha256"]
    with pytest.raises(InputError, match="the KL cannot be measured here"):
        request(make_bert(), tmp_path / "other", kl_budget=0.01)


def test_a_mask_may_be_chosen_on_fewer_rows_than_the_step(tmp_path):
    """The mask is that of the rows of the seed's choice alone, and the step under it has the Fisher of all."""
    model = make_bert().double()
    before = copy.deepcopy(model)
    settings = {"sparsity": 0.6, "importance": "fisher", "unlearning_rate": 1e-3, "damping": 0.3}
    trainer = request(model, tmp_path / "few", mask_samples=3, **settings)
    few = SPEUnlearn(retain_samples=3, **settings)
    alone = make_trainer(make_bert().double(), few, tmp_path / "alone", FORGET, RETAIN, kl_rows=0)
    alone.train()
    told = trainer.method.account()
    assert told["mask_sha256"] == few.account()["mask_sha256"] and told["retain_rows"] == 14
    whole = request(make_bert().double(), tmp_path / "all", **settings).method.account()
    assert whole["mask_sha256"] != told["mask_sha256"]
    structures = find_structures(before)
    chosen = {}
    for key, site in structures.sites.items():
        name = f"{site.module}.weight"
        gap = model.get_parameter(name) - before.get_parameter(name)
        chosen[key] = gap.abs().sum(0).view(site.count, -1).sum(1) > 0
    expected = second_order(before, StructureMask(structures, chosen), FORGET, RETAIN, 1e-3, 0.3)
    for name, wanted in expected.items():
        found = model.get_parameter(name) - before.get_parameter(name)
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-12), name


def test_updates_of_first_order_are_first_order_methods_with_a_mask():
    method = SPEUnlearn("npo", sparsity=0.8, importance="mlf", beta=0.2)
    assert isinstance(method, FirstOrder) and method.objective == "npo" and method.beta == 0.2
    assert MaskSettings.read(method.mask) == MaskSettings(sparsity=0.8, importance="mlf")


# ---- requests that follow one another -------------------------------------------------------------------------------
AIDED = {"successive": "memory_aided", "unlearning_rate": 1e-3, "damping": 0.3, "sparsity": 0.6}
KINDS_OF_MASKS = [{}, {"importance": "fisher", "rearrange": False}, {"importance": "mlf"}, {"importance": "norm"}]


@pytest.mark.parametrize("mask", KINDS_OF_MASKS, ids=["mlr", "eq. 13", "mlf", "norm"])
def test_requests_one_by_one_end_where_one_request_does(mask, tmp_path):
    """Also when every request is served by another process, that has the saved model and the state alone."""
    settings = AIDED | mask
    once = request(make_bert().double(), tmp_path / "once", state=tmp_path / "state once", **settings)
    model = make_bert().double()
    for number in range(len(FORGET)):
        row = FORGET.select([number])
        others = [*RETAIN, *FORGET.select(range(number + 1, len(FORGET)))] if number == 0 else None
        retain = None if others is None else Dataset.from_list(others)
        trainer = request(model, tmp_path / str(number), row, retain, state=tmp_path / "state", **settings)
        trainer.save_model()
        model = type(model).from_pretrained(tmp_path / str(number), dtype=torch.float64)
    for name, parameter in once.model.named_parameters():
        gap = (parameter - model.get_parameter(name)).norm()
        moved = (parameter - make_bert().double().get_parameter(name)).norm()
        assert gap <= 1e-6 * max(moved, 1e-6), (name, gap, moved)
    assert trainer.method.account()["requests"] == 4
    # Eq. 12 is eq. 10 of all forgotten rows at the first weights.
    if not mask:
        plain = request(make_bert().double(), tmp_path / "plain", **{**AIDED, "successive": None})
        for name, parameter in plain.model.named_parameters():
            assert torch.allclose(parameter, model.get_parameter(name), rtol=0, atol=1e-7), name


@pytest.mark.parametrize("aided", [True, False], ids=["memory_aided", "memory_free"])
def test_each_request_is_a_line_of_the_ledger(aided, tmp_path):
    """Of its own output folder; one by one and in batches, each time from the saved model and the state alone."""
    every = Dataset.from_list([*FORGET, *RETAIN])
    for name, batches in {"one by one": ([0], [1], [2], [3]), "in batches": ([0, 1], [2, 3])}.items():
        place, model, gone, lines = tmp_path / name, make_bert().double(), [], []
        for number, rows in enumerate(batches, 1):
            gone += rows
            left = every.select([row for row in range(len(every)) if row not in gone])
            settings = {**AIDED, "state": place / "state"} if aided else AIDED | {"successive": "memory_free"}
            asked = every.select(rows), left if number == 1 or not aided else None
            trainer = request(model, place / str(number), *asked, **settings)
            trainer.save_model(place / "model")
            after = weights(model)
            model = type(model).from_pretrained(place / "model", dtype=torch.float64)
            assert all(torch.equal(value, after[key]) for key, value in weights(model).items())
            trainer.save_model(place / "model")  # saved twice, and served once
            (line,) = (place / str(number) / "unlearning_log.jsonl").read_text().splitlines()
            lines.append(json.loads(line))
            assert lines[-1]["forget_rows"] == len(rows)
            assert lines[-1]["retain_rows"] == len(left)
            assert lines[-1].get("requests") == (number if aided else None)
            assert lines[-1].get("forgotten_rows") == (len(gone) if aided else None)
        for key in ("id", "request", "forget_sha256", "delta_sha256"):
            assert len({line[key] for line in lines}) == len(batches), key
        if aided:
            with pytest.raises(InputError, match="2 of 2 forget rows were forgotten by an earlier request"):
                request(model, place / "again", every.select([0, 3]), None, **settings)
            assert not (place / "again/unlearning_log.jsonl").exists()
    # Eq. 12: in whatever batches, the same model.
    if aided:
        alone = type(model).from_pretrained(tmp_path / "one by one/model", dtype=torch.float64)
        first = weights(make_bert().double())
        for key, value in weights(alone).items():
            gap, moved = (value - model.get_parameter(key)).norm(), (value - first[key]).norm()
            assert gap <= 1e-6 * max(moved, 1e-6), key


@pytest.fixture
def served(tmp_path):
    """A model after a request of the first row, and the state's folder."""
    model = make_bert()
    rest = Dataset.from_list([*RETAIN, *FORGET.select(range(1, 4))])
    request(model, tmp_path / "first", FORGET.select([0]), rest, state=tmp_path / "state", **AIDED)
    return model, tmp_path / "state"


def test_what_a_state_refuses(served, tmp_path):
    model, state = served
    before = weights(model)
    cases = [
        (FORGET.select([0]), model, {}, "1 of 1 forget rows were forgotten by an earlier request"),
        (FORGET.select([1, 1]), model, {}, "1 of 2 forget rows are not in the training set of the state .* is row 2"),
        (Dataset.from_list(head_rows("classes", 2, 9)), model, {}, "2 of 2 forget rows are not in the training set"),
        (FORGET.select([1]), make_bert(seed=3), {}, "the state is of another model"),
        (FORGET.select([1]), make_bert(intermediate_size=28), {}, "heads and filters are others"),
        (FORGET.select([1]), model, {"sparsity": 0.7}, "made with other settings .sparsity."),
        (
            FORGET.select([1]),
            model,
            {"wanda_sparsity": 0.5},
            "made with other settings",
        ),
        (Dataset.from_list([*RETAIN, *FORGET.select(range(1, 4))]), model, {}, "has all 17 rows that are left"),
        (Dataset.from_list([*RETAIN, *FORGET]), model, {}, "1 of 18 forget rows were forgotten by an earlier request"),
        (Dataset.from_list([*RETAIN, *RETAIN]), model, {}, "14 of 28 forget rows are not in the training set"),
    ]
    for number, (rows, given, changed, message) in enumerate(cases):
        with pytest.raises(InputError, match=message):
            request(given, tmp_path / str(number), rows, None, state=state, **{**AIDED, **changed})
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    request(model, tmp_path / "next", FORGET.select([1]), None, state=state, **AIDED)  # and is as it was


def test_a_request_whose_model_was_lost_is_made_again(served, tmp_path):
    model, state = served
    lost = copy.deepcopy(model)
    row = FORGET.select([1])
    request(model, tmp_path / "second", row, None, state=state, **AIDED)
    again = request(lost, tmp_path / "again", row, None, state=state, **AIDED)
    assert all(torch.equal(value, lost.get_parameter(name)) for name, value in model.named_parameters())
    assert again.method.account()["requests"] == 2
    with pytest.raises(InputError, match="forgotten by an earlier request"):
        request(lost, tmp_path / "third", row, None, state=state, **AIDED)


def test_a_damaged_state_is_refused(served, tmp_path):
    model, state = served
    for name in ("state_config.json", "state.safetensors", "fisher/curvature_config.json"):
        damaged = tmp_path / f"damaged {name.replace('/', ' ')}"
        shutil.copytree(state, damaged)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            request(model, tmp_path / "run", FORGET.select([1]), None, state=damaged, **AIDED)
        assert "\n" not in str(caught.value)


def test_parts_of_two_states_are_no_state(served, tmp_path):
    """Each is as it was saved, as after a copy that was cut short."""
    model, state = served
    before = shutil.copytree(state, tmp_path / "before")
    request(model, tmp_path / "second", FORGET.select([1]), None, state=state, **AIDED)
    for part in ("fisher", "state.safetensors"):
        mixed = shutil.copytree(state, tmp_path / f"mixed {part}")
        if part == "fisher":
            shutil.rmtree(mixed / part)
            shutil.copytree(before / part, mixed / part)
        else:
            shutil.copy(before / part, mixed / part)
        with pytest.raises(InputError, match="copy the folder again|is not what was saved"):
            request(model, tmp_path / f"third {part}", FORGET.select([2]), None, state=mixed, **AIDED)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sparsity": 1.0, "unlearning_rate": 1e-3}, "sparsity must be"),
        ({"sparsity": -0.1, "unlearning_rate": 1e-3}, "sparsity must be"),
        ({}, "exactly one of unlearning_rate and kl_budget"),
        ({"unlearning_rate": 1e-3, "kl_budget": 0.1}, "exactly one of unlearning_rate and kl_budget"),
        ({"unlearning_rate": 1e-3, "state": "x"}, "state and successive='memory_aided' go together"),
        ({"unlearning_rate": 1e-3, "successive": "memory_aided"}, "state and successive='memory_aided' go together"),
        (AIDED | {"state": "x", "importance": "random"}, "importance='random' is a control for single requests"),
        ({"unlearning_rate": 1e-3, "structures": ["neurons"]}, "structures"),
        ({"unlearning_rate": 1e-3, "mask_samples": 0}, "mask_samples must be"),
        (
            {"unlearning_rate": 1e-3, "mask_samples": 4, "successive": "memory_aided", "state": "absent"},
            "a state keeps the masks' sums of all rows",
        ),
        ({"unlearning_rate": 1e-3, "importance": "magnitude"}, "importance"),
        ({"update": "newton", "unlearning_rate": 1e-3}, "update"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SPEUnlearn(**settings)


def test_a_frozen_head_is_named(tmp_path):
    model = make_bert()
    model.bert.encoder.layer[0].attention.self.query.weight.requires_grad_(False)
    with pytest.raises(InputError, match="query.weight is frozen"):
        request(model, tmp_path, sparsity=0.0, unlearning_rate=1e-3)


def test_no_step_keeps_a_budget_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_unlearn.methods.spe.longest_within", lambda *_: None)
    model = make_bert()
    before = weights(model)
    with pytest.raises(LimitError, match="no step was found"):
        request(model, tmp_path, kl_rows=8, kl_budget=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize("kept", [1, 2])  # of a damping that is no longer the one at hand, and of the one that is
@pytest.mark.parametrize("search", [{"kl_budget": [1e-6, 1e-5]}, {"unlearning_rate": [1e-3, 1e-2]}])
def test_candidates_of_a_sweep_are_what_each_request_gives(search, kept, tmp_path):
    (name, values), dampings = *search.items(), [0.1, 1.0]
    seen = []

    def evaluate(model, tried):
        seen.append((dict(tried), weights(model)))
        return {}

    method = SPEUnlearn(**{name: values[0]}, sparsity=0.5)
    swept = make_bert()
    grid = search | {"damping": dampings}
    assert method.sweeps(grid) and not method.sweeps(grid | {"sparsity": [0.5]})
    trainer = make_trainer(swept, method, tmp_path / "all", FORGET, RETAIN, kl_rows=8)
    method.sweep_search(trainer, grid, evaluate, best=lambda rows: kept)
    assert [tried for tried, _ in seen] == [{"damping": d, name: value} for d in dampings for value in values]
    for number, (tried, found) in enumerate(seen):
        alone = request(make_bert(), tmp_path / str(number), kl_rows=8, sparsity=0.5, **tried)
        for key, value in weights(alone.model).items():
            moved = (found[key] - value).norm() / max((value - weights(make_bert())[key]).norm(), 1e-12)
            # A search for a length stops where the KL is within 15 % of the budget.
            assert moved < (0.2 if name == "kl_budget" else 1e-4)
    # The best of them stays, and is what the trainer says it did.
    assert all(torch.equal(value, seen[kept][1][key]) for key, value in weights(swept).items())
    assert (method.damping, getattr(method, name)) == [(0.1, values[1]), (1.0, values[0])][kept - 1]
    assert trainer.update_delta().tensors

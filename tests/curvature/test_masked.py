# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Masked curvature: rows and columns alone, against the dense blocks; biases; a diagonal less a part of its rows."""

import pytest
import torch
from accelerate import debug_launcher

from hf_unlearn.curvature import Curvature, Diagonal, make_curvature, plan
from hf_unlearn.curvature.capture import Capture
from hf_unlearn.errors import InputError
from tests.support.curvature import (
    KIND_NAMES,
    Counted,
    Stopping,
    assert_same,
    assert_same_solution,
    factors,
    fitted,
    launched,
    rows,
    same_bits,
    solved,
    tiny,
)
from tests.support.curvature_cases import CASES, dense, kept_places


PICKS = {0: [1, 3], 1: [0, 2, 3]}  # of the rows and of the columns


def mask_of(case, sides=("rows", "columns")):
    """Some rows of the first weight, some columns of the second, of the third both, and so on."""
    whole = make_curvature("identity").fit(
        case.model, case.batches, target_modules=case.target_modules, progress=False
    )
    kept = {}
    for place, name in enumerate(whole.names):
        sizes = whole.metadata["targets"][name]["kept"]
        index = [torch.tensor([one for one in PICKS[side] if one < size]) for side, size in enumerate(sizes)]
        kept[name] = [(index[0], None), (None, index[1]), tuple(index)][place % 3]
    return kept


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_masked_block_is_the_dense_one_restricted(case, kind):
    """The oracle is the dense Gauss-Newton block of the whole weight, of which the kept entries are cut out."""
    case = CASES[case]()
    kept = mask_of(case)
    curvature = make_curvature(kind).fit(case.model, case.batches, kept=kept, fisher="exact", progress=False)
    assert curvature.names == list(kept)
    for name in curvature.names:
        places = kept_places(curvature, name)
        assert 0 < len(places) < case.model.get_parameter(name).numel()
        found = dense(curvature, name)
        expected = case.block(name)[places][:, places]
        if kind == "diagonal":
            expected = torch.diag(expected.diagonal())
        elif kind == "identity":
            expected = torch.eye(len(places), dtype=torch.float64)
        if kind in ("diagonal", "identity") or case.kronecker:
            torch.testing.assert_close(found, expected, **case.close)
        # Solve and norm are those of the restricted block, in the places of the whole weight.
        shape = case.model.get_parameter(name).shape
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        damped = found + 1e-3 * torch.eye(len(places), dtype=torch.float64)
        step = torch.zeros(shape, dtype=torch.float64).flatten()
        step[places] = torch.linalg.solve(damped, g.flatten()[places])
        solution = curvature.solve({name: g}, 1e-3)[name]
        torch.testing.assert_close(solution.flatten(), step, rtol=1e-8, atol=1e-8)
        assert solution.count_nonzero() <= len(places)
        form = float(step[places] @ found @ step[places]) ** 0.5
        assert curvature.norm({name: solution}) == pytest.approx(form, rel=1e-8)
        assert curvature.norm({name: torch.where(solution == 0, 7.0, solution)}) == pytest.approx(form, rel=1e-8)
        assert curvature.spectrum(name)["size"] == len(places)


def test_ekfac_has_the_restricted_diagonal_in_its_own_basis():
    case = CASES["sequences"]()
    curvature = make_curvature("ekfac").fit(
        case.model, case.batches, kept=mask_of(case), fisher="exact", progress=False
    )
    for name in curvature.names:
        places, basis = kept_places(curvature, name), torch.kron(*reversed(curvature._both("vectors", name)))
        values = (basis.T @ case.block(name)[places][:, places] @ basis).diagonal()
        torch.testing.assert_close(curvature._eigenvalues(name).flatten(), values, **case.close)


LAST = "model.layers.3.mlp.{}.weight"
KEPT = {
    "model.layers.0.mlp.gate_proj.weight": (torch.tensor([7, 2, 11]), None),
    "model.layers.0.mlp.up_proj.weight": (torch.tensor([2, 7, 11]), None),
    "model.layers.0.mlp.down_proj.weight": (None, torch.tensor([2, 7, 11])),
    "model.layers.1.self_attn.o_proj.weight": (None, torch.arange(4)),
    LAST.format("gate_proj"): (torch.tensor([0, 4, 5, 9]), None),
    LAST.format("down_proj"): (torch.tensor([1]), torch.tensor([0, 4, 5, 9])),
    LAST.format("up_proj"): (torch.tensor([], dtype=torch.long), None),
}


@pytest.mark.parametrize("kind", ["diagonal", "ekfac"])
def test_what_is_not_kept_is_neither_hooked_nor_held(kind, monkeypatch):
    hooked, enter = [], Capture.__enter__

    def watched(capture):
        hooked.append(set(capture.targets))
        return enter(capture)

    monkeypatch.setattr(Capture, "__enter__", watched)
    curvature = fitted(kind, kept=KEPT)
    assert set(curvature.names) == set(KEPT) - {LAST.format("up_proj")} == set.union(*hooked)
    widest = {key: max(tensor.shape) for key, tensor in curvature.tensors.items() if "gate_proj" in key}
    assert max(widest.values()) == 8  # the inputs; of 12 rows there are 3 and 4
    with pytest.raises(InputError, match=r"up_proj.weight has no curvature: .* and a mask that keeps part of it"):
        curvature.solve({LAST.format("up_proj"): torch.ones(12, 8)}, 1.0)
    # gate and up of the first layer share their input whole; the masked input of down is its own.
    if kind == "ekfac":
        assert curvature.metadata["targets"]["model.layers.0.mlp.up_proj.weight"]["input"].endswith("gate_proj.weight")


def test_weights_that_keep_other_inputs_do_not_share_a_factor():
    kept = {
        LAST.format(end): (None, torch.arange(place, place + 2)) for place, end in enumerate(("gate_proj", "up_proj"))
    }
    together = factors(fitted("kfac", kept=kept))
    assert len(together) == 4
    for name, places in kept.items():
        for key, factor in factors(fitted("kfac", kept={name: places})).items():
            torch.testing.assert_close(together[key], factor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_masked_files_blocks_and_resume(kind, tmp_path):
    whole = fitted(kind, kept=KEPT, biases=True)
    loaded = Curvature.from_pretrained(whole.save_pretrained(tmp_path / "saved"), model=tiny())
    assert loaded.metadata == whole.metadata
    same = solved(loaded), solved(whole)
    assert same[0][1] == same[1][1] and all(torch.equal(step, same[1][0][name]) for name, step in same[0][0].items())
    if kind == "identity":
        return
    same_bits(whole, fitted(kind, kept=KEPT, max_factor_memory=3000))
    options = {"checkpoint_dir": tmp_path / "progress", "checkpoint_every": 2}
    with pytest.raises(OSError, match="stopped"):
        fitted(kind, kept=KEPT, data=Stopping(rows(), 6), **options)
    with Counted() as counted:
        same_bits(whole, fitted(kind, kept=KEPT, **options))
    assert counted.count == (7 - 4 + 7 if kind == "ekfac" else 7 - 4)
    # Another mask begins anew.
    with pytest.raises(OSError, match="stopped"):
        fitted(kind, kept=KEPT, data=Stopping(rows(), 6), **options)
    other = KEPT | {LAST.format("gate_proj"): (torch.tensor([0, 4, 5, 8]), None)}
    with Counted() as counted:
        same_bits(fitted(kind, kept=other), fitted(kind, kept=other, **options))
    assert counted.count == 2 * (14 if kind == "ekfac" else 7)


def test_a_plan_counts_what_a_masked_fit_holds():
    for kind in ("ekfac", "kfac", "diagonal"):
        curvature, costs = (
            fitted(kind, kept=KEPT),
            plan(tiny(), kind=kind, kept=KEPT, sequences=13, sequence_length=5),
        )
        held = sum(t.nbytes for key, t in curvature.tensors.items() if not key.startswith(("rows.", "columns.")))
        assert costs.factor_bytes == held < plan(tiny(), kind=kind, sequences=13, sequence_length=5).factor_bytes


def fit_and_save(folder):
    accelerator = launched(2)
    for kind in KIND_NAMES:
        curvature = fitted(kind, kept=KEPT, accelerator=accelerator)
        curvature.save_pretrained(folder / kind)
        again = Curvature.from_pretrained(folder / kind, accelerator=accelerator)
        torch.save((solved(curvature), solved(again)), folder / f"{kind}-{accelerator.process_index}.pt")
    part = fitted("diagonal", kept=KEPT, data=rows()[:3], fisher="empirical", accelerator=accelerator)
    rest = fitted("diagonal", kept=KEPT, fisher="empirical", accelerator=accelerator).minus(part)
    torch.save(solved(rest), folder / f"rest-{accelerator.process_index}.pt")


@pytest.mark.multi_process
def test_two_processes_share_a_masked_fit(tmp_path):
    debug_launcher(fit_and_save, (tmp_path,), num_processes=2)
    for kind in KIND_NAMES:
        alone = fitted(kind, kept=KEPT)
        together = factors(Curvature.from_pretrained(tmp_path / kind))
        for key, factor in factors(alone).items():
            assert (factor - together[key]).norm() <= 1e-6 * factor.norm(), key
        for rank in (0, 1):
            for solution in torch.load(tmp_path / f"{kind}-{rank}.pt"):
                assert_same_solution(solved(alone), solution)
    rest = fitted("diagonal", kept=KEPT, data=rows()[3:], fisher="empirical")
    for rank in (0, 1):
        assert_same_solution(solved(rest), torch.load(tmp_path / f"rest-{rank}.pt"), 1e-9)


def per_sample(case):
    """(1 / N) sum over samples of the squared gradient of each row's own loss, of every parameter: no hooks."""
    model, total = case.model, {}
    for row in range(len(case.columns["labels"])):
        model.zero_grad()
        model(**{name: column[row : row + 1] for name, column in case.columns.items()}).loss.backward()
        for name, parameter in model.named_parameters():
            total[name] = total.get(name, 0.0) + parameter.grad**2 / len(case.columns["labels"])
    model.zero_grad()
    return total


@pytest.mark.parametrize("case", ["bert", "vit"])
def test_weights_and_biases_are_squared_by_sample(case):
    """The empirical Fisher of SPE-Unlearn, eq. 3, of attention and MLP: each row's gradient through its own loss."""
    case = CASES[case]()
    every = r".*(query|key|value|[qkvo]_proj|dense|fc[12])"
    expected = per_sample(case)
    whole = Diagonal().fit(
        case.model, case.batches, target_modules=every, biases=True, fisher="empirical", progress=False
    )
    assert sum(name.endswith("bias") for name in whole.names) == len(whole.names) / 2 >= 6
    for name in whole.names:
        found = 1 / whole.solve({name: torch.ones_like(expected[name])}, 0.0)[name]
        seen = expected[name] > 1e-20  # a key's bias changes nothing
        torch.testing.assert_close(found[seen], expected[name][seen], rtol=1e-6, atol=1e-14)
    # Of a mask the biases that it names, and no others.
    weight = next(name for name in whole.names if name.endswith("weight"))
    bias = f"{weight.removesuffix('.weight')}.bias"
    places = torch.tensor([2, 0])
    kept = {weight: (places, None), bias: (places, None)}
    part = Diagonal().fit(case.model, case.batches, kept=kept, biases=True, fisher="empirical", progress=False)
    assert part.names == [weight, bias]
    for name in kept:
        cut = whole.tensors[f"eigenvalues.{name}"][places.sort().values]
        torch.testing.assert_close(part.tensors[f"eigenvalues.{name}"], cut, rtol=1e-9, atol=0)
    assert Diagonal().fit(case.model, case.batches, kept=kept, progress=False).names == [weight]


def test_a_diagonal_less_a_part_is_that_of_the_rest():
    """13 rows in batches of two: without the first six."""
    options = {"kept": KEPT, "fisher": "empirical"}
    whole, part = fitted("diagonal", **options), fitted("diagonal", data=rows()[:3], **options)
    rest, expected = whole.minus(part), fitted("diagonal", data=rows()[3:], **options)
    assert_same(expected, rest, 1e-10)
    for name in rest.names:
        assert rest.metadata["targets"][name]["largest"] == pytest.approx(expected.spectrum(name)["largest"])
    assert rest.metadata["data_sha256"] != whole.metadata["data_sha256"]
    # What rounding leaves below zero is zero: here the whole holds less than the part.
    for tensor in part.tensors.values():
        if tensor.is_floating_point():
            tensor.mul_(100)
    clamped = whole.minus(part)
    assert all((clamped._eigenvalues(name) >= 0).all() for name in clamped.names)


def test_what_cannot_be_taken_from_a_diagonal():
    def fit(data=None, kept=KEPT, fisher="empirical", model=None):
        return fitted("diagonal", kept=kept, fisher=fisher, data=data, model=model)

    whole, some = fit(), rows()[:3]
    other = tiny()
    other.model.layers[0].mlp.gate_proj.weight.data[0, 0] += 1
    shifted = KEPT | {LAST.format("gate_proj"): (torch.tensor([0, 4, 5, 8]), None)}
    with pytest.raises(InputError, match="differ in weights_sha256"):
        whole.minus(fit(some, model=other))
    with pytest.raises(InputError, match="differ in the mask"):
        whole.minus(fit(some, shifted))
    with pytest.raises(InputError, match="differ in kind or targets"):
        whole.minus(fit(some, None))
    with pytest.raises(InputError, match="differ in fisher"):
        whole.minus(fit(some, fisher="probe"))
    with pytest.raises(InputError, match="labels of a sampled Fisher are drawn anew"):
        fit(fisher="sampled").minus(fit(some, fisher="sampled"))
    with pytest.raises(InputError, match="a diagonal of 13 rows cannot be taken from one of 6"):
        fit(some).minus(whole)


def test_masks_of_other_models_are_refused():
    name = LAST.format("gate_proj")
    for kept, message in (
        ({"model.norm.weight": (None, None)}, "model.norm.weight, which is no weight or bias of a linear layer"),
        ({"model.layers.9.mlp.gate_proj.weight": (None, None)}, "layers.9.* no weight or bias"),
        ({name.replace("weight", "bias"): (None, None)}, "gate_proj.bias, which is no weight or bias"),
        ({name: (torch.tensor([12]), None)}, "rows of .* must be places from 0 to 11, each of them once"),
        ({name: (torch.tensor([1, 1]), None)}, "each of them once"),
        ({name: (None, torch.tensor([-1]))}, "columns of .* must be places from 0 to 7"),
        ({name: (torch.ones(12, dtype=torch.bool), None)}, r"rows of .* must be places in one dimension"),
        ({name: (torch.tensor([], dtype=torch.long), None)}, "keeps nothing of the weights"),
    ):
        with pytest.raises(InputError, match=message):
            fitted("diagonal", kept=kept)
    with pytest.raises(InputError, match="keeps nothing of the weights in target_modules"):
        fitted("diagonal", kept={name: (None, None)}, target_modules=["0.mlp.up_proj"])


def test_a_mask_that_keeps_all_is_none():
    every = {
        name: (torch.arange(about["kept"][0]).flip(0), None) for name, about in fitted().metadata["targets"].items()
    }
    masked = fitted(kept=every)
    assert not any(about["kept_sha256"] for about in masked.metadata["targets"].values())
    same_bits(fitted(), masked)

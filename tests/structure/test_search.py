# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Importances and swaps, against formulas written out and every mask there is."""

import itertools

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.structure import find_structures, mask_statistics
from hf_unlearn.structure.search import choose_mask, gradient_norms, objective, swap_round
from hf_unlearn.structure.statistics import summed_gradients
from tests.support.structures import CASES, causal_batch, decoder, rows_of


@pytest.fixture(scope="module")
def measured():
    case = decoder("Llama", hidden_size=16, intermediate_size=8)
    structures = find_structures(case.model)
    rows = rows_of(causal_batch(rows=10, seed=3))
    forget, retain = (mask_statistics(case.model, some, structures, blocks=True) for some in (rows[:3], rows[3:]))
    return structures, forget, retain, case.model, rows


def best_by_formula(structures, scores, count):
    """The `count` keys (site, number) of the highest scores."""
    flat = {(key, number): float(value) for key, one in scores.items() for number, value in enumerate(one)}
    return set(sorted(flat, key=flat.get)[-count:])


def kept_of(mask):
    return {(key, number) for key, one in mask.chosen.items() for number in one.nonzero()[:, 0].tolist()}


@pytest.mark.parametrize("sparsity, count", [(0.5, 11), (0.9, 2)])
def test_importances_are_those_of_the_paper(measured, sparsity, count):
    structures, forget, retain, *_ = measured
    assert structures.count() == 24
    formulas = {
        "mlr": {key: forget.gradients[key] + retain.squares[key] / 7 / 2 for key in structures.sites},  # eq. 8
        "mlf": {key: -(retain.gradients[key] + forget.squares[key] / 3 / 2) for key in structures.sites},  # eq. 18
        "fisher": {key: retain.squares[key] for key in structures.sites},  # eq. 13
    }
    for importance, scores in formulas.items():
        mask = choose_mask(structures, importance, sparsity, forget=forget, retain=retain, rearrange=False)
        assert kept_of(mask) == best_by_formula(structures, scores, count)
        assert mask.settings == {
            "importance": importance,
            "sparsity": sparsity,
            "structures": ["heads", "filters"],
            "swaps": None,
        }
        for kinds in (["heads"], ["filters"]):
            one = choose_mask(structures, importance, 0.5, kinds=kinds, forget=forget, retain=retain, rearrange=False)
            some = {key: value for key, value in scores.items() if key.startswith(kinds[0])}
            assert kept_of(one) == best_by_formula(structures, some, structures.count(kinds) // 2 - 1)
    masks = [choose_mask(structures, one, 0.5, forget=forget, retain=retain, rearrange=False) for one in formulas]
    assert len({mask.hash for mask in masks}) == 3


def test_norms_are_those_of_all_that_a_structure_owns():
    for name in ("llama", "gpt2", "phi3"):
        case = CASES[name]()
        structures = find_structures(case.model)
        weights = summed_gradients(case.model, [case.batch], structures.owners)
        norms = gradient_norms(structures, weights)
        for key, site in structures.sites.items():
            for structure in range(site.count):
                parts = [
                    weights[parameter].index_select(dim, index).square().sum()
                    for parameter, (dim, index) in site.owned(structure).items()
                ]
                assert torch.isclose(norms[key][structure], sum(parts).sqrt())
        mask = choose_mask(structures, "norm", 0.6, weights=weights)
        assert kept_of(mask) == best_by_formula(structures, norms, mask.count) and mask.settings["swaps"] is None


def problem(n, seed, rows=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    vectors = draw(rows or 2 * n, n)
    return draw(n), vectors.T @ vectors / len(vectors), draw(n)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_swap_never_makes_the_objective_worse(sign):
    swapped = 0
    for seed in range(60):
        n = 4 + seed % 17
        linear, block, scores = problem(n, seed, rows=3)
        block = sign * block
        for count in {1, n // 2, n - 1}:
            kept = torch.zeros(n, dtype=torch.bool)
            kept[scores.argsort(descending=True)[:count]] = True
            found, swaps = swap_round(linear, block, scores, kept)
            before, after = objective(linear, block, kept), objective(linear, block, found)
            assert int(found.sum()) == count and swaps <= count
            assert after < before if swaps else after == before
            swapped += swaps
    assert swapped > 100


def test_swaps_come_near_the_best_of_all_masks():
    """Oracle: every mask of its size. From the scores of eq. 8 most rounds end at the best, all much nearer to it."""
    best, gaps = 0, []
    for seed in range(40):
        n, count = 10, 4
        linear, block, _ = problem(n, seed)
        linear = 0.3 * linear
        scores = linear + block.diagonal() / 2
        kept = torch.zeros(n, dtype=torch.bool)
        kept[scores.argsort(descending=True)[:count]] = True
        values = []
        for chosen in itertools.combinations(range(n), count):
            one = torch.zeros(n, dtype=torch.bool)
            one[list(chosen)] = True
            frozen = (~one).double()
            values.append(float(frozen @ linear + frozen @ block @ frozen / 2))
        found, _ = swap_round(linear, block, scores, kept)
        start, end = objective(linear, block, kept), objective(linear, block, found)
        assert min(values) - 1e-12 <= end <= start
        best += end < min(values) + 1e-12
        gaps.append((end - min(values)) / max(start - min(values), 1e-12) if start > min(values) + 1e-12 else 0)
    assert best >= 20 and sum(gaps) / len(gaps) < 0.2


def test_one_structure_is_swapped_for_the_best():
    """With one kept structure a round tries all: it ends at the best mask."""
    for seed in range(20):
        linear, block, scores = problem(8, seed)
        kept = torch.zeros(8, dtype=torch.bool)
        kept[seed % 8] = True
        found, _ = swap_round(linear, block, scores, kept)
        values = [objective(linear, block, torch.arange(8) == number) for number in range(8)]
        assert int(found.nonzero()) == min(range(8), key=values.__getitem__)


@pytest.mark.parametrize("importance", ["mlr", "mlf", "fisher"])
def test_swaps_stay_within_a_site_and_lower_its_objective(measured, importance):
    structures, forget, retain, *_ = measured
    plain, swapped = (
        choose_mask(structures, importance, 0.5, forget=forget, retain=retain, rearrange=rearrange)
        for rearrange in (False, True)
    )
    sign = -1 if importance == "mlf" else 1
    linear, products = (retain, forget) if importance == "mlf" else (forget, retain)
    changed = 0
    for key in structures.sites:
        before, after = (
            objective(sign * linear.gradients[key], sign * products.block(key), mask.chosen[key])
            for mask in (plain, swapped)
        )
        assert after <= before and swapped.chosen[key].sum() == plain.chosen[key].sum()
        changed += not torch.equal(swapped.chosen[key], plain.chosen[key])
    assert (changed > 0) == (swapped.settings["swaps"] > 0) and plain.settings["swaps"] is None
    assert changed or importance == "mlr"


def test_eq_13_needs_no_forget_rows(measured):
    structures, forget, retain, *_ = measured
    alone = choose_mask(structures, "fisher", 0.5, retain=retain)
    aided = choose_mask(structures, "fisher", 0.5, retain=retain, forget=forget)
    assert alone.count == aided.count == 11
    for key in structures.sites:
        nothing = torch.zeros(structures.sites[key].count)
        plain = choose_mask(structures, "fisher", 0.5, retain=retain, rearrange=False).chosen[key]
        assert objective(nothing, retain.block(key), alone.chosen[key]) <= objective(nothing, retain.block(key), plain)


def test_a_sparsity_of_zero_keeps_all_and_a_high_one_keeps_one(measured):
    structures, forget, retain, *_ = measured
    assert choose_mask(structures, "mlr", 0, forget=forget, retain=retain).sparsity == 0
    assert choose_mask(structures, "mlr", 0.999, forget=forget, retain=retain).count == 1


def test_what_cannot_be_chosen_is_one_line(measured):
    structures, forget, retain, model, rows = measured
    both = {"forget": forget, "retain": retain}
    with pytest.raises(InputError, match="importance is 'mrl': choose one of mlr, mlf, fisher, norm"):
        choose_mask(structures, "mrl", 0.5, **both)
    with pytest.raises(InputError, match="sparsity is 1.0"):
        choose_mask(structures, "mlr", 1.0, **both)
    with pytest.raises(InputError, match="each of heads and filters may stand once"):
        choose_mask(structures, "mlr", 0.5, kinds=["layers"], **both)
    for importance in ("mlr", "mlf", "fisher"):
        with pytest.raises(InputError, match="needs the statistics of masks on forget and on retain rows"):
            choose_mask(structures, importance, 0.5, forget=forget if importance != "mlf" else None)
    with pytest.raises(InputError, match="norm' needs the gradients of weights"):
        choose_mask(structures, "norm", 0.5, **both)
    with pytest.raises(InputError, match="has no gradient"):
        choose_mask(structures, "norm", 0.5, weights={})
    flat = mask_statistics(model, rows, structures)
    with pytest.raises(InputError, match="swaps need products within layers: .* blocks=True"):
        choose_mask(structures, "mlr", 0.5, forget=forget, retain=flat)
    choose_mask(structures, "mlr", 0.5, forget=forget, retain=flat, rearrange=False)

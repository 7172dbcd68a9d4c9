# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Wanda within a mask, against products written out for every row alone."""

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.structure import StructureMask, find_structures
from hf_unlearn.structure.wanda import input_norms, refine
from tests.support.structures import CASES, bert, rows_of


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "opt", "vit"])
def test_the_elements_kept_are_those_that_act_most(name):
    case = CASES[name]()
    structures = find_structures(case.model)
    mask = StructureMask.random(structures, 0.6, seed=1)
    found = refine(case.model, [case.batch], mask, 0.75)
    transposed = {"gpt2"}
    # Inputs of each layer, from transformers' own forward of each row without padding.
    inputs = {}
    for place, module in case.model.named_modules():
        if f"{place}.weight" in structures.owners:
            keep = lambda one, args, place=place: inputs.setdefault(place, []).append(args[0].flatten(0, -2))
            module.register_forward_pre_hook(keep)
    with torch.no_grad():
        for row in rows_of(case.batch):
            case.model(**row)
    checked = 0
    for parameter in mask.names:
        tensor = case.model.get_parameter(parameter).detach()
        whole = mask.element_mask(parameter).expand_as(tensor)
        if parameter.endswith("bias"):
            assert torch.equal(found.element_mask(parameter).expand_as(tensor), whole)
            continue
        norm = torch.cat(inputs[parameter.removesuffix(".weight")]).norm(dim=0)
        scores = tensor.abs() * (norm[:, None] if name in transposed else norm[None])
        kept = found.element_mask(parameter)
        count = int(whole.sum())
        assert 0.2 * count <= kept.sum() < 0.25 * count or kept.sum() == 1
        assert not (kept & ~whole).any() and scores[kept].min() >= scores[whole & ~kept].max()
        checked += 1
    assert checked > 4 and found.share < 0.3 * mask.share + 0.1 and found.chosen.keys() == mask.chosen.keys()
    assert found.settings == {**mask.settings, "wanda_sparsity": 0.75}


def test_nothing_refined_is_the_mask_itself():
    case = bert()
    structures = find_structures(case.model)
    mask = StructureMask.random(structures, 0.6, seed=1)
    same = refine(case.model, [case.batch], mask, 0)
    assert same.share == mask.share
    tiny = refine(case.model, [case.batch], mask, 0.9999)
    assert all(int(tiny.elements[name].sum()) == 1 for name in tiny.elements)


def test_norms_do_not_depend_on_batches_and_weights_stay_as_they_are():
    case = bert()
    structures = find_structures(case.model)
    weights = [name for name in structures.owners if name.endswith(".weight")]
    whole = input_norms(case.model, [case.batch], structures, weights)
    single = input_norms(case.model, rows_of(case.batch), structures, weights)
    assert all(torch.allclose(whole[name], single[name]) for name in weights)
    assert not any(module._forward_pre_hooks for module in case.model.modules())
    assert all(parameter.requires_grad for parameter in case.model.parameters())


@pytest.mark.parametrize("sparsity", [1.0, -1, "half"])
def test_a_sparsity_out_of_range_is_refused_before_the_pass(sparsity):
    case = bert()
    mask = StructureMask.random(find_structures(case.model), 0.6, seed=1)
    with pytest.raises(InputError, match="sparsity is"):
        refine(case.model, None, mask, sparsity)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Masks over heads and filters: what they keep, their sizes, their files, and what is refused."""

import json
import math

import pytest
import torch

from hf_unlearn.errors import InputError
from hf_unlearn.runtime.files import read_tensors, write_safetensors
from hf_unlearn.structure import StructureMask, find_structures
from hf_unlearn.structure.mask import highest, kept_count, read_mask
from tests.support.structures import CASES, bert, decoder


@pytest.fixture(scope="module")
def structures():
    return find_structures(bert().model)


def chosen_of(structures, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(site.count, generator=generator) < 0.4 for key, site in structures.sites.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen3", "phi3"])
def test_what_is_kept_is_the_union_of_what_the_chosen_own(name):
    model = CASES[name]().model
    structures = find_structures(model)
    chosen = chosen_of(structures)
    mask = StructureMask(structures, chosen)
    expected = {key: torch.zeros_like(parameter, dtype=torch.bool) for key, parameter in model.named_parameters()}
    for key, site in structures.sites.items():
        for structure in chosen[key].nonzero()[:, 0].tolist():
            for parameter, (dim, index) in site.owned(structure).items():
                expected[parameter].index_fill_(dim, index, True)
    from transformers.pytorch_utils import Conv1D

    transposed = {f"{place}.weight" for place, one in model.named_modules() if isinstance(one, Conv1D)}
    for parameter, tensor in model.named_parameters():
        whole = expected[parameter]
        assert torch.equal(mask.element_mask(parameter).expand_as(tensor), whole)
        assert torch.equal(mask.apply_(parameter, tensor.detach().clone()), tensor * whole)
        assert (parameter in mask.names) == bool(whole.any())
        # Rows are outputs and columns inputs, whichever way the weight is stored.
        turned = tensor.T if parameter in transposed else tensor
        rows, columns = mask.rows(parameter), mask.columns(parameter)
        part = turned if rows is None else turned[rows]
        if tensor.dim() == 2:
            part = part if columns is None else part[:, columns]
        elif parameter in structures.owners:
            assert columns is None
        selected = mask.select(parameter, tensor)
        if parameter in structures.owners:
            assert torch.equal(part, selected.T if parameter in transposed else selected)
        assert selected.numel() == whole.sum()
        assert torch.equal(mask.scatter(parameter, selected), tensor * whole)
    assert mask.share == sum(int(one.sum()) for one in expected.values()) / sum(map(torch.numel, model.parameters()))
    total = sum(map(len, chosen.values()))
    assert mask.sparsity == 1 - sum(int(one.sum()) for one in chosen.values()) / total


def test_gradients_that_are_not_finite_do_not_pass(structures):
    mask = StructureMask.random(structures, 0.5, seed=0)
    name = mask.names[0]
    gradient = torch.full(structures.shapes[name], float("nan"))
    assert mask.apply_(name, gradient).isnan().sum() == mask.element_mask(name).expand_as(gradient).sum()
    assert (gradient == 0).any()


def test_nothing_kept_and_all_kept(structures):
    mask = StructureMask.all(structures, ["heads"])
    assert mask.sparsity == 0 and set(mask.chosen) == {"heads.0", "heads.1"}
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    assert mask.rows(weight) is None and mask.columns(weight) is None
    for name in ("bert.encoder.layer.0.intermediate.dense.weight", "classifier.weight", "classifier.bias"):
        assert mask.rows(name).tolist() == [] and name not in mask.names
        assert mask.apply_(name, torch.ones(structures.shapes[name])).count_nonzero() == 0
    everything = StructureMask.all(structures)
    assert set(everything.names) == set(structures.owners)


@pytest.mark.parametrize("total, sparsity", [(100, 0.9), (10, 0.5), (3, 0.5), (36864, 0.95), (1000, 0.001), (7, 0.99)])
def test_as_many_are_kept_as_equation_4_allows(total, sparsity):
    count = kept_count(total, sparsity)
    below = lambda n: n * 1000 < (1000 - round(1000 * sparsity)) * total
    assert count == 1 or below(count)
    assert not below(count + 1)
    assert kept_count(total, 0) == kept_count(total, 0.0) == total


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, float("nan"), True, "0.9", None])
def test_a_sparsity_out_of_range_is_refused(sparsity, structures):
    with pytest.raises(InputError, match="sparsity is .* from 0 to below 1"):
        StructureMask.random(structures, sparsity, seed=0)


def test_one_structure_leaves_nothing_to_choose():
    with pytest.raises(InputError, match="there is 1 structure, so there is nothing to choose"):
        kept_count(1, 0.5)


@pytest.mark.parametrize("kinds", [[], ["neurons"], ["heads", "heads"], "head"])
def test_unknown_kinds_are_refused(kinds, structures):
    with pytest.raises(InputError, match="each of heads and filters may stand once"):
        StructureMask.random(structures, 0.5, seed=0, kinds=kinds)


def test_random_masks_have_their_size_and_a_seed(structures):
    mask = StructureMask.random(structures, 0.75, seed=1)
    assert mask.count == math.ceil(0.25 * 56) - 1
    assert mask.hash == StructureMask.random(structures, 0.75, seed=1).hash
    assert mask.hash != StructureMask.random(structures, 0.75, seed=2).hash
    counts = torch.zeros(56)
    for seed in range(200):
        counts += torch.cat(list(StructureMask.random(structures, 0.75, seed).chosen.values()))
    assert counts.min() > 0.5 * counts.mean() and counts.max() < 1.6 * counts.mean()
    filters = StructureMask.random(structures, 0.75, seed=1, kinds=["filters"])
    assert set(filters.chosen) == {"filters.0", "filters.1"} and filters.count == 11


@pytest.mark.parametrize("sparsity, kinds", [(0.5, ["heads", "filters"]), (0.9, ["filters"]), (0, ["heads"])])
def test_an_even_mask_keeps_the_same_share_of_every_layer(structures, sparsity, kinds):
    mask = StructureMask.even(structures, sparsity, kinds)
    total = structures.count(kinds)
    assert mask.count == kept_count(total, sparsity) and mask.kinds == tuple(kinds)
    for key, chosen in mask.chosen.items():
        assert abs(int(chosen.sum()) - mask.count / total * len(chosen)) < 1, key
        gaps = chosen.nonzero()[:, 0].diff()
        assert not len(gaps) or int(gaps.max()) - int(gaps.min()) <= 1


def test_a_shuffled_mask_keeps_as_many_heads_and_filters(structures):
    mask = StructureMask.random(structures, 0.5, seed=0)
    other = mask.shuffled(seed=0)
    kept = lambda one, kind: sum(int(chosen.sum()) for key, chosen in one.chosen.items() if key.startswith(kind))
    assert kept(other, "heads") == kept(mask, "heads") and kept(other, "filters") == kept(mask, "filters")
    assert other.hash != mask.hash and other.share == mask.share
    assert other.settings == {"importance": "shuffled", "seed": 0, "of": mask.hash}


def test_highest_takes_the_first_of_equals():
    found = highest({"a": torch.tensor([1.0, 2.0, 1.0]), "b": torch.tensor([1.0, 3.0])}, 3)
    assert found["a"].tolist() == [True, True, False] and found["b"].tolist() == [False, True]


def test_a_mask_of_no_structure_or_of_others_is_refused(structures):
    none = {key: torch.zeros(site.count, dtype=torch.bool) for key, site in structures.sites.items()}
    with pytest.raises(InputError, match="keeps no head and no filter"):
        StructureMask(structures, none)
    with pytest.raises(InputError, match="5 structures at heads.1, the model has 4"):
        StructureMask(structures, {"heads.1": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(InputError, match="3 structures at heads.9, the model has no"):
        StructureMask(structures, {"heads.9": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(InputError, match="its entries of classifier.weight do not fit"):
        StructureMask(structures, chosen_of(structures), {"classifier.weight": torch.ones(3, 16)})


def test_single_elements_are_kept_within_what_is_chosen(structures):
    mask = StructureMask(structures, chosen_of(structures))
    elements = {
        name: torch.rand(mask.select(name, torch.ones(structures.shapes[name])).shape) < 0.3 for name in mask.names
    }
    finer = StructureMask(structures, mask.chosen, elements)
    for name in mask.names:
        ones = torch.ones(structures.shapes[name])
        assert torch.equal(finer.apply_(name, ones.clone()), mask.scatter(name, elements[name].float()))
        assert torch.equal(finer.element_mask(name), mask.scatter(name, elements[name]))
    kept = sum(int(one.sum()) for one in elements.values())
    assert finer.share == kept / sum(map(math.prod, structures.shapes.values())) < mask.share
    assert finer.sparsity == mask.sparsity and finer.hash != mask.hash


def test_what_is_saved_is_what_is_loaded(structures, tmp_path):
    model = bert().model
    chosen = StructureMask.random(structures, 0.8, seed=3, kinds=["filters"])
    name = chosen.names[0]
    elements = {name: chosen.select(name, torch.rand(structures.shapes[name])) < 0.5}
    mask = StructureMask(structures, chosen.chosen, elements, {"importance": "mlr", "sparsity": 0.8})
    assert mask.save_pretrained(tmp_path / "mask") == tmp_path / "mask"
    loaded = StructureMask.from_pretrained(tmp_path / "mask", model)
    assert loaded.hash == mask.hash and loaded.settings == mask.settings
    assert (loaded.sparsity, loaded.share) == (mask.sparsity, mask.share)
    assert torch.equal(loaded.element_mask(name), mask.element_mask(name))
    chosen.save_pretrained(tmp_path / "mask")  # in its place
    assert StructureMask.from_pretrained(tmp_path / "mask", model).hash == chosen.hash


def test_a_mask_of_another_model_is_refused(structures, tmp_path):
    StructureMask.random(structures, 0.5, seed=0).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="of another model: heads.0 is 4 at bert.*, and 4 at model.layers.0"):
        StructureMask.from_pretrained(tmp_path, decoder("Llama").model)
    with pytest.raises(InputError, match="of another model: other layers, or other shapes of weights"):
        StructureMask.from_pretrained(tmp_path, wider())


def wider():
    """As many heads and filters as `bert`, on a wider stream."""
    model = bert().model
    for layer in model.bert.encoder.layer:
        layer.output.dense = torch.nn.Linear(24, 20)
    return model


@pytest.mark.parametrize("damage", ["hash", "bits", "count", "dtype", "format", "gone"])
def test_a_damaged_mask_is_one_line(damage, structures, tmp_path):
    StructureMask.random(structures, 0.5, seed=0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "mask_config.json").read_text())
    tensors = read_tensors(tmp_path / "mask.safetensors")
    if damage == "hash":
        config["sparsity"] = 0.1
    elif damage == "format":
        config["format"] = 7
    elif damage == "count":
        config["sites"]["heads.0"]["count"] = 9
    elif damage == "bits":
        tensors["chosen.heads.0"] = ~tensors["chosen.heads.0"]
    elif damage == "dtype":
        tensors["chosen.heads.0"] = tensors["chosen.heads.0"].float()
    write_safetensors(tmp_path / "mask.safetensors", tensors)
    (tmp_path / "mask_config.json").write_text(json.dumps(config))
    if damage == "gone":
        (tmp_path / "mask.safetensors").unlink()
    with pytest.raises(InputError) as raised:
        read_mask(tmp_path)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(InputError, match="holds no mask_config.json"):
        read_mask(tmp_path.parent)

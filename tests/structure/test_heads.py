# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What heads and filters own, against the model without them: what a structure owns is what its output needs."""

import pytest
import torch
from torch import nn

from hf_unlearn.errors import InputError
from hf_unlearn.structure import Filters, Heads, Layout, find_structures
from tests.support.models import make_experts
from tests.support.structures import CASES, build, logits, masked


@pytest.mark.parametrize("name", CASES)
def test_every_entry_of_the_projections_belongs_to_one_structure_or_one_group(name):
    from transformers.pytorch_utils import Conv1D

    case = CASES[name]()
    structures = find_structures(case.model)
    assert [site.count for site in structures.sites.values()] == [case.heads, case.filters] * case.layers
    assert [site.key for site in structures.sites.values()] == ["heads.0", "filters.0", "heads.1", "filters.1"]

    parameters = dict(case.model.named_parameters())
    owners = {parameter: torch.zeros_like(tensor) for parameter, tensor in parameters.items()}
    for site in structures.sites.values():
        for structure in range(site.count):
            for parameter, (dim, index) in site.owned(structure).items():
                assert len(index)
                owners[parameter].index_add_(dim, index, torch.ones_like(owners[parameter].index_select(dim, index)))
    owned = {parameter for parameter, count in owners.items() if count.any()}
    shared = {parameter for parameter in owned if owners[parameter].max() > 1}
    assert owned | set(structures.unowned) == set(parameters) and not owned & set(structures.unowned)
    for parameter in owned - shared:
        assert (owners[parameter] == 1).all(), parameter
    if case.group == 1:
        assert not shared
    else:  # keys and values, alone or behind the queries of one module for all
        assert shared and all(set(owners[one].unique().tolist()) <= {1, case.group} for one in shared)
        keys = [one for one in shared if "k_proj" in one or "v_proj" in one or "qkv_proj" in one]
        assert len(keys) == len(shared)

    inside = [one for one in case.model.modules() if isinstance(one, nn.ModuleList) and len(one) == case.layers]
    matrices = {module for layers in inside for module in layers.modules() if isinstance(module, nn.Linear | Conv1D)}
    places = {f"{place}.weight" for place, module in case.model.named_modules() if module in matrices}
    assert places == {parameter for parameter in owned if parameter.endswith("weight")}


@pytest.mark.parametrize("name", CASES)
def test_without_its_weights_a_structure_is_masked(name):
    case = CASES[name]()
    structures = find_structures(case.model)
    generator = torch.Generator().manual_seed(0)
    whole = logits(case.model, case.batch)
    # Whole groups, so that what they own is theirs alone.
    gone = {}
    for key, site in structures.sites.items():
        size = case.group if site.kind == "heads" else 1
        gone[key] = (torch.rand(site.count // size, generator=generator) < 0.5).repeat_interleave(size)
    with masked(case.model, structures, {key: (~one).double() for key, one in gone.items()}):
        expected = logits(case.model, case.batch)
    assert (expected - whole).abs().max() > 1e-3 * whole.abs().max()  # a mask that changes nothing shows nothing
    with torch.no_grad():
        for key, site in structures.sites.items():
            for structure in gone[key].nonzero()[:, 0].tolist():
                for parameter, (dim, index) in site.owned(structure).items():
                    case.model.get_parameter(parameter).index_fill_(dim, index, 0)
    assert torch.allclose(logits(case.model, case.batch), expected, rtol=1e-9, atol=1e-9)


def test_what_belongs_to_no_structure_is_named():
    case = CASES["qwen3"]()
    unowned = find_structures(case.model).unowned
    assert "model.layers.0.self_attn.q_norm.weight" in unowned and "model.layers.1.self_attn.k_norm.weight" in unowned
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(unowned)
    unowned = find_structures(CASES["bert"]().model).unowned
    assert {"bert.encoder.layer.1.output.dense.bias", "bert.pooler.dense.weight", "classifier.weight"} <= set(unowned)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.width = 4
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(8, 8) for _ in range(4))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.up, self.down = Attention(), nn.Linear(8, 12), nn.Linear(12, 8)


def own_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Block(), Block())


OWN = Layout(Heads("mix.wo", ("mix.wq", "mix.wk", "mix.wv"), size="width"), Filters("down", ("up",)))


def test_a_model_of_ones_own_is_described():
    with pytest.raises(InputError, match="Sequential has no layer .* layout=Layout"):
        find_structures(own_model())
    structures = find_structures(own_model(), OWN)
    assert [(site.module, site.count, site.width) for site in structures.sites.values()] == [
        ("1.mix.wo", 2, 4),
        ("1.down", 12, 1),
        ("2.mix.wo", 2, 4),
        ("2.down", 12, 1),
    ]
    assert {name: (dim, index.tolist()) for name, (dim, index) in structures.sites["heads.1"].owned(1).items()} == {
        **{f"2.mix.{one}.{what}": (0, [4, 5, 6, 7]) for one in ("wq", "wk", "wv") for what in ("weight", "bias")},
        "2.mix.wo.weight": (1, [4, 5, 6, 7]),
    }
    filters = find_structures(own_model(), Layout(None, OWN.filters))
    assert list(filters.sites) == ["filters.0", "filters.1"] and "1.mix.wq.weight" in filters.unowned


def test_what_cannot_be_split_is_refused_by_name():
    wrong = Layout(Heads("mix.wo", ("mix.wq", "mix.wk", "mix.wv"), size="head_dim"), None)
    with pytest.raises(InputError, match="Attention of layer 0 has no head_dim"):
        find_structures(own_model(), wrong)
    model = own_model()
    model[1].mix.width = 3
    with pytest.raises(InputError, match=r"1\.mix\.wq.* have 8 \+ 8 \+ 8 rows .* not 2 heads of 3"):
        find_structures(model, OWN)
    model = own_model()
    model[2].up = nn.Linear(8, 18)
    with pytest.raises(InputError, match=r"2\.up have 18 rows and 2\.down has 12 columns"):
        find_structures(model, OWN)
    model = own_model()
    model[2].mix.wq.weight = model[1].mix.wk.weight
    with pytest.raises(InputError, match=r"1\.mix\.wk\.weight and 2\.mix\.wq\.weight are one tensor"):
        find_structures(model, OWN)
    model = own_model()
    model[1].up = nn.Identity()
    with pytest.raises(InputError, match=r"1\.up is a Identity, not a linear layer"):
        find_structures(model, OWN)


def test_adapters_experts_and_unknown_layers_are_refused():
    from peft import LoraConfig, get_peft_model
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    case = CASES["llama"]()
    with pytest.raises(InputError, match="without an adapter: merge_and_unload"):
        find_structures(get_peft_model(case.model, LoraConfig(r=2, target_modules=["q_proj"])))
    for kind in ("mixtral", "qwen2"):
        with pytest.raises(InputError, match=r"layers\.0\.mlp\.experts.* of routed experts"):
            find_structures(make_experts(kind))
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="T5ForConditionalGeneration has no layer"):
        find_structures(build(T5ForConditionalGeneration, config))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=20, **sizes, is_decoder=True, add_cross_attention=True)
    with pytest.raises(InputError, match=r"crossattention\.self\.query\.weight in a layer .* is not known"):
        find_structures(build(BertLMHeadModel, config))


def test_a_layer_of_another_kind_among_known_ones_is_refused():
    from transformers.modeling_layers import GradientCheckpointingLayer

    class Strange(GradientCheckpointingLayer):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(16, 16)

    model = CASES["llama"]().model
    model.model.layers.append(Strange())
    with pytest.raises(InputError, match=r"model\.layers\.2 \(Strange\) is a layer that is not known"):
        find_structures(model)

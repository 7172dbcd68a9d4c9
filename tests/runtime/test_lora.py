# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel

from hf_unlearn.errors import InputError
from hf_unlearn.runtime.lora import low_rank, save_lora
from tests.support.models import make_llama


def make_gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False)).eval()


LLAMA = ["model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight"]
GPT2 = ["transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight", "lm_head.weight"]


def changes(model, names):
    generator = torch.Generator().manual_seed(1)
    state = model.state_dict()
    return {name: 0.05 * torch.randn(state[name].shape, generator=generator) for name in names}


def added(model, tensors):
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).add_(tensor)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


def test_factors_are_the_best_of_their_rank_and_keep_the_energy_asked_for():
    matrix = torch.randn(12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = torch.linalg.svdvals(matrix).square()
    for energy in (0.3, 0.9, 0.97):
        b, a, lost = low_rank(matrix, energy)
        rank = a.shape[0]
        assert values[: rank - 1].sum() < energy * values.sum() <= values[:rank].sum()
        gone = (matrix - (b @ a).double()).square().sum()
        assert float(gone) == pytest.approx(float(values[rank:].sum()), rel=1e-4) == pytest.approx(lost, rel=1e-4)


def test_energy_one_needs_no_more_than_the_true_rank():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(40, 3, generator=generator) @ torch.randn(3, 30, generator=generator)
    b, a, lost = low_rank(matrix, 1.0)
    assert a.shape[0] == 3 and lost == 0.0
    torch.testing.assert_close(b @ a, matrix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make, names", [(make_llama, LLAMA), (make_gpt2, GPT2)])
def test_the_adapter_on_the_base_is_base_plus_update_and_loses_what_it_says(tmp_path, make, names):
    tensors = changes(make(), names)
    report = save_lora(tensors, make().to("meta"), tmp_path / "whole", energy=1.0)
    assert report["lost"] == 0.0 and report["left_out"] == []
    want = logits(added(make().eval(), tensors))
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(make(), tmp_path / "whole").eval()), want, atol=1e-4, rtol=0
    )

    report = save_lora(tensors, make(), tmp_path / "most", energy=0.8)
    merged = PeftModel.from_pretrained(make(), tmp_path / "most").merge_and_unload()
    base = make().state_dict()
    total = sum(float(tensor.double().square().sum()) for tensor in tensors.values())
    gone = sum(
        float((merged.get_parameter(name) - base[name] - tensor).double().square().sum())
        for name, tensor in tensors.items()
    )
    assert gone / total == pytest.approx(report["lost"], rel=1e-3) and 0.1 < report["lost"] <= 0.2


def test_what_lora_cannot_hold_counts_as_lost_or_is_refused(tmp_path):
    model = make_llama()
    norm = "model.norm.weight"
    tensors = changes(model, LLAMA[:1]) | {norm: torch.full_like(model.get_parameter(norm), 1e-3)}
    report = save_lora(tensors, model, tmp_path / "most", energy=0.9)
    assert report["left_out"] == [norm] and report["lost"] <= 0.1
    with pytest.raises(InputError, match="model.norm.weight.* % of the update.*at most"):
        save_lora(tensors, model, tmp_path / "all", energy=1.0)
    assert not (tmp_path / "all").exists()


def test_bad_input_is_one_line(tmp_path):
    model = make_llama()
    tensors = changes(model, LLAMA[:1])
    with pytest.raises(InputError, match="energy=1.5"):
        save_lora(tensors, model, tmp_path / "a", energy=1.5)
    with pytest.raises(InputError, match="no other.weight"):
        save_lora({"other.weight": torch.ones(2, 2)}, model, tmp_path / "a", energy=0.9)
    with pytest.raises(InputError, match="zero"):
        save_lora({LLAMA[0]: torch.zeros_like(tensors[LLAMA[0]])}, model, tmp_path / "a", energy=0.9)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("mine")
    with pytest.raises(InputError, match="not an empty folder"):
        save_lora(tensors, model, tmp_path / "b", energy=0.9)
    tied = make_llama(tie_word_embeddings=True)
    with pytest.raises(InputError, match="embed_tokens.weight and lm_head.weight are one tied weight"):
        save_lora(changes(tied, LLAMA[1:2]), tied, tmp_path / "a", energy=0.9)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from hf_unlearn.deltas import UpdateDelta, delta_config, transfer, update
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.runtime.checkpoints import base_tensors
from hf_unlearn.runtime.files import sha256_tensor
from tests.support.deltas import DOWN, GATE, change, checkpoint
from tests.support.models import make_llama


def test_between_holds_what_changed_and_apply_restores_it(tiny_llama):
    base = tiny_llama()
    # Powers of two add without rounding, so base + (unlearned - base) is exact and bits can be compared.
    unlearned = copy.deepcopy(base)
    with torch.no_grad():
        for model in (base, unlearned):
            for name in (DOWN, GATE):
                model.get_parameter(name).copy_(model.get_parameter(name).mul(2**12).round() / 2**12)
        for name in (DOWN, GATE):
            unlearned.get_parameter(name).add_(2.0**-8)
    delta = UpdateDelta.between(base, unlearned, base_model="org/base", method="KFade", settings={"step": 1}, seed=3)
    assert set(delta.tensors) == {DOWN, GATE}
    assert all(tensor.dtype == torch.float32 for tensor in delta.tensors.values())
    expected_norm = 2.0**-8 * (delta.tensors[DOWN].numel() + delta.tensors[GATE].numel()) ** 0.5
    assert delta.norm() == pytest.approx(expected_norm, rel=1e-9)
    assert delta.config["method"] == "KFade" and delta.config["seed"] == 3 and delta.config["versions"]["torch"]
    restored = delta.apply_to(copy.deepcopy(base))
    for name, tensor in unlearned.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name
    back = delta.apply_to(restored, scale=-1.0)
    assert torch.equal(back.get_parameter(DOWN), base.get_parameter(DOWN))


def test_updates_of_one_base_add_up_and_negate(tiny_llama):
    base = tiny_llama()
    first, second = change(base, (DOWN, GATE), seed=1), change(base, (GATE,), seed=2)
    one, other = UpdateDelta.between(base, first, base_model="org/base"), UpdateDelta.between(base, second)
    both = one + other
    assert set(both.config["base_sha256"]) == {DOWN, GATE} and both.config["base_model"] == "org/base"
    applied = both.apply_to(copy.deepcopy(base)).double()
    for name in (DOWN, GATE):
        want = first.get_parameter(name).double() + second.get_parameter(name) - base.get_parameter(name)
        torch.testing.assert_close(applied.get_parameter(name), want, atol=1e-7, rtol=0)
    assert (one + -one).norm() == 0.0
    torch.testing.assert_close((-one).apply_to(first).get_parameter(DOWN), base.get_parameter(DOWN))


def test_updates_of_different_bases_do_not_add_up(tiny_llama):
    base = tiny_llama()
    first = change(base)
    with pytest.raises(InputError, match="started from different weights.*one after the other"):
        UpdateDelta.between(base, first) + UpdateDelta.between(first, change(first, seed=2))
    wider = UpdateDelta({DOWN: torch.ones(3, 3)})
    with pytest.raises(InputError, match="different shapes"):
        UpdateDelta.between(base, first) + wider


def test_saved_as_lora_it_says_what_is_lost(tiny_llama, tmp_path, caplog):
    from peft import PeftModel

    base = tiny_llama()
    unlearned = change(base)
    with caplog.at_level("INFO", logger="hf_unlearn"):
        report = UpdateDelta.between(base, unlearned).save_lora(base, tmp_path / "lora", energy=0.9)
    assert 0 < report["lost"] <= 0.1 and "of the update's energy is lost" in caplog.text
    merged = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora").merge_and_unload()
    missing = sum((merged.get_parameter(n) - unlearned.get_parameter(n)).square().sum() for n in (DOWN, GATE))
    moved = sum((base.get_parameter(n) - unlearned.get_parameter(n)).square().sum() for n in (DOWN, GATE))
    assert float((missing / moved).detach()) == pytest.approx(report["lost"], rel=1e-2)


def test_what_is_infinite_in_both_has_not_moved():
    base = {"bound": torch.tensor([float("inf"), -float("inf")]), "weight": torch.tensor([1.0, 2.0])}
    delta = UpdateDelta.between(base, base | {"weight": torch.tensor([1.5, 2.0])})
    assert delta.tensors.keys() == {"weight"} and delta.tensors["weight"].tolist() == [0.5, 0.0]


def test_bf16_model_is_rounded_once(tiny_llama):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base))
    half = tiny_llama().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    delta.apply_to(half, scale=0.5)
    for name, tensor in half.state_dict().items():
        expected = before[name]
        if name in delta.tensors:
            expected = (before[name].float() + 0.5 * delta.tensors[name]).to(torch.bfloat16)
            assert not torch.equal(expected, before[name])
        assert torch.equal(tensor, expected), name


def test_applied_inside_a_block_only(tiny_llama):
    for dtype in (torch.bfloat16, torch.float32):
        model = tiny_llama(tie_word_embeddings=True).to(dtype)
        names = (DOWN, "lm_head.weight")
        delta = UpdateDelta({name: torch.randn(model.get_parameter(name).shape) for name in names})
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expected = delta.apply_to(copy.deepcopy(model), 0.5).state_dict()
        with pytest.raises(KeyError), delta.applied_to(model, 0.5) as updated:
            assert updated is model
            assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
            assert not torch.equal(model.get_parameter(DOWN), before[DOWN])
            raise KeyError
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="no tensor"), UpdateDelta({"absent": torch.zeros(1)}).applied_to(model):
        raise AssertionError("must not get here")


def test_double_model_keeps_its_precision(tiny_llama):
    model = tiny_llama().double()
    before = model.get_parameter(DOWN).clone()
    delta = UpdateDelta({DOWN: torch.full(before.shape, 2.0**-40)})
    delta.apply_to(model)
    assert torch.equal(model.get_parameter(DOWN), before + 2.0**-40)


@pytest.mark.parametrize("shard_size", ["5GB", "2KB"])
def test_save_and_load(tiny_llama, tmp_path, shard_size):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base), method="KFade")
    delta.save_pretrained(tmp_path, max_shard_size="1KB")
    delta.save_pretrained(tmp_path, max_shard_size=shard_size)
    # Two tensors of 24 * 16 bf16 numbers, 768 bytes each; the shards of the first saving are gone.
    assert {path.name for path in tmp_path.glob("delta*safetensors*")} == {"delta.safetensors"}
    loaded = UpdateDelta.from_pretrained(tmp_path)
    for name, tensor in delta.tensors.items():
        assert torch.equal(loaded.tensors[name], tensor.to(torch.bfloat16).float())
    assert loaded.sha256() == delta.sha256(torch.bfloat16) == loaded.config["sha256"] != delta.sha256()
    assert loaded.config["method"] == "KFade" and loaded.config["dtype"] == "bfloat16"
    assert set(loaded.config["base_sha256"]) == {DOWN, GATE}


def test_sharded_delta_and_delta_inside_an_output_folder(tiny_llama, tmp_path):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base))
    delta.save_pretrained(tmp_path / "delta", dtype=torch.float32, max_shard_size="2KB")
    index = json.loads((tmp_path / "delta" / "delta.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2 and set(index["weight_map"]) == {DOWN, GATE}
    loaded = UpdateDelta.from_pretrained(tmp_path)
    assert loaded.sha256() == delta.sha256()
    assert all(torch.equal(loaded.tensors[name], delta.tensors[name]) for name in delta.tensors)


def test_interrupted_save_leaves_the_old_delta(tiny_llama, tmp_path, monkeypatch):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base))
    delta.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(update, "write_safetensors", full_disk)
    with pytest.raises(OSError, match="No space"):
        UpdateDelta.between(base, change(base, seed=7)).save_pretrained(tmp_path, max_shard_size="1KB")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "delta_config.json").unlink()
    with pytest.raises(InputError, match="cut short"):
        UpdateDelta.from_pretrained(tmp_path)


def test_peft_model_is_addressed_by_base_names(tiny_llama):
    from peft import LoraConfig, get_peft_model

    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base, (DOWN, "lm_head.weight")))
    config = LoraConfig(target_modules=["down_proj"], modules_to_save=["lm_head"])
    wrapped = get_peft_model(tiny_llama(), config)
    assert base_tensors(wrapped).keys() == base.state_dict().keys()
    delta.apply_to(wrapped)
    layer = wrapped.base_model.model.model.layers[0].mlp.down_proj
    assert torch.equal(layer.base_layer.weight, base.get_parameter(DOWN) + delta.tensors[DOWN])
    again = UpdateDelta.between(base, wrapped)
    assert set(again.tensors) == {DOWN, "lm_head.weight"}


def test_prompt_learning_wraps_the_model_once(tiny_llama):
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert base_tensors(wrapped).keys() == tiny_llama().state_dict().keys()


def test_tied_weights_move_once(tiny_llama):
    base = tiny_llama(tie_word_embeddings=True)
    unlearned = change(base, ("model.embed_tokens.weight",))
    delta = UpdateDelta.between(base, unlearned)
    assert set(delta.tensors) == {"model.embed_tokens.weight"}
    update = delta.tensors["model.embed_tokens.weight"]
    both = UpdateDelta({"model.embed_tokens.weight": update, "lm_head.weight": update})
    expected = base.lm_head.weight + update
    assert torch.equal(both.apply_to(copy.deepcopy(base)).lm_head.weight, expected)
    both.tensors["lm_head.weight"] = 2 * update
    with pytest.raises(InputError, match="one tied weight"):
        both.apply_to(copy.deepcopy(base))


def test_what_does_not_fit_is_refused_and_changes_nothing(tiny_llama):
    model = tiny_llama()
    good = torch.ones_like(model.get_parameter(DOWN))
    before = model.get_parameter(DOWN).clone()
    with pytest.raises(InputError, match="no tensor model.layers.9"):
        UpdateDelta({DOWN: good, "model.layers.9.weight": good}).apply_to(model)
    with pytest.raises(InputError, match=r"shape \(24, 16\) in the model and \(2, 2\)"):
        UpdateDelta({DOWN: good, GATE: torch.ones(2, 2)}).apply_to(model)
    with pytest.raises(InputError, match="scale"):
        UpdateDelta({DOWN: good}).apply_to(model, scale=float("nan"))
    assert torch.equal(model.get_parameter(DOWN), before)
    with pytest.raises(NumericalError, match=DOWN):
        UpdateDelta({DOWN: good * float("inf")})
    with pytest.raises(InputError, match="one architecture"):
        UpdateDelta.between(model, tiny_llama(layers=3))
    with pytest.raises(InputError, match="neither a folder nor"):
        UpdateDelta.from_pretrained("no/such-repository")


def test_other_base_is_a_warning(tiny_llama, caplog):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base), base_model="org/base")
    delta.apply_to(copy.deepcopy(base))
    assert not caplog.records
    delta.apply_to(change(base, (GATE,), seed=5))
    assert "1 of the tensors" in caplog.text and GATE in caplog.text and "org/base" in caplog.text


def test_update_that_changed_nothing(tiny_llama, tmp_path):
    delta = UpdateDelta.between(tiny_llama(), tiny_llama())
    delta.save_pretrained(tmp_path / "delta")
    assert UpdateDelta.from_pretrained(tmp_path / "delta").tensors == delta.tensors == {}
    output = transfer(tmp_path / "delta", checkpoint(tiny_llama(), tmp_path / "model"), tmp_path / "out")
    assert (output / "model.safetensors").read_bytes() == (tmp_path / "model" / "model.safetensors").read_bytes()


def test_config_hashes_the_base(tiny_llama, tmp_path):
    base = tiny_llama()
    config = delta_config({DOWN: base.state_dict()[DOWN]}, base_model="org/base", settings={"alpha": 0.1})
    delta = UpdateDelta({DOWN: torch.ones(16, 24)}, config)
    delta.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "delta_config.json").read_text())
    assert stored["base_sha256"] == {DOWN: sha256_tensor(base.state_dict()[DOWN])}
    assert stored["settings"] == {"alpha": 0.1} and stored["format_version"] == 1
    assert load_file(tmp_path / "delta.safetensors")[DOWN].dtype == torch.bfloat16


def test_equal_updates_are_equal_bytes(tiny_llama, tmp_path):
    base = tiny_llama()
    about = {"base_model": "org/base", "base_revision": "abc", "method": "KFade", "settings": {"steps": 2}, "seed": 1}
    # Names in a hash map came out in one order or another: eight saves tell a chance of 1 in 2^7 at least.
    saved = [
        UpdateDelta.between(base, change(base), **about).save_pretrained(tmp_path / str(number)) for number in range(8)
    ]
    for name in ("delta.safetensors", "delta_config.json"):
        assert len({(folder / name).read_bytes() for folder in saved}) == 1, name


def test_local_folders_are_not_published(tiny_llama, tmp_path):
    base = checkpoint(tiny_llama(), tmp_path / "secret" / "model")
    delta = UpdateDelta.between(tiny_llama(), change(tiny_llama()), base_model=str(base))
    delta.save_pretrained(tmp_path / "delta")
    output = transfer(tmp_path / "delta", base, tmp_path / "out")
    for file in (tmp_path / "delta" / "delta_config.json", output / "unlearning_transfer.json"):
        assert "secret" not in file.read_text() and "model (local folder)" in file.read_text()


def test_tensors_of_another_delta_are_refused(tiny_llama, tmp_path):
    base = tiny_llama()
    for seed in (1, 2):
        UpdateDelta.between(base, change(base, seed=seed)).save_pretrained(tmp_path / str(seed))
    (tmp_path / "1" / "delta.safetensors").replace(tmp_path / "2" / "delta.safetensors")
    with pytest.raises(InputError, match="not those of its delta_config.json"):
        UpdateDelta.from_pretrained(tmp_path / "2")


def tied(seed=0):
    return make_llama(tie_word_embeddings=True, seed=seed)


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def untied_copy(model):
    """The same function, with embedding and head stored apart."""
    apart = make_llama()
    apart.load_state_dict(model.state_dict())
    return apart


def test_a_tied_update_moves_both_copies_of_an_untied_model(tmp_path):
    base = tied()
    delta = UpdateDelta.between(base, change(base, (EMBED, DOWN)))
    assert set(delta.tensors) == {EMBED, DOWN} and delta.config["tied"] == [[EMBED, HEAD]]
    apart = delta.apply_to(untied_copy(base))
    together = delta.apply_to(tied())
    for name in (EMBED, HEAD, DOWN):
        assert torch.equal(apart.get_parameter(name), together.get_parameter(name)), name
    with delta.applied_to(apart, scale=-1.0):
        torch.testing.assert_close(apart.get_parameter(HEAD), base.get_parameter(HEAD))
    assert torch.equal(apart.get_parameter(HEAD), together.get_parameter(HEAD))


@pytest.mark.parametrize("names", [(HEAD,), (EMBED, HEAD)])
def test_an_untied_update_of_one_of_two_does_not_fit_a_tied_model(names):
    base = untied_copy(tied())
    delta = UpdateDelta.between(base, change(base, names))
    assert set(delta.tensors) == set(names) and delta.config["tied"] == []
    model = tied()
    before = model.get_parameter(EMBED).clone()
    with pytest.raises(
        InputError, match="embed_tokens.weight, .*lm_head|lm_head.weight, model.embed_tokens.* one tied"
    ):
        delta.apply_to(model)
    assert torch.equal(model.get_parameter(EMBED), before)


def test_weights_tied_in_the_base_and_moved_apart_are_no_update_of_it():
    base = tied()
    same = change(base, (EMBED,))
    assert set(UpdateDelta.between(base, untied_copy(same)).tensors) == {EMBED}
    with pytest.raises(InputError, match="moved apart"):
        UpdateDelta.between(base, change(untied_copy(base), (HEAD,)))

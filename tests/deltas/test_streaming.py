# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Transfer of an update onto a checkpoint: names on disk, ties, bits, and what is left when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_unlearn.deltas import UpdateDelta, streaming, transfer
from hf_unlearn.deltas.reader import stored_sha256
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.checkpoints import base_tensors
from hf_unlearn.runtime.conversions import Conversion
from hf_unlearn.runtime.files import sha256_json, sha256_tensor
from tests.support.deltas import GATE, change, checkpoint


@pytest.mark.parametrize("kwargs", [{}, {"max_shard_size": "4KB"}], ids=["one file", "shards"])
def test_transfer_equals_apply(tiny_llama, tmp_path, kwargs):
    from transformers import LlamaForCausalLM

    base = tiny_llama().to(torch.bfloat16)
    delta = UpdateDelta.between(tiny_llama(), change(tiny_llama()))
    delta.save_pretrained(tmp_path / "delta", max_shard_size="1KB")
    source = checkpoint(base, tmp_path / "model", **kwargs)
    output = transfer(tmp_path / "delta", source, tmp_path / "out" / "unlearned", scale=0.7)
    expected = UpdateDelta.from_pretrained(tmp_path / "delta").apply_to(base, scale=0.7).state_dict()
    result = LlamaForCausalLM.from_pretrained(output, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in result.state_dict().items())
    names = {path.name for path in output.iterdir()}
    assert {"config.json", "tokenizer.json", "unlearning_transfer.json"} <= names
    assert "pytorch_model.bin" not in names
    assert (output / "README.md").read_bytes() != (source / "README.md").read_bytes()
    assert {path.name for path in source.glob("model*")} == {name for name in names if name.startswith("model")}
    assert [path.name for path in output.parent.iterdir()] == ["unlearned"]


def test_transfer_refuses_bad_folders(tiny_llama, tmp_path):
    base = tiny_llama()
    UpdateDelta.between(base, change(base)).save_pretrained(tmp_path / "delta")
    source = checkpoint(base, tmp_path / "model")
    with pytest.raises(InputError, match="not an empty folder"):
        transfer(tmp_path / "delta", source, source)
    with pytest.raises(InputError, match="no model.safetensors"):
        transfer(tmp_path / "delta", tmp_path / "delta", tmp_path / "out")
    with pytest.raises(InputError, match="delta_config.json"):
        transfer(source, source, tmp_path / "out")
    small = checkpoint(tiny_llama(layers=1), tmp_path / "small")
    with pytest.raises(InputError, match=GATE):
        transfer(tmp_path / "delta", small, tmp_path / "out")
    (source / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="damaged"):
        transfer(tmp_path / "delta", source, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_killed_transfer_leaves_no_output(tiny_llama, tmp_path):
    base = tiny_llama()
    UpdateDelta.between(base, change(base)).save_pretrained(tmp_path / "delta")
    checkpoint(base, tmp_path / "model", max_shard_size="4KB")
    program = (
        "import os, signal, shutil\n"
        "import hf_unlearn.deltas.streaming as streaming\n"
        "streaming.copy_bytes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "streaming.transfer('delta', 'model', 'out')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out.*.part"))
    transfer(tmp_path / "delta", tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()
    assert not list(tmp_path.glob(".*"))  # what the killed one left is gone too


def test_full_disk_leaves_nothing(tiny_llama, tmp_path, monkeypatch):
    base = tiny_llama()
    UpdateDelta.between(base, change(base)).save_pretrained(tmp_path / "delta")
    source = checkpoint(base, tmp_path / "model")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        transfer(tmp_path / "delta", source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "model"]


TOKENS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
# Architectures whose weights have other names, or another layout, on disk than in memory, and some that have not.
ARCHITECTURES = {
    "Llama": DECODER,
    "Qwen2": {**DECODER, "tie_word_embeddings": True},
    "Gemma3Text": {**DECODER, "layer_types": ["full_attention", "full_attention"]},
    "GPTNeoX": {
        k: DECODER[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    },
    "GPT2": GPT,
    "Mixtral": {**DECODER, "num_local_experts": 4},
    "Qwen2Moe": {**DECODER, **MOE, "shared_expert_intermediate_size": 12},
    "Qwen3Moe": {**DECODER, **MOE},
    "Olmoe": {**DECODER, "num_experts": 4},
    "GraniteMoe": {**DECODER, "num_local_experts": 4},
    "Phi3": DECODER,
}


def build(name):
    kind = f"{name}LMHeadModel" if name == "GPT2" else f"{name.removesuffix('Text')}ForCausalLM"
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}{'' if name == 'Gemma3Text' else ''}Config")(
        **ARCHITECTURES[name], **TOKENS
    )
    return getattr(transformers, kind)(config).eval()


def moved(model):
    """A copy of which every weight moved."""
    return change(model, [name for name, _ in model.named_parameters()], size=1e-2)


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(5, 25)[None]).logits


def stored(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def check_against_saving(name, folder):
    """Transfer onto a checkpoint against the update in memory, and what transformers writes of that, to the bit."""
    build(name).save_pretrained(folder / "base", max_shard_size="20KB")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    unlearned = moved(base)
    delta = UpdateDelta.between(base, unlearned)
    delta.save_pretrained(folder / "delta", dtype=torch.float32)
    output = transfer(folder / "delta", folder / "base", folder / "out")
    found = transformers.AutoModelForCausalLM.from_pretrained(output)
    expected = delta.apply_to(base).state_dict()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.state_dict().items())
    # Also what transformers itself writes of it, name by name and bit by bit.
    base.save_pretrained(folder / "saved")
    written, theirs = stored(output), stored(folder / "saved")
    assert written.keys() == theirs.keys() and all(torch.equal(written[key], theirs[key]) for key in written)
    assert json.loads((output / "unlearning_transfer.json").read_text())["other_base"] == []


@pytest.fixture
def groups(monkeypatch):
    """Groups that were converted as a whole."""
    seen = []
    original = streaming._Writer._write_group
    monkeypatch.setattr(
        streaming._Writer, "_write_group", lambda self, group: seen.append(group) or original(self, group)
    )
    return seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_update_goes_onto_the_checkpoint_it_came_from(name, tmp_path, groups):
    check_against_saving(name, tmp_path)
    assert not groups  # experts lie on disk in runs of what they are in memory, and are added to in pieces


def test_weights_that_lie_otherwise_on_disk_are_converted_as_a_whole(tmp_path, groups, monkeypatch):
    from transformers import conversion_mapping
    from transformers.core_model_loading import Interleave, Transpose, WeightConverter

    rules = [
        WeightConverter("mlp.down_proj.weight", "mlp.down_proj.weight", operations=[Transpose(0, 1)]),
        WeightConverter("mlp.up_proj.weight", "mlp.up_proj.weight", operations=[Interleave(0)]),
    ]
    conversion_mapping.get_checkpoint_conversion_mapping("llama")  # fills the table
    table = conversion_mapping._checkpoint_conversion_mapping_cache
    monkeypatch.setattr(conversion_mapping, "_checkpoint_conversion_mapping_cache", {**table, "llama": rules})
    build("Llama").save_pretrained(tmp_path / "probe")
    name = "model.layers.0.mlp.down_proj.weight"
    assert stored(tmp_path / "probe")[name].shape == (24, 16)  # the rule is at work
    check_against_saving("Llama", tmp_path)
    assert len(groups) == 4


def test_a_group_that_does_not_come_back_is_refused(tmp_path, monkeypatch):
    build("Mixtral").save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    UpdateDelta.between(base, moved(base)).save_pretrained(tmp_path / "delta")
    monkeypatch.setattr(Conversion, "runs_of", lambda *_: None)
    original = Conversion.to_disk
    monkeypatch.setattr(
        Conversion, "to_disk", lambda self, tensors: {n: t.abs() for n, t in original(self, tensors).items()}
    )
    with pytest.raises(InputError, match="does not come back from the form it has on disk"):
        transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "delta"]


def test_the_base_is_known_in_fused_weights_too(tmp_path, caplog, monkeypatch):
    build("Mixtral").save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    UpdateDelta.between(base, moved(base)).save_pretrained(tmp_path / "delta")
    transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    assert "not the ones" not in caplog.text
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    expert = next(name for name in tensors if "experts.1.w3" in name)
    save_file(tensors | {expert: tensors[expert] + 1}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    in_runs = stored(transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "other"))
    assert "1 of the tensors are not the ones" in caplog.text and "experts.gate_up_proj" in caplog.text
    caplog.clear()
    monkeypatch.setattr(Conversion, "runs_of", lambda *_: None)
    whole = stored(transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "whole"))
    assert "1 of the tensors are not the ones" in caplog.text and "experts.gate_up_proj" in caplog.text
    assert all(torch.equal(in_runs[name], whole[name]) for name in whole)


def test_checkpoints_of_the_hub_without_the_prefix_of_the_base_model(tmp_path):
    model = build("GPT2")
    model.save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    unlearned = moved(base)
    UpdateDelta.between(base, unlearned).save_pretrained(tmp_path / "delta", dtype=torch.float32)
    output = transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    assert stored(output).keys() == bare.keys()
    torch.testing.assert_close(logits(transformers.AutoModelForCausalLM.from_pretrained(output)), logits(unlearned))


def test_every_stored_copy_of_a_tied_weight_moves(tmp_path):
    build("Qwen2").save_pretrained(tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    unlearned = change(base, ["model.embed_tokens.weight"], size=1e-2)
    UpdateDelta.between(base, unlearned).save_pretrained(tmp_path / "delta", dtype=torch.float32)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    output = transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    found = stored(output)
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
    torch.testing.assert_close(logits(transformers.AutoModelForCausalLM.from_pretrained(output)), logits(unlearned))


def test_a_tied_update_onto_an_untied_checkpoint_and_the_reverse(tmp_path):
    together = build("Qwen2")
    together.save_pretrained(tmp_path / "tied")
    apart = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tied", tie_word_embeddings=False)
    with torch.no_grad():
        apart.lm_head.weight.copy_(together.lm_head.weight)
    apart.config.tie_word_embeddings = False
    apart.save_pretrained(tmp_path / "untied")
    unlearned = change(together, ["model.embed_tokens.weight"], size=1e-2)
    UpdateDelta.between(together, unlearned).save_pretrained(tmp_path / "delta", dtype=torch.float32)
    output = transfer(tmp_path / "delta", tmp_path / "untied", tmp_path / "out")
    torch.testing.assert_close(logits(transformers.AutoModelForCausalLM.from_pretrained(output)), logits(unlearned))
    UpdateDelta.between(apart, change(apart, ["lm_head.weight"])).save_pretrained(tmp_path / "one")
    with pytest.raises(InputError, match="one tied weight in this model, and two where"):
        transfer(tmp_path / "one", tmp_path / "tied", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_without_a_config_names_are_taken_as_they_are(tiny_llama, tmp_path):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base))
    delta.save_pretrained(tmp_path / "delta", dtype=torch.float32)
    source = checkpoint(base, tmp_path / "model")
    (source / "config.json").unlink()
    found = stored(transfer(tmp_path / "delta", source, tmp_path / "out"))
    expected = base_tensors(delta.apply_to(base))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_a_large_tensor_is_added_in_pieces(tiny_llama, tmp_path, monkeypatch):
    base = tiny_llama()
    delta = UpdateDelta.between(base, change(base))
    delta.save_pretrained(tmp_path / "delta")
    source = checkpoint(base, tmp_path / "model")
    whole = stored(transfer(tmp_path / "delta", source, tmp_path / "whole"))
    monkeypatch.setattr("hf_unlearn.runtime.checkpoints.CHUNK", 100)
    monkeypatch.setattr(streaming, "CHUNK", 100)
    pieces = stored(transfer(tmp_path / "delta", source, tmp_path / "pieces"))
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def saved_delta(base, folder, **kwargs):
    UpdateDelta.between(base, change(base)).save_pretrained(folder / "delta", **kwargs)
    return folder / "delta" / "delta.safetensors", folder / "delta" / "delta_config.json"


def refuse(folder, message):
    with pytest.raises(InputError, match=message):
        transfer(folder / "delta", folder / "model", folder / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["delta", "model"]


@pytest.mark.parametrize("version", ["now", "before"])
def test_a_damaged_delta_leaves_nothing(tiny_llama, tmp_path, version):
    base = tiny_llama()
    weights, config = saved_delta(base, tmp_path)
    checkpoint(base, tmp_path / "model")
    told, content = json.loads(config.read_text()), bytearray(weights.read_bytes())
    if version == "before":
        del told["stored_sha256"]
        config.write_text(json.dumps(told))
        transfer(tmp_path / "delta", tmp_path / "model", tmp_path / "whole")
        shutil.rmtree(tmp_path / "whole")
    content[-3] ^= 1
    weights.write_bytes(content)
    refuse(tmp_path, "not those of its delta_config.json")
    content[-3] ^= 1
    weights.write_bytes(content)
    config.write_text(json.dumps(told | {"sha256": "0" * 64}))  # told in the card
    refuse(tmp_path, "not those of its delta_config.json")
    # Its hashes are true, and it must not go anywhere.
    tensors = load_file(weights)
    tensors[GATE][0, 3] = torch.inf
    save_file(tensors, weights, {"format": "pt"})
    hashes = {name: sha256_tensor(tensor) for name, tensor in tensors.items()}
    told["sha256"] = sha256_json({name: sha256_tensor(tensor.float()) for name, tensor in tensors.items()})
    true = {"stored_sha256": stored_sha256(told["sha256"], hashes)} if version == "now" else {}
    config.write_text(json.dumps(told | true))
    refuse(tmp_path, "not all finite")


def test_each_byte_is_written_once(tmp_path, monkeypatch):
    build("Mixtral").save_pretrained(tmp_path / "base", max_shard_size="20KB")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    UpdateDelta.between(base, moved(base)).save_pretrained(tmp_path / "delta")
    copied = []
    original = streaming.copy_bytes
    monkeypatch.setattr(
        streaming, "copy_bytes", lambda old, new, *ends: copied.append(ends) or original(old, new, *ends)
    )
    output = transfer(tmp_path / "delta", tmp_path / "base", tmp_path / "out")
    # All weights move, so only headers are copied.
    files = list(output.glob("*.safetensors"))
    assert sum(end - begin for begin, end in copied) == sum(header_bytes(file) for file in files)
    assert all(file.stat().st_size == (tmp_path / "base" / file.name).stat().st_size for file in files)


def header_bytes(file):
    return 8 + int.from_bytes(file.read_bytes()[:8], "little")


def test_threads_of_torch_are_as_before(tiny_llama, tmp_path):
    base = tiny_llama()
    saved_delta(base, tmp_path)
    checkpoint(base, tmp_path / "model")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        transfer(tmp_path / "delta", tmp_path / "model", tmp_path / "out")
        assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)

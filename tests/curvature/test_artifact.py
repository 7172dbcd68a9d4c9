# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files of a fitted curvature: the same bits back, and what is refused."""

import json

import pytest
import torch

from hf_unlearn.curvature import KFAC, Curvature, artifact
from hf_unlearn.errors import InputError
from tests.support.curvature import KIND_NAMES, batches, fit_columns, solutions


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_save_and_load_to_the_same_bits(model, data, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)
    curvature = fit_columns(model, data, kind=kind)
    curvature.save_pretrained(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (kind != "identity")
    loaded = Curvature.from_pretrained(tmp_path, model=model)
    assert type(loaded) is type(curvature) and loaded.metadata == curvature.metadata
    assert loaded.tensors.keys() == curvature.tensors.keys()
    assert all(torch.equal(a, b) for a, b in zip(solutions(loaded), solutions(curvature)))
    config = json.loads((tmp_path / "curvature_config.json").read_text())
    assert config["unit"] == "per predicted token" and config["kind"] == kind and config["seed"] == 0


def test_load_refuses_another_architecture_and_warns_of_other_weights(model, tiny_llama, data, tmp_path):
    KFAC().fit(model, batches(*data[:2], mask=data[2]), progress=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another architecture"):
        Curvature.from_pretrained(tmp_path, model=tiny_llama(hidden_size=16, intermediate_size=12))
    with pytest.raises(InputError, match="another architecture: the model has no"):
        Curvature.from_pretrained(tmp_path, model=tiny_llama(layers=1, hidden_size=8, intermediate_size=12))
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    with pytest.warns(UserWarning, match="layers.1.mlp.up_proj.weight has changed"):
        Curvature.from_pretrained(tmp_path, model=model)
    with pytest.raises(InputError, match="holds no curvature_config.json"):
        Curvature.from_pretrained(tmp_path.parent)
    with pytest.raises(InputError, match="nobody/nothing is neither a folder nor"):
        Curvature.from_pretrained("nobody/nothing")


def test_damaged_files_are_input_errors(model, data, tmp_path):
    fit_columns(model, data, kind="diagonal").save_pretrained(tmp_path)
    (shard,) = tmp_path.glob("*.safetensors")
    content = shard.read_bytes()
    shard.write_bytes(content[:20])
    with pytest.raises(InputError, match="damaged"):
        Curvature.from_pretrained(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match="does not exist"):
        Curvature.from_pretrained(tmp_path)
    shard.write_bytes(content)
    assert Curvature.from_pretrained(tmp_path).kind == "diagonal"
    (tmp_path / "curvature_config.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Curvature.from_pretrained(tmp_path)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints on disk: shards and their index, which may be damaged or made to lead elsewhere."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hf_unlearn.cli.main import main
from hf_unlearn.curvature import KFAC, Curvature
from hf_unlearn.deltas import UpdateDelta
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.checkpoints import Shards


OUTSIDE = ["../victim.safetensors", "sub/model.safetensors", "/victim.safetensors", "..", "", "a\\b", "a\0b", 3, None]


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with one shard of one weight and its index."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a.weight": torch.ones(2, 2)}, folder / "model-00001-of-00001.safetensors")
    write_index(folder, {"a.weight": "model-00001-of-00001.safetensors"})
    return folder


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_by_their_index(checkpoint):
    shards = Shards(checkpoint, "model.safetensors")
    assert shards.filenames == ["model-00001-of-00001.safetensors"] and shards.tensor("a.weight").equal(
        torch.ones(2, 2)
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_that_leads_out_of_its_folder_is_refused(checkpoint, name):
    write_index(checkpoint, {"a.weight": name})
    with pytest.raises(InputError, match="index.json names the file .* which lies elsewhere"):
        Shards(checkpoint, "model.safetensors")


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"weight_map": ["a.weight"]}', '{"weight_map": null}'])
def test_an_index_without_a_weight_map_is_refused(checkpoint, content):
    (checkpoint / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match="index.json has no weight_map"):
        Shards(checkpoint, "model.safetensors")


def test_a_transfer_writes_nothing_outside_its_output(checkpoint, tmp_path, capsys):
    """The file beside the output folder has the name that the index leads to."""
    (tmp_path / "out").mkdir()
    victim, other = tmp_path / "victim.safetensors", tmp_path / "out/victim.safetensors"
    save_file({"a.weight": torch.zeros(2, 2)}, victim)
    other.write_bytes(b"precious")
    write_index(checkpoint, {"a.weight": "../victim.safetensors"})
    UpdateDelta({"a.weight": torch.ones(2, 2)}).save_pretrained(tmp_path / "delta")
    arguments = ["--delta", tmp_path / "delta", "--model", checkpoint, "--output", tmp_path / "out/result"]
    with pytest.raises(SystemExit) as stopped:
        main(["transfer", *map(str, arguments)])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert other.read_bytes() == b"precious" and [path.name for path in (tmp_path / "out").iterdir()] == [other.name]


@pytest.mark.parametrize("name", OUTSIDE[:5])
def test_a_curvature_whose_files_lie_elsewhere_is_refused(tmp_path, name, tiny_llama):
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([[1, 2, 3, 4]])}
    curvature = KFAC()
    curvature.fit(tiny_llama(), [batch], progress=False)
    curvature.save_pretrained(tmp_path / "curvature")
    config = tmp_path / "curvature/curvature_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"files": {name: next(iter(content["files"].values()))}}))
    with pytest.raises(InputError, match="curvature_config.json names the file .* which lies elsewhere"):
        Curvature.from_pretrained(tmp_path / "curvature")

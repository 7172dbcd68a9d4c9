# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_unlearn.errors import InputError
from hf_unlearn.runtime.hub import hide_places
from hf_unlearn.runtime.published import published_files
from tests.support.commands import call


TOKEN = "hf_" + "Zq7" * 12


def planted(kind, folder, elsewhere):
    """A folder to push with one secret in it; where it must be found."""
    elsewhere.mkdir(parents=True)
    match kind:
        case "a token in the card":
            (folder / "README.md").write_text(f"# A card\n\nuse {TOKEN} to load\n")
            return "README.md, line 3, holds an access token"
        case "the token in use, of another form":
            (folder / "config.json").write_text('{"about": "secret-of-mine"}')
            return "config.json, line 1, holds an access token"
        case "the base model of an adapter":
            (folder / "adapter_config.json").write_text(json.dumps({"base": str(elsewhere)}, indent=2))
            return "adapter_config.json, line 2, holds a path"
        case "a path in the home folder, there or not":
            (folder / "LICENSE").write_text(f"see {Path.home()}/never/was\n")
            return "LICENSE, line 1, holds a path"
        case "a path in a link of the card":
            (folder / "README.md").write_text(f"[rows](file://{elsewhere}/rows.jsonl)\n")
            return "README.md, line 1, holds a path"
        case "a path in the ledger":
            (folder / "unlearning_log.jsonl").write_text('{"a": 1}\n' + json.dumps({"model": str(elsewhere)}) + "\n")
            return "unlearning_log.jsonl, line 2, holds a path"
        case "a path in the tokenizer's binary":
            (folder / "tokenizer.model").write_bytes(b"\x00\xff\n " + str(elsewhere).encode() + b"\x00")
            return "tokenizer.model, line 2, holds a path"
        case "a path in the header of weights":
            save_file({"a": torch.ones(1)}, folder / "model.safetensors", {"from": str(elsewhere)})
            return "the header of .*model.safetensors holds a path"


@pytest.mark.parametrize(
    "kind",
    [
        "a token in the card",
        "the token in use, of another form",
        "the base model of an adapter",
        "a path in the home folder, there or not",
        "a path in a link of the card",
        "a path in the ledger",
        "a path in the tokenizer's binary",
        "a path in the header of weights",
    ],
)
def test_a_folder_that_tells_of_this_machine_is_not_pushed(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "secret-of-mine")
    folder = tmp_path / "model"
    folder.mkdir()
    words = planted(kind, folder, tmp_path / "place" / "of" / "mine")
    with pytest.raises(InputError, match=words) as error:
        published_files(folder)
    assert TOKEN not in str(error.value) and "secret-of-mine" not in str(error.value)
    assert call("push", "--folder", folder, "--repo_id", "lab/x", "--dry-run") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_said_everywhere_is_no_secret(tmp_path):
    """Words with slashes, addresses, tags, folders that every machine has, and those that models speak of."""
    text = "and/or <s>/x</s> </think> https://huggingface.co/docs/x /usr/bin/env /mnt/data a/b/c ./model 1/2 // hf_x"
    for name in ("README.md", "chat_template.jinja", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps({"text": text, "piece": "/tmp/", "slash": "/"}))
    assert len(published_files(tmp_path)) == 4


def test_places_are_taken_out_of_saved_configurations_and_all_else_stays(tmp_path):
    here = tmp_path / "base"
    here.mkdir()
    kept = {"vocab_size": 7, "layers": [1, {"slash": "/"}], "stop": "/never/such/a/file", "_name_or_path": "org/model"}
    (tmp_path / "config.json").write_text(json.dumps(kept))
    gone = {"base_model_name_or_path": str(here), "nested": [{"file": str(here)}], "auto": {"name_or_path": ""}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(gone))
    (tmp_path / "training_args.bin").write_bytes(b"a pickle with a token")
    before = (tmp_path / "config.json").read_bytes()
    hide_places(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before and not (tmp_path / "training_args.bin").exists()
    name = "base (local folder)"
    expected = {"base_model_name_or_path": name, "nested": [{"file": name}], "auto": {"name_or_path": ""}}
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == expected


def test_code_is_published_where_the_configuration_names_it(tmp_path):
    (tmp_path / "modeling_own.py").write_text("class Own: ...\n")
    for config in ("{}", "null", "[]"):
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match="modeling_own.py is no part of a published model"):
            published_files(tmp_path)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_own.Own"}}')
    assert set(published_files(tmp_path)) == {"config.json", "modeling_own.py"}

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
import re
import subprocess
import sys

import pytest
import torch

from hf_unlearn import FirstOrder
from hf_unlearn.cli.main import main
from hf_unlearn.deltas import UpdateDelta, transfer
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.hub import PLACE, is_repo_id, public_name, push_folder, stale_weights
from hf_unlearn.runtime.published import published_files
from tests.support.commands import call
from tests.support.hub_server import Fault, client_environment, hub_server, known_here
from tests.support.trainers import make_trainer, trained_llama


WEIGHT = "model.layers.0.mlp.up_proj.weight"


def run(program, server, home, code=0):
    """Run a program in a process that knows the local Hub only; returns what it printed."""
    environment = client_environment(server, home)
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=180
    )
    assert result.returncode == code, result.stderr
    return result.stdout.strip()


@pytest.fixture
def output(tiny_llama, tmp_path):
    """A folder as a finished run leaves it: weights, delta, card, and what must not be published."""
    folder = tmp_path / "output"
    model = tiny_llama()
    model.save_pretrained(folder)
    UpdateDelta({WEIGHT: torch.full(model.get_parameter(WEIGHT).shape, 0.5)}).save_pretrained(folder / "delta")
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A card\n")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / ".model.safetensors.1.part").write_bytes(b"half a file")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"state")
    return folder


def test_push_is_one_commit_that_others_can_load(output, tmp_path):
    program = (
        "from hf_unlearn.runtime.hub import push_folder\n"
        f"print(push_folder('lab/gone', {str(output)!r}, private=True))"
    )
    load = f"""
import torch
from transformers import LlamaForCausalLM
from hf_unlearn import UpdateDelta
model = LlamaForCausalLM.from_pretrained("lab/gone")
before = model.get_parameter({WEIGHT!r}).clone()
UpdateDelta.from_pretrained("lab/gone").apply_to(model)
print(bool(torch.equal(model.get_parameter({WEIGHT!r}), before + 0.5)))
"""
    with hub_server() as server:
        url = run(program, server, tmp_path / "home")
        repo = server.repos["lab/gone"]
        assert repo["private"] and len(repo["commits"]) == 1
        commit = repo["commits"][0]
        assert url.endswith(f"/lab/gone/commit/{commit['oid']}")
        expected = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
        assert set(commit["files"]) == expected | {"delta/delta.safetensors", "delta/delta_config.json"}
        for name, content in commit["files"].items():
            assert content == (output / name).read_bytes(), name
        assert run(load, server, tmp_path / "reader") == "True"


def test_delta_alone_can_be_pushed_to_a_branch_of_its_own(tmp_path):
    program = """
import torch
from hf_unlearn import UpdateDelta
from hf_unlearn.runtime.hub import push_folder
delta = UpdateDelta({"a.weight": torch.ones(2, 2)}, {"method": "KFade"})
print(delta.push_to_hub("lab/delta"))
assert UpdateDelta.from_pretrained("lab/delta").sha256() == delta.sha256()
delta.save_pretrained("here")
push_folder("lab/delta", "here", revision="next")
"""
    with hub_server() as server:
        run(f"import os\nos.chdir({str(tmp_path)!r})\n{program}", server, tmp_path / "home")
        commits = server.repos["lab/delta"]["commits"]
        assert [commit["branch"] for commit in commits] == ["main", "next", "next"]
        assert set(commits[0]["files"]) == {"delta/delta.safetensors", "delta/delta_config.json"}


PLANTED = {
    "rows to forget": ("forget.jsonl", "forget.jsonl is no part of a published model"),
    "rows in a folder": ("data/forget.json", "data/forget.json is no part of a published model"),
    "rows beside the delta": ("delta/rows.jsonl", "delta/rows.jsonl is no part of a published model"),
    "a name that begins like weights": ("model-of-rows.json", "model-of-rows.json is no part of a published model"),
    "weights of another name": ("rows.safetensors", "rows.safetensors is no part of a published model"),
    "a weight deeper than it is read": ("copy/model.safetensors", "copy/model.safetensors is no part"),
    "the output folder of a run": ("unlearn_run.json", "is the output folder of a run"),
    "the output folder of an experiment": ("results.json", "is the output folder of an experiment"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_nothing_is_pushed_of_a_folder_that_holds_more_than_a_model(kind, output, tmp_path):
    """Of the rows that were to be forgotten no byte may be published."""
    name, message = PLANTED[kind]
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).write_text('{"question": "the secret"}')
    program = f"""
from hf_unlearn.cli.main import main
main(["push", "--repo_id", "lab/gone", "--folder", {str(output)!r}])
"""
    with hub_server() as server:
        run(program, server, tmp_path / "home", code=2)
        assert "lab/gone" not in server.repos
    with pytest.raises(InputError, match=message):
        published_files(output)


@pytest.mark.parametrize("name", ["LICENSE", "delta/delta-00001-of-00001.safetensors", ".eval_results/wmdp.yaml"])
def test_links_are_refused(name, output, tmp_path):
    (tmp_path / "secret").write_text("a token")
    (output / name).parent.mkdir(exist_ok=True)
    (output / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=f"{name} is a link"):
        published_files(output)


def test_a_link_to_a_folder_is_refused(output, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (output / "tokenizer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="tokenizer is a link"):
        published_files(output)


def test_what_transfer_and_the_trainer_write_can_be_pushed(output, tmp_path):
    for name in ("training_args.bin", ".model.safetensors.1.part"):
        (output / name).unlink()
    result = transfer(output / "delta", output, tmp_path / "result")
    assert "unlearning_transfer.json" in published_files(result)
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    assert {"model.safetensors", "delta/delta.safetensors", "README.md"} <= published_files(tmp_path / "model").keys()
    with pytest.raises(InputError, match="output folder of a run"):
        published_files(tmp_path / "run")


def test_a_dry_run_lists_the_files_and_pushes_nothing(output, capsys):
    (output / ".eval_results").mkdir()
    (output / ".eval_results/wmdp.yaml").write_text("a: 1\n")
    main(["push", "--repo_id", "lab/gone", "--folder", str(output), "--dry-run"])
    *listed, total = capsys.readouterr().out.splitlines()
    names = [".eval_results/wmdp.yaml", "README.md", "config.json", "delta/delta.safetensors"]
    names += ["delta/delta_config.json", "generation_config.json", "model.safetensors"]
    assert [line.split()[-1] for line in listed] == names and "5 bytes" in listed[0]
    assert "7 files; nothing was pushed" in total


def test_unknown_repository_is_an_input_error(tmp_path):
    program = """
from hf_unlearn.errors import exit_codes
from hf_unlearn import UpdateDelta
with exit_codes():
    UpdateDelta.from_pretrained("lab/absent")
"""
    with hub_server() as server:
        run(program, server, tmp_path / "home", code=2)


def test_nothing_to_push(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        push_folder("lab/x", tmp_path / "absent")
    with pytest.raises(InputError, match="no file to push"):
        push_folder("lab/x", tmp_path)
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(InputError, match="no repository name"):
        push_folder("lab/x/y", tmp_path)


def test_shards_of_an_earlier_push_do_not_outlive_it(tmp_path):
    program = """
import torch
from hf_unlearn import UpdateDelta
from hf_unlearn.runtime.hub import push_folder
delta = UpdateDelta({"a.weight": torch.ones(8, 8), "b.weight": torch.ones(8, 8)})
delta.save_pretrained("here", max_shard_size="1KB")
open("here/LICENSE", "w").write("x")
push_folder("lab/delta", "here")
twice = UpdateDelta({name: 2 * tensor for name, tensor in delta.tensors.items()})
twice.save_pretrained("there", max_shard_size=200)
push_folder("lab/delta", "there")
assert float(UpdateDelta.from_pretrained("lab/delta").tensors["a.weight"][0, 0]) == 2
"""
    with hub_server() as server:
        run(f"import os\nos.chdir({str(tmp_path)!r})\n{program}", server, tmp_path / "home")
        first, second = (set(commit["files"]) for commit in server.repos["lab/delta"]["commits"])
    assert first == {"delta.safetensors", "delta_config.json", "LICENSE"}
    shards = {f"delta-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert second == {*shards, "delta.safetensors.index.json", "delta_config.json", "LICENSE"}


def test_only_other_shardings_of_what_is_pushed_are_stale():
    there = [
        "model.safetensors",
        "model.safetensors.index.json",
        "delta/model.safetensors",
        "head.safetensors",
        "a.bin",
    ]
    assert stale_weights(there, ["model-00001-of-00002.safetensors", "config.json"]) == there[:2]
    assert stale_weights(there, ["curvature-00001-of-00001.safetensors", "README.md"]) == []


def test_curvature_is_pushed_in_one_commit_and_read_back(tmp_path):
    program = """
import torch
from tests.support.models import make_llama
from hf_unlearn.curvature import Curvature, Diagonal
batch = {"input_ids": torch.arange(1, 13).reshape(2, 6), "labels": torch.arange(1, 13).reshape(2, 6)}
curvature = Diagonal().fit(make_llama(), [batch], target_modules=["up_proj"], progress=False)
print(curvature.push_to_hub("lab/curvature"))
again = Curvature.from_pretrained("lab/curvature", revision="main", model=make_llama())
assert all(torch.equal(again.tensors[name], tensor) for name, tensor in curvature.tensors.items())
"""
    with hub_server() as server:
        url = run(program, server, tmp_path / "home")
        (commit,) = server.repos["lab/curvature"]["commits"]
    assert url.endswith(commit["oid"]) and commit["title"] == "Add curvature"
    assert set(commit["files"]) == {"curvature-00001-of-00001.safetensors", "curvature_config.json"}


def test_published_names_tell_no_local_path(tmp_path, monkeypatch):
    (tmp_path / "org" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("org/model") == "org/model" and public_name("gpt2") == "gpt2" and public_name(None) is None
    # A folder that exists is meant before a repository of the same name.
    for folder in ("org/mine", tmp_path / "org/mine", "/somewhere/else/mine"):
        assert public_name(folder) == "mine (local folder)"
    snapshots = tmp_path / "hub" / "models--org--model-7b" / "snapshots"
    assert public_name(snapshots / ("0a" * 20)) == "org/model-7b"
    assert public_name(snapshots) == "snapshots (local folder)"
    assert public_name("mine (local folder)") == "mine (local folder)" and not is_repo_id("mine (local folder)")


# ---- a Hub that fails ----------------------------------------------------------------------------------------------
COMMIT, UPLOAD, CREATE = "POST /api/models/lab/gone/commit", "PUT /blob/", "POST /api/repos/create"
GATED = {"X-Error-Code": "GatedRepo"}
REFUSALS = {
    "nobody is logged in": (Fault(CREATE, 401, 99), "log in with `hf auth login` or set HF_TOKEN"),
    "the token may only read": (Fault(COMMIT, 403, 99), "use a token with write permission"),
    "the repository is gated": (Fault(COMMIT, 403, 99, GATED), "ask for access on its page"),
    "the repository has gone": (Fault(COMMIT, 404, 99), "check name and token"),
    "too busy for long": (Fault(COMMIT, 429, 99, {"Retry-After": "3600"}), "push again in 3600 s"),
    "too busy for good": (Fault(COMMIT, 429, 99, {"Retry-After": "7"}), "too many requests"),
    "an upload fails for good": (Fault(UPLOAD, 500, 999), "the Hub fails .*: push again later"),
    "the commit fails for good": (Fault(COMMIT, 502, 99), "the Hub fails .*: push again later"),
    "the connection is cut for good": (Fault(COMMIT, 0, 99), "the connection was lost"),
    "others push all the time": (Fault(COMMIT, 412, 99), "look at what they pushed"),
    "the commit is malformed": (Fault(COMMIT, 400, 99), "the Hub refused it"),
}
PASSING = {
    "busy for a while": (Fault(COMMIT, 429, 1, {"Retry-After": "7"}), [7]),
    "busy at the door": (Fault(CREATE, 429, 2), [1, 2]),
    "an upload fails once": (Fault(UPLOAD, 500, 1), [1]),
    "the commit fails once": (Fault(COMMIT, 500, 1), [1]),
    "the connection is cut before the commit": (Fault(COMMIT, 0, 1), [1]),
    "the connection is cut behind the commit": (Fault(COMMIT, 0, 1, after=True), [1]),
    "an upload is cut off": (Fault(UPLOAD, 0, 1), [1]),
}


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process knows, and the seconds that were waited for it (none in truth)."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    with hub_server() as server:
        known_here(server, monkeypatch)
        server.waited = waited
        yield server


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_push_that_is_refused_leaves_nothing_and_says_why_in_one_line(kind, hub, output, capsys):
    fault, words = REFUSALS[kind]
    hub.faults.append(fault)
    assert call("push", "--folder", output, "--repo_id", "lab/gone") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"error: lab/gone was not pushed: .*{words}", error), error
    assert "hf_of_the_test" not in error
    assert hub.repos.get("lab/gone", {"commits": []})["commits"] == []
    tried = sum(request.startswith(fault.where) for request in hub.requests)
    assert tried == 1 if fault.status in (400, 401, 403, 404) else tried <= 4 * 6


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_waited_for_and_ends_in_one_whole_commit(kind, hub, output):
    fault, waits = PASSING[kind]
    hub.faults.append(fault)
    url = push_folder("lab/gone", output)
    (commit,) = hub.repos["lab/gone"]["commits"]
    assert url.endswith(commit["oid"]) and {"model.safetensors", "README.md"} <= commit["files"].keys()
    assert commit["files"].keys() == published_files(output).keys() and hub.waited == waits


def test_a_commit_of_others_meanwhile_is_seen_and_what_it_left_is_replaced(hub, output):
    """The commit is made on the one that was read: shards that others pushed in between do not outlive it."""
    push_folder("lab/gone", output)
    commits = hub.repos["lab/gone"]["commits"]

    def others_push():
        shard = "model-00001-of-00001.safetensors"
        commits.append({**commits[-1], "oid": "f" * 40, "title": "others", "files": {shard: b"", "LICENSE": b"x"}})

    (output / "README.md").write_text("---\nlicense: mit\n---\n# Another card\n")
    hub.faults.append(Fault("POST /api/models/lab/gone/preupload", 500, meanwhile=others_push))
    push_folder("lab/gone", output)
    assert [commit["title"] for commit in commits] == ["Upload unlearned model", "others", "Upload unlearned model"]
    assert commits[-1]["files"].keys() == published_files(output).keys() | {"LICENSE"}


def test_a_push_of_what_is_there_makes_no_commit(hub, output):
    assert push_folder("lab/gone", output) == push_folder("lab/gone", output)
    assert len(hub.repos["lab/gone"]["commits"]) == 1


def test_a_card_gets_the_name_of_its_repository(hub, output):
    (output / "README.md").write_text(f'# A card\n\n    load("{PLACE}"), update("{PLACE}")\n')
    push_folder("gone", output)
    (commit,) = hub.repos["tester/gone"]["commits"]
    assert commit["files"]["README.md"].decode() == '# A card\n\n    load("tester/gone"), update("tester/gone")\n'
    assert PLACE in (output / "README.md").read_text()


def test_a_header_of_a_card_that_the_hub_does_not_know_is_said(hub, output, capsys):
    hub.faults.append(Fault("POST /api/validate-yaml", 400))
    assert call("push", "--folder", output, "--repo_id", "lab/gone") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "take the card of lab/gone: Invalid metadata" in error and hub.repos["lab/gone"]["commits"] == []


def test_offline_is_said(output, capsys):
    assert call("push", "--folder", output, "--repo_id", "lab/gone") == 1
    assert capsys.readouterr().err == "error: HF_HUB_OFFLINE is set, so nothing is pushed: unset it, then push again\n"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Requests of SPE-Unlearn over two gloo processes: the state, the step and the ledger of one."""

import json

import pytest
import torch
from accelerate import debug_launcher
from datasets import Dataset

from hf_unlearn.curvature import Curvature
from hf_unlearn.errors import InputError
from hf_unlearn.methods.spe import SPEUnlearn
from hf_unlearn.methods.spe_state import SPEState
from hf_unlearn.runtime.files import read_tensors
from tests.support.models import make_bert
from tests.support.trainers import head_rows, make_trainer, weights


pytestmark = pytest.mark.multi_process

FORGET, RETAIN = (Dataset.from_list(head_rows("classes", *pair)) for pair in ((3, 1), (14, 2)))
AIDED = {"successive": "memory_aided", "unlearning_rate": 1e-3, "damping": 0.3, "sparsity": 0.6}
KINDS_OF_MASKS = {"mlr": {}, "eq. 13": {"importance": "fisher", "rearrange": False}}


def serve(folder, model, settings):
    """Three requests, of a row, of a row and of the last; the model is changed in place."""
    for number in range(3):
        others = Dataset.from_list([*RETAIN, *FORGET.select(range(1, 3))]) if number == 0 else None
        method = SPEUnlearn(state=folder / "state", **AIDED, **settings)
        row = FORGET.select([number])
        trainer = make_trainer(model, method, folder / "run" / str(number), row, others, kl_rows=0, use_cpu=True)
        trainer.train()
        trainer.save_model()
    return trainer


def serve_all(folder):
    for name, settings in KINDS_OF_MASKS.items():
        trainer = serve(folder / name, make_bert().double(), settings)
        found = {"weights": weights(trainer.accelerator.unwrap_model(trainer.model)), "told": trainer.method.account()}
        torch.save(found, folder / f"{name}-{trainer.args.process_index}.pt")
    # What is refused, all refuse; and a process that sees another folder does not go on alone.
    places = [folder / "mlr/state", folder / ("mlr/state" if trainer.args.process_index == 0 else "eq. 13/state")]
    for place, message in zip(
        places, ("forgotten by an earlier request", "process 1 has other a state than process 0")
    ):
        method = SPEUnlearn(state=place, **AIDED)
        model = make_bert().double()
        model.load_state_dict(torch.load(folder / "mlr-0.pt")["weights"])
        other = make_trainer(model, method, folder / "refused", FORGET.select([0]), None, kl_rows=0, use_cpu=True)
        with pytest.raises(InputError, match=message):
            other.train()


def state_tensors(folder):
    """All numbers of a state, by name."""
    config = json.loads((folder / "state_config.json").read_text())
    tensors = read_tensors(folder / "state.safetensors", config["tensors"], config["tensors"])
    return tensors | Curvature.from_pretrained(folder / "fisher").tensors


def test_two_processes_serve_the_requests_of_one(tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir()
    debug_launcher(serve_all, (two,), num_processes=2)
    for name, settings in KINDS_OF_MASKS.items():
        alone = serve(one / name, make_bert().double(), settings)
        before = weights(make_bert().double())
        parts = [torch.load(two / f"{name}-{rank}.pt") for rank in (0, 1)]
        for key, value in weights(alone.model).items():
            assert torch.equal(parts[0]["weights"][key], parts[1]["weights"][key]), key
            gap, moved = (parts[0]["weights"][key] - value).norm(), (value - before[key]).norm()
            assert gap <= 1e-6 * max(moved, 1e-6), (name, key)
        told, expected = parts[0]["told"], alone.method.account()
        assert told["mask_sha256"] == expected["mask_sha256"] and told["requests"] == 3
        assert told["forgotten_rows"] == 3 and told["retain_rows"] == 14
        found, wanted = state_tensors(two / name / "state"), state_tensors(one / name / "state")
        assert found.keys() == wanted.keys()
        assert len(list((two / name / "state/fisher").glob("curvature-*.safetensors"))) == 2  # a share of each process
        largest: dict[str, float] = {}
        for key, tensor in wanted.items():
            if tensor.numel():
                kind = key.split(".")[0]
                largest[kind] = max(largest.get(kind, 0.0), float(tensor.double().abs().max()))
        for key, tensor in wanted.items():
            # Beside all of its kind: what is zero but for rounding (a key's bias) agrees with nothing else.
            scale = largest.get(key.split(".")[0], 0.0)
            assert torch.allclose(found[key].double(), tensor.double(), rtol=1e-6, atol=1e-9 * scale), key
        # Requests of one process and of two stand in the ledger as one each.
        for folder in (two, one):
            logs = [folder / name / "run" / str(number) / "unlearning_log.jsonl" for number in range(3)]
            assert [len(log.read_text().splitlines()) for log in logs] == [1, 1, 1]
    # One process goes on from what two have left.
    model = make_bert().double()
    model.load_state_dict(torch.load(two / "mlr-0.pt")["weights"])
    method = SPEUnlearn(state=two / "mlr/state", **AIDED)
    make_trainer(model, method, tmp_path / "next", RETAIN.select([0]), None, kl_rows=0).train()
    assert SPEState.is_there(two / "mlr/state") and method.account()["requests"] == 4

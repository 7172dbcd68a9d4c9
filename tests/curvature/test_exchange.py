# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""One fit over several gloo processes: the same matrix and step as one process, in a share of its memory."""

import gc
import time

import pytest
import torch
from accelerate import debug_launcher

from hf_unlearn.curvature import Curvature
from hf_unlearn.curvature.capture import Capture
from hf_unlearn.curvature.layout import shared_inputs
from hf_unlearn.curvature.targets import make_targets
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.optim import NaturalGradientAscent
from hf_unlearn.runtime.sharded import is_dtensor, whole
from tests.support.curvature import (
    KIND_NAMES,
    THIRTEEN,
    assert_same_solution,
    factors,
    fitted,
    gradients,
    launched,
    rows,
    solved,
    tiny,
)
from tests.support.models import make_llama


pytestmark = pytest.mark.multi_process


def fit_and_save(folder, size, data):
    accelerator = launched(size)
    for kind in KIND_NAMES:
        curvature = fitted(kind, data=data, accelerator=accelerator)
        curvature.save_pretrained(folder / kind)
        steps, norm = solved(curvature)
        assert curvature.norm(steps) == pytest.approx(norm, rel=1e-12)
        torch.save((steps, norm, curvature.tensors), folder / f"{kind}-{accelerator.process_index}.pt")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("per_batch", [2, 13])
def test_any_number_of_processes_gives_the_matrix_and_step_of_one(tmp_path, size, per_batch):
    """13 rows in 7 batches (the last of one row), then in one: processes without data take part."""
    data = rows(per_batch)
    debug_launcher(fit_and_save, (tmp_path, size, data), num_processes=size)
    for kind in KIND_NAMES:
        alone = fitted(kind, data=data)
        ranks = [torch.load(tmp_path / f"{kind}-{rank}.pt") for rank in range(size)]
        for steps, norm, _ in ranks:
            assert norm == ranks[0][1] and all(torch.equal(step, ranks[0][0][name]) for name, step in steps.items())
        together = Curvature.from_pretrained(tmp_path / kind)
        assert together.metadata["sequences"] == (0 if kind == "identity" else 13)
        assert together.metadata["predicted_tokens"] == alone.metadata["predicted_tokens"]
        assert together.metadata.get("data_sha256") == alone.metadata.get("data_sha256")
        # What is written is what the owners had, each tensor once.
        held = {}
        for *_, tensors in ranks:
            assert kind == "identity" or not held.keys() & tensors.keys()
            held |= tensors
        assert held.keys() == together.tensors.keys()
        assert all(torch.equal(tensor, together.tensors[key]) for key, tensor in held.items())
        found = factors(together)
        for key, factor in factors(alone).items():
            assert (factor - found[key]).norm() <= 1e-6 * factor.norm(), key
        assert_same_solution(solved(alone), ranks[0][:2])
        # One process that loads what several wrote takes the very same step.
        loaded = solved(together)
        assert loaded[1] == ranks[0][1] and all(
            torch.equal(step, ranks[0][0][name]) for name, step in loaded[0].items()
        )


class Watched(list):
    """Batches; at every reading of one, adds up the factors, bases and eigenvalues made since, in this process."""

    def __init__(self, data):
        super().__init__(data)
        self.before, self.peak = {}, 0
        self.before = self.found()

    def found(self):
        things = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.dtype == torch.float64]
        return {
            thing.data_ptr(): thing.nbytes
            for thing in things
            if tuple(thing.shape) in WIDE and thing.data_ptr() not in self.before
        }

    def __iter__(self):
        for batch in super().__iter__():
            self.peak = max(self.peak, sum(self.found().values()))
            yield batch


def wide():
    # No activation of the data above has as many rows as these widths.
    return make_llama(vocab_size=20, hidden_size=16, intermediate_size=40, layers=4, initializer_range=0.3).double()


WIDE = {(16, 16), (40, 40), (40, 16), (16, 40)}


def measure_memory_and_load(folder):
    accelerator = launched(4)
    watched = Watched(rows())
    curvature = fitted(model=wide(), data=watched, accelerator=accelerator)
    held = sum(tensor.nbytes for tensor in curvature.tensors.values())
    torch.save(
        (watched.peak, held, curvature.metadata["stages"]["correction"]["factor_bytes"]),
        folder / f"memory-{accelerator.process_index}.pt",
    )
    loaded = Curvature.from_pretrained(folder / "by-one", accelerator=accelerator)
    torch.save((*solved(loaded), list(loaded.tensors)), folder / f"loaded-{accelerator.process_index}.pt")
    loaded.save_pretrained(folder / "by-four")


def test_memory_of_each_and_what_one_wrote_four_load(tmp_path):
    """Peak factor memory of each of 4 processes: at most 1.3 times a fourth of the whole, in both passes."""
    alone = fitted()
    alone.save_pretrained(tmp_path / "by-one")
    watched = Watched(rows())
    whole = fitted(model=wide(), data=watched)
    total = sum(tensor.nbytes for tensor in whole.tensors.values())
    square = sum(tensor.nbytes for tensor in whole.tensors.values() if tensor.dim() == 2)
    assert watched.peak == square  # the last pass holds bases and eigenvalues
    debug_launcher(measure_memory_and_load, (tmp_path,), num_processes=4)
    for rank in range(4):
        peak, held, account = torch.load(tmp_path / f"memory-{rank}.pt")
        assert max(peak, held, account) <= 1.3 * total / 4
        # Eigenvalue vectors are counted too, but seen by the other count as no factor.
        assert peak <= account <= 1.05 * peak
    steps, norm = solved(alone)
    seen = []
    for rank in range(4):
        found, found_norm, names = torch.load(tmp_path / f"loaded-{rank}.pt")
        assert found_norm == norm and all(torch.equal(found[name], step) for name, step in steps.items())
        seen += names
    assert sorted(seen) == sorted(alone.tensors)
    again = Curvature.from_pretrained(tmp_path / "by-four")
    assert again.metadata["weights_sha256"] == alone.metadata["weights_sha256"]
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in alone.tensors.items())


class Failing(list):
    """Batches of which the third cannot be read."""

    def __iter__(self):
        yield from self[:2]
        raise OSError("the disk is gone")


def errors(folder):
    accelerator = launched(2)
    second = accelerator.process_index == 1
    overflowing, other = tiny(), tiny()
    overflowing.model.layers[3].mlp.up_proj.weight.data[0, 0] = torch.nan
    other.lm_head.weight.data[0, 0] += 1
    cases = {
        "a batch that one cannot read": {"data": Failing(rows()) if second else rows()},
        "no labels on one": {"data": [{"input_ids": THIRTEEN[0]}] if second else rows()},
        "rows in another order on one": {"data": [*rows()[:2], rows()[3], rows()[2]] if second else rows()[:4]},
        "a batch less on one": {"data": rows()[:3] if second else rows()[:4]},
        "a factor that is not finite": {"model": overflowing},
        "another target on one": {"target_modules": ["up_proj"] if second else ["gate_proj"]},
        "no target on one": {"target_modules": ["nothing"] if second else None},
        "another head on one": {"model": other if second else None},
        "another seed on one": {"seed": int(second)},
        "not enough memory": {"max_factor_memory": 2000},
    }
    found = {}
    for name, options in cases.items():
        started = time.monotonic()
        with pytest.raises((OSError, ValueError, FloatingPointError)) as raised:
            fitted(**{"model": None, **options}, accelerator=accelerator)
        found[name] = (type(raised.value).__name__, str(raised.value), time.monotonic() - started)
    curvature = fitted(accelerator=accelerator)
    broken = gradients(curvature)
    broken[curvature.names[-1]][0, 0] = torch.nan
    with pytest.raises(NumericalError) as raised:
        curvature.solve(broken, 1e-3)
    found["solve"] = (type(raised.value).__name__, str(raised.value), 0.0)
    torch.save((found, solved(curvature)), folder / f"errors-{accelerator.process_index}.pt")


def test_what_one_process_raises_all_raise(tmp_path):
    debug_launcher(errors, (tmp_path,), num_processes=2)
    (found, solution), (other, _) = (torch.load(tmp_path / f"errors-{rank}.pt") for rank in (0, 1))
    expected = {
        "a batch that one cannot read": ("OSError", "process 1 of 2: the disk is gone"),
        "no labels on one": ("InputError", "process 1 of 2: the dataloader yields no labels"),
        "rows in another order on one": ("InputError", "process 1 read other data than process 0 (batch 2)"),
        "a batch less on one": ("InputError", "process 1 read other data than process 0 (batch 3)"),
        "a factor that is not finite": ("NumericalError", "is not finite"),
        "another target on one": ("InputError", "process 1 has other settings and weights than process 0"),
        "no target on one": ("InputError", "process 1 of 2: target_modules: no linear module matches"),
        "another head on one": ("InputError", "process 1 has other weights than process 0"),
        "another seed on one": ("InputError", "process 1 has other settings than process 0"),
        "not enough memory": (
            "InputError",
            "max_factor_memory is 2,000 bytes, but model.layers.0.mlp.gate_proj.weight",
        ),
        "solve": ("NumericalError", "of 2: the step of model.layers.3.mlp.down_proj.weight is not finite"),
    }
    assert found.keys() == expected.keys()
    for name, (kind, text) in expected.items():
        assert found[name][0] == kind and text in found[name][1] and "\n" not in found[name][1], (name, found[name])
        assert found[name][:2] == other[name][:2] and found[name][2] < 30, name
    # The processes are still in step after all that.
    assert_same_solution(solved(fitted()), solution)


def sharded_itself(folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    accelerator = launched(2)
    mesh = init_device_mesh("cpu", (2,))

    def shard(model):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    # Seven batches: in the last round one process has none, and its forward is still needed by the other.
    model = shard(tiny())
    curvature = fitted(model=model, accelerator=accelerator)
    assert all(map(is_dtensor, model.parameters()))
    # A forward without a backward leaves the outermost weights whole, unless they are given up.
    inputs = {name: value for name, value in rows()[0].items() if name != "labels"}
    assert set(shared_inputs(model, make_targets(model), inputs)) == set(curvature.names)
    assert all(map(is_dtensor, model.parameters()))
    with Capture(model, {}, None, None), torch.no_grad():
        model(**inputs)
        assert not all(map(is_dtensor, model.parameters()))
    assert all(map(is_dtensor, model.parameters()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    curvature.check_model(model, strict=True)
    curvature.save_pretrained(folder / "sharded")
    with pytest.raises(InputError, match="fisher='exact'"):
        fitted(model=model, accelerator=accelerator, fisher="exact")
    steps, base = take_step(model, curvature)
    torch.save((steps, base), folder / f"step-{accelerator.process_index}.pt")


def take_step(model, curvature):
    """Updates and new weights of one step up the loss of a batch; the same rows on every process."""
    named = {name: parameter for name, parameter in model.named_parameters() if name in curvature.names}
    base = {name: whole(parameter).clone() for name, parameter in named.items()}
    optimizer = NaturalGradientAscent(named, base, curvature, step_norm=0.1, damping=1e-3)
    model(**rows(13)[0]).loss.backward()
    optimizer.step()
    return optimizer.updates(), {name: whole(parameter).clone() for name, parameter in named.items()}


def test_fully_sharded_model(tmp_path):
    debug_launcher(sharded_itself, (tmp_path,), num_processes=2)
    model = tiny()
    alone = fitted(model=model)
    together = Curvature.from_pretrained(tmp_path / "sharded", model=model)
    found = factors(together)
    for key, factor in factors(alone).items():
        assert (factor - found[key]).norm() <= 1e-6 * factor.norm(), key
    updates, weights = take_step(model, alone)
    for rank in (0, 1):
        rank_updates, rank_weights = torch.load(tmp_path / f"step-{rank}.pt")
        for name, update in updates.items():
            assert (update - rank_updates[name]).norm() <= 1e-6 * update.norm(), name
            torch.testing.assert_close(weights[name], rank_weights[name], rtol=1e-9, atol=1e-9)

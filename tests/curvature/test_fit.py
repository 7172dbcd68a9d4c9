# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A whole fit: what it refuses, where models may lie, and what it says of itself."""

import json

import pytest
import torch

from hf_unlearn.curvature import EKFAC, KFAC, make_curvature
from hf_unlearn.errors import InputError, NumericalError
from tests.support.curvature import assert_same_solution, batches, fit_columns, fitted, rows, solutions, solved, tiny


def test_unusable_data(model, data):
    ids, labels, mask = data
    with pytest.raises(InputError, match="empty or all labels are -100"):
        EKFAC().fit(model, [], progress=False)
    with pytest.raises(InputError, match="empty or all labels are -100"):
        EKFAC().fit(model, batches(ids, torch.full_like(ids, -100)), progress=False)
    with pytest.raises(InputError, match="can be read only once"):
        EKFAC().fit(model, iter(batches(ids)), progress=False)
    with pytest.raises(InputError, match="no labels"):
        EKFAC().fit(model, [{"input_ids": ids}], progress=False)
    with pytest.raises(InputError, match="fisher must be one of"):
        EKFAC().fit(model, batches(ids), fisher="true", progress=False)
    with pytest.raises(InputError, match="curvature must be one of"):
        make_curvature("hessian")


@pytest.mark.parametrize("kind", ["kfac", "diagonal"])
def test_a_factor_that_is_not_finite_is_named(model, data, kind):
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="model.layers.0.mlp.*weight is not finite"):
        fit_columns(model, data, kind=kind)


def test_bf16_model_has_fp32_factors(tiny_llama, data):
    reference = fit_columns(tiny_llama(), data, fisher="empirical")
    curvature = fit_columns(tiny_llama().to(torch.bfloat16), data, fisher="empirical")
    assert {tensor.dtype for tensor in curvature.tensors.values()} == {torch.float32}
    assert all((a - b).norm() < 0.1 * a.norm() for a, b in zip(solutions(reference), solutions(curvature)))


def test_metadata_says_what_was_done(model, data):
    metadata = fit_columns(model, data, fisher="probe", seed=7).metadata
    assert (metadata["kind"], metadata["fisher"], metadata["seed"], metadata["sequences"]) == ("ekfac", "probe", 7, 5)
    assert metadata["predicted_tokens"] == int((data[1][:, 1:] != -100).sum())
    assert list(metadata["stages"]) == ["factors", "eigh", "correction"]
    assert all(stage["seconds"] >= 0 and stage["peak_memory_bytes"] > 0 for stage in metadata["stages"].values())
    assert len(metadata["weights_sha256"]) == 6 and metadata["model_class"] == "LlamaForCausalLM"
    json.dumps(metadata)


def test_model_dispatched_over_devices():
    """With accelerate's hooks on every module, as `device_map` leaves them; here all devices are the CPU."""
    from accelerate import dispatch_model

    model = tiny()
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    layers = {f"model.layers.{layer}": "cpu" for layer in range(4)}
    dispatched = dispatch_model(tiny(), device_map=places | layers, main_device="cpu", force_hooks=True)
    assert dispatched.model.layers[0]._hf_hook is not None
    assert_same_solution(solved(fitted(model=model)), solved(fitted(model=dispatched)), 1e-12)


def test_offloaded_targets_are_refused():
    from accelerate import cpu_offload

    model = cpu_offload(tiny(), execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match=r"model.layers.0.mlp.gate_proj.weight is offloaded .* device_map that keeps"):
        fitted(model=model)
    # What is no target may be.
    half = tiny()
    cpu_offload(half.model.layers[3], execution_device=torch.device("cpu"))
    whole = KFAC().fit(tiny(), rows(), target_modules=["0.mlp.up_proj"], progress=False)
    part = KFAC().fit(half, rows(), target_modules=["0.mlp.up_proj"], progress=False)
    assert_same_solution(solved(whole), solved(part), 1e-12)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature on a CUDA device means what it means on the CPU. `pytest -m gpu`; benchmarks/gpu/run.sh runs it too."""

import copy

import pytest
import torch

from hf_unlearn.curvature import EKFAC, KFAC
from hf_unlearn.optim import NaturalGradientAscent


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Factors of 96 and 128 rows are accumulated in several blocks on a CPU and in one on a GPU.
SIZES = {"vocab_size": 60, "hidden_size": 96, "intermediate_size": 128, "heads": 4}


def make_batches(vocab_size: int = 60) -> list[dict]:
    """Four batches of three sequences, some padded left and some right, prompts without labels."""
    generator, batches = torch.Generator().manual_seed(3), []
    for number in range(4):
        ids = torch.randint(3, vocab_size, (3, 20), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 14:] = 0
        mask[1, :5] = 0
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : 2 * number] = -100
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


def blocks(curvature) -> dict[str, torch.Tensor]:
    """G's action in full, free of the signs and order of eigenvectors: G applied to fixed matrices, and its trace."""
    generator, result = torch.Generator().manual_seed(5), {}
    for name in curvature.names:
        matrix = torch.randn(curvature.metadata["targets"][name]["shape"], generator=generator)
        values = curvature._eigenvalues(name)
        rotated = curvature._rotate(name, matrix.to(values)) * values
        result[name] = curvature._unrotate(name, rotated).cpu().double()
        result[f"trace of {name}"] = values.sum().cpu().double()
    return result


def relative_difference(ours: dict, theirs: dict) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].cpu() - theirs[name].cpu()).norm() / theirs[name].norm()) for name in theirs)


@pytest.mark.parametrize("fisher", ["sampled", "probe", "empirical"])
def test_factors_on_cuda_are_those_of_the_cpu(tiny_llama, fisher):
    model = tiny_llama(**SIZES)
    on_cpu = KFAC().fit(model, make_batches(), fisher=fisher, progress=False)
    on_gpu = KFAC().fit(copy.deepcopy(model).cuda(), make_batches(), fisher=fisher, progress=False)
    assert all(tensor.is_cuda for tensor in on_gpu.tensors.values())
    assert on_gpu.metadata["predicted_tokens"] == on_cpu.metadata["predicted_tokens"]
    assert relative_difference(blocks(on_gpu), blocks(on_cpu)) <= 1e-4


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_solve_on_cuda_is_that_of_the_cpu(tiny_llama, tmp_path, kind):
    model = tiny_llama(**SIZES)
    on_gpu = kind().fit(copy.deepcopy(model).cuda(), make_batches(), progress=False)
    on_cpu = kind.from_pretrained(on_gpu.save_pretrained(tmp_path), model=model)
    generator = torch.Generator().manual_seed(1)
    gradients = {name: torch.randn(model.get_parameter(name).shape, generator=generator) for name in on_cpu.names}
    theirs = on_cpu.solve(gradients, damping=1e-6)
    ours = on_gpu.solve({name: gradient.cuda() for name, gradient in gradients.items()}, damping=1e-6)
    assert all(step.is_cuda for step in ours.values())
    assert relative_difference(ours, theirs) <= 1e-4
    assert on_gpu.norm(ours) == pytest.approx(on_cpu.norm(theirs), rel=1e-4)


def test_bf16_model_on_cuda_keeps_fp32_factors_and_small_steps(tiny_llama):
    """Factors of a bf16 model are those of the same weights in fp32, up to the rounding of its activations; a step far
    below the spacing of bf16 numbers is kept."""
    model = tiny_llama(**SIZES).to(torch.bfloat16)
    half = EKFAC().fit(copy.deepcopy(model).cuda(), make_batches(), fisher="empirical", progress=False)
    single = EKFAC().fit(copy.deepcopy(model).float().cuda(), make_batches(), fisher="empirical", progress=False)
    assert all(tensor.dtype == torch.float32 and torch.isfinite(tensor).all() for tensor in half.tensors.values())
    traces = [{key: value for key, value in blocks(fit).items() if key.startswith("trace")} for fit in (half, single)]
    assert relative_difference(*traces) <= 3e-2

    model = model.cuda()
    parameters = {name: model.get_parameter(name) for name in half.names}
    base = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer = NaturalGradientAscent(parameters, base, half, step_norm=1e-6, damping=1e-4)
    optimizer.step()
    optimizer.step()
    assert half.norm(optimizer.updates()) == pytest.approx(2e-6, rel=1e-3)


def test_offloaded_factors_solve_on_cuda(tiny_llama):
    """With `max_factor_memory` the layers are measured in blocks that wait on the CPU; a solve brings them back."""
    model = tiny_llama(**SIZES).cuda()
    limit = 300_000  # bytes: gate and up of one layer (268 kB) or down (152 kB), not both
    whole = EKFAC().fit(model, make_batches(), progress=False)
    offloaded = EKFAC().fit(model, make_batches(), progress=False, max_factor_memory=limit)
    assert not any(tensor.is_cuda for tensor in offloaded.tensors.values())
    stages = offloaded.metadata["stages"]
    assert max(stage["factor_bytes"] for stage in stages.values()) <= limit
    assert relative_difference(blocks(offloaded), blocks(whole)) <= 1e-4
    gradients = {name: torch.ones_like(model.get_parameter(name)) for name in whole.names}
    steps = offloaded.solve(gradients, damping=1e-6)
    assert all(step.is_cuda for step in steps.values())
    assert relative_difference(steps, whole.solve(gradients, damping=1e-6)) <= 1e-4

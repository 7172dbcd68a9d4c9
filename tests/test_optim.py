# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""NaturalGradientAscent against dense matrices built outside the curvature classes."""

import copy

import pytest
import torch

from hf_unlearn.curvature import EKFAC, KFAC, Diagonal, Identity
from hf_unlearn.errors import NumericalError
from hf_unlearn.optim import NaturalGradientAscent, fp32_weights, step_in_fp32
from tests.support.trainers import COLLATE, FORGET, RETAIN, trained_llama


def fitted(kind, dtype=torch.float32):
    """(model, curvature, gradients) on the tiny model; gradients are of the forget rows' loss."""
    model = trained_llama(dtype)
    loader = [COLLATE([RETAIN[i] for i in range(start, start + 6)]) for start in range(0, 24, 6)]
    curvature = kind().fit(model, loader, progress=False)
    model(**COLLATE([*FORGET])).loss.backward()
    return model, curvature


def optimizer_for(model, curvature, step_norm=0.01, damping=1e-3, **kwargs):
    named = {name: parameter for name, parameter in model.named_parameters() if name in curvature.names}
    base = {name: parameter.detach().clone() for name, parameter in named.items()}
    return NaturalGradientAscent(named, base, curvature, step_norm=step_norm, damping=damping, **kwargs)


def dense_block(curvature, name):
    """The block of a weight as a matrix over its flattened entries (row-major), from the stored factors, fp64."""
    if curvature.kind == "identity":
        size = curvature.metadata["targets"][name]["shape"]
        return torch.eye(size[0] * size[1], dtype=torch.float64)
    if curvature.kind == "diagonal":
        values = next(tensor for key, tensor in curvature.tensors.items() if key.endswith(name))
        return torch.diag(values.double().flatten())
    leader = curvature.metadata["targets"][name]["input"]
    q_in = curvature.tensors[f"vectors.input.{leader}"].double()
    q_out = curvature.tensors[f"vectors.output.{name}"].double()
    basis = torch.kron(q_out, q_in)
    if curvature.kind == "ekfac":
        values = curvature.tensors[f"eigenvalues.{name}"].double().flatten()
    else:
        out, inner = curvature.tensors[f"values.output.{name}"], curvature.tensors[f"values.input.{leader}"]
        values = torch.kron(out.double(), inner.double())
    return basis @ torch.diag(values) @ basis.T


@pytest.mark.parametrize("kind", [Identity, Diagonal, KFAC, EKFAC])
def test_step_is_the_damped_dense_solve_with_the_asked_norm(kind):
    alpha, damping = 0.02, 1e-3
    model, curvature = fitted(kind, torch.float64)
    optimizer = optimizer_for(model, curvature, alpha, damping)
    blocks = {name: dense_block(curvature, name) for name in optimizer.named}
    solved = {
        name: torch.linalg.solve(
            block + damping * torch.eye(len(block), dtype=torch.float64), parameter.grad.flatten()
        )
        for (name, parameter), block in zip(optimizer.named.items(), blocks.values())
    }
    norm = sum(vector @ blocks[name] @ vector for name, vector in solved.items()).sqrt()
    before = {name: parameter.detach().clone() for name, parameter in optimizer.named.items()}
    optimizer.step()
    moved = {name: (parameter.detach() - before[name]).flatten() for name, parameter in optimizer.named.items()}
    for name, vector in solved.items():
        expected = alpha * vector / norm
        assert (moved[name] - expected).norm() <= 1e-8 * expected.norm()
    # The norm, under the dense matrices and under the curvature's own.
    square = sum(vector @ blocks[name] @ vector for name, vector in moved.items())
    assert square.sqrt().item() == pytest.approx(alpha, rel=1e-8)
    assert curvature.norm(optimizer.updates()) == pytest.approx(alpha, rel=1e-6)
    assert optimizer.diagnostics["predicted_step_kl"] == pytest.approx(alpha**2 / 2)
    assert optimizer.diagnostics["predicted_kl"] == pytest.approx(alpha**2 / 2, rel=1e-6)


@pytest.mark.parametrize("kind", [Identity, Diagonal, KFAC, EKFAC])
def test_norm_in_fp32(kind):
    model, curvature = fitted(kind)
    optimizer = optimizer_for(model, curvature, 0.02)
    optimizer.step()
    assert curvature.norm(optimizer.updates()) == pytest.approx(0.02, rel=1e-6)


def test_scale_of_the_gradient_does_not_matter():
    model, curvature = fitted(EKFAC)
    optimizer = optimizer_for(model, curvature)
    twin = copy.deepcopy(model)
    other = optimizer_for(twin, curvature)
    for parameter, source in zip(other.named.values(), optimizer.named.values()):
        parameter.grad = source.grad * 4096  # a power of two: exact
    optimizer.step()
    other.step()
    for name, update in optimizer.updates().items():
        assert torch.allclose(update, other.updates()[name], rtol=1e-5, atol=0)


def test_it_ascends():
    model, curvature = fitted(EKFAC)
    batch = COLLATE([*FORGET])
    before = model(**batch).loss.item()
    optimizer_for(model, curvature, 0.05).step()
    assert model(**batch).loss.item() > before


def test_bf16_weights_are_rounded_once_and_keep_small_steps():
    model, curvature = fitted(EKFAC)
    model = model.to(torch.bfloat16)
    optimizer = optimizer_for(model, curvature, step_norm=1e-5)
    gradients = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in optimizer.named.items()
    }
    total = {name: torch.zeros(p.shape) for name, p in optimizer.named.items()}
    for _ in range(50):
        for name, parameter in optimizer.named.items():
            parameter.grad = gradients[name].bfloat16()
        vector, norm = next(optimizer.directions([1e-3]))
        for name in total:
            total[name] += vector[name] * (1e-5 / norm)
        optimizer.step()
    lost = 0
    for name, parameter in optimizer.named.items():
        update = optimizer.updates()[name]
        assert update.dtype == torch.float32 and torch.allclose(update, total[name], rtol=1e-4, atol=1e-10)
        assert torch.equal(parameter, (optimizer.base[name].float() + update).bfloat16())
        # Adding each step to the bf16 weight would have lost most of them.
        lost += int(((optimizer.base[name] + (total[name] / 50).bfloat16()) == optimizer.base[name]).sum())
    assert lost > 0.9 * sum(parameter.numel() for parameter in optimizer.named.values())


def test_apply_is_a_candidate_and_leaves_no_trace():
    model, curvature = fitted(KFAC)
    optimizer = optimizer_for(model, curvature)
    optimizer.step()
    weights = {name: parameter.detach().clone() for name, parameter in optimizer.named.items()}
    vector, norm = next(optimizer.directions([1e-3]))
    optimizer.apply(vector, 0.5 / norm)
    assert all(not torch.equal(parameter, weights[name]) for name, parameter in optimizer.named.items())
    optimizer.apply(vector, 0.0)
    assert all(torch.equal(parameter, weights[name]) for name, parameter in optimizer.named.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_brings_update_and_weights_back(dtype, tmp_path):
    model, curvature = fitted(EKFAC)
    original = copy.deepcopy(model).to(dtype)
    model = model.to(dtype)
    optimizer = optimizer_for(model, curvature)
    for parameter in optimizer.named.values():
        parameter.grad = parameter.grad if parameter.grad is not None else torch.ones_like(parameter)
    optimizer.step()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    # What is loaded into is the original model: its weights must follow (a PEFT checkpoint does not hold them).
    other = optimizer_for(original, curvature)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.param_groups[0]["steps"] == 2
    for name, parameter in other.named.items():
        assert other.updates()[name].dtype == torch.float32
        assert torch.equal(other.updates()[name], optimizer.updates()[name])
        assert torch.equal(parameter, optimizer.named[name])


def test_refit_is_asked_before_every_step_with_the_steps_taken():
    asked = []
    model, curvature = fitted(Identity)
    optimizer = optimizer_for(model, curvature, refit=asked.append)
    optimizer.step()
    optimizer.step()
    assert asked == [0, 1]


@pytest.mark.parametrize(
    "value, message", [(float("nan"), "not finite"), (float("inf"), "not finite"), (None, "missing")]
)
def test_bad_gradient_names_the_weight_and_changes_nothing(value, message):
    model, curvature = fitted(Identity)
    optimizer = optimizer_for(model, curvature)
    name = list(optimizer.named)[2]
    if value is None:
        optimizer.named[name].grad = None
    else:
        optimizer.named[name].grad[0, 0] = value
    with pytest.raises(NumericalError, match=f"{name} is {message}"):
        optimizer.step()
    assert all(torch.equal(parameter, optimizer.base[key]) for key, parameter in optimizer.named.items())


def test_zero_gradient_is_an_error():
    model, curvature = fitted(EKFAC)
    optimizer = optimizer_for(model, curvature)
    for parameter in optimizer.named.values():
        parameter.grad.zero_()
    with pytest.raises(NumericalError, match="gradient is zero"):
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_stepped_as_their_fp32_twins(make, dtype):
    """Steps far below the spacing of the weights add up; a reloaded state goes on to the same bits."""
    torch.manual_seed(0)
    half = [torch.nn.Parameter((0.02 * torch.randn(40)).to(dtype)) for _ in range(3)]
    whole = [torch.nn.Parameter(parameter.detach().float()) for parameter in half]
    base = [parameter.detach().clone() for parameter in half]
    other = torch.nn.Parameter(torch.randn(3))  # of full precision, beside them

    def optimizer_of(weights):
        return make([{"params": weights[:1], "lr": 1e-6}, {"params": [*weights[1:], other]}], lr=2e-6)

    first, oracle = optimizer_of(half), optimizer_of(whole)
    step_in_fp32(first)

    def step(optimizer, weights, seed):
        generator = torch.Generator().manual_seed(seed)
        for weight in weights[:2]:  # the third never gets a gradient
            weight.grad = torch.randn(40, generator=generator).to(dtype).to(weight.dtype)
        optimizer.step()

    for seed in range(5):
        step(first, half, seed)
        step(oracle, whole, seed)
    assert [parameter.dtype for parameter in half] == [dtype] * 3 and half[0].grad.dtype == dtype
    kept = fp32_weights(first)
    for parameter, twin, before in zip(half[:2], whole, base):
        assert torch.equal(kept[parameter], twin) and torch.equal(parameter, twin.to(dtype))
        assert (twin != before.float()).any()
    saved = first.state_dict()
    again = [torch.nn.Parameter(before.clone()) for before in base]
    second = optimizer_of(again)
    step_in_fp32(second)
    second.load_state_dict(saved)
    assert all(torch.equal(parameter, now) for parameter, now in zip(again, half))
    step(second, again, 7)
    step(oracle, whole, 7)
    kept = fp32_weights(second)
    assert all(torch.equal(kept[parameter], twin) for parameter, twin in zip(again[:2], whole))
    assert torch.equal(again[2], base[2])

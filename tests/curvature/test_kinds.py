# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Kinds of curvature against the dense Gauss-Newton blocks of one table of cases; and a kind defined elsewhere."""

import functools
import math

import pytest
import torch

from hf_unlearn.curvature import (
    EKFAC,
    KFAC,
    KINDS,
    Curvature,
    Diagonal,
    Identity,
    make_curvature,
    plan,
)
from hf_unlearn.curvature.layout import make_layout
from hf_unlearn.curvature.targets import make_targets
from hf_unlearn.errors import InputError
from tests.support.curvature import (
    KIND_NAMES,
    Counted,
    Stopping,
    batches,
    fit_columns,
    fitted,
    ragged,
    rows,
    same_bits,
    solved,
    tiny,
)
from tests.support.curvature_cases import CASES, CLOSE, NAME, dense, eigenbasis, small_llama
from tests.support.structures import rows_of


@functools.cache
def fitted_case(name, kind):
    case = CASES[name]()
    return make_curvature(kind).fit(
        case.model, case.batches, target_modules=case.target_modules, fisher="exact", progress=False
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KIND_NAMES)
def test_block_is_the_dense_one(case, kind):
    """K-FAC is exact where the block is one Kronecker product; EK-FAC and diagonal have its diagonal in a basis."""
    curvature, case = fitted_case(case, kind), CASES[case]()
    assert len(curvature.names) == case.weights
    assert curvature.metadata["predicted_tokens"] == (0 if kind == "identity" else case.tokens)
    for name in curvature.names:
        expected, basis = case.block(name), eigenbasis(curvature, name)
        found = dense(curvature, name)
        if kind == "identity":
            assert torch.equal(found, torch.eye(len(basis), dtype=torch.float64))
            continue
        if kind != "kfac":
            values = (basis.T @ expected @ basis).diagonal()
            torch.testing.assert_close(curvature._eigenvalues(name).flatten(), values, **case.close)
        if kind != "diagonal" and case.kronecker:
            torch.testing.assert_close(found, expected, **case.close)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("damping", [1e-3, 1e-2])
def test_solve_and_norm_equal_the_dense_inverse_and_form(case, kind, damping):
    curvature, case = fitted_case(case, kind), CASES[case]()
    for name in curvature.names:
        shape = case.model.get_parameter(name).shape
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        block = dense(curvature, name)
        eye = torch.eye(len(block), dtype=torch.float64)
        expected = torch.linalg.solve(block + damping * eye, g.flatten())
        step = curvature.solve({name: g}, damping)[name]
        torch.testing.assert_close(step.flatten(), expected, rtol=1e-8, atol=1e-8)
        form = math.sqrt(expected @ block @ expected)
        assert curvature.norm({name: step}) == pytest.approx(form, rel=1e-8)
        for other, (steps, norm) in zip((damping, 1.0), curvature.solve_many({name: g}, (damping, 1.0))):
            torch.testing.assert_close(steps, curvature.solve({name: g}, other))
            assert norm == pytest.approx(curvature.norm(steps), rel=1e-12)
        if case.kronecker and kind in ("kfac", "ekfac"):
            close = {"rtol": max(1e-8, case.close["rtol"]), "atol": max(1e-8, case.close["rtol"])}
            true = case.block(name)
            step_of_true = torch.linalg.solve(true + damping * eye, g.flatten())
            torch.testing.assert_close(step.flatten(), step_of_true, **close)
            assert curvature.norm({name: step}) == pytest.approx(
                math.sqrt(step_of_true @ true @ step_of_true), rel=close["rtol"]
            )


@pytest.mark.parametrize("case", ["bert", "vit", "values", "spans"])
def test_empirical_squares_of_encoders_are_per_sample(case):
    """Both ends of a span are in the gradient of its row."""
    case = CASES[case]()
    curvature = Diagonal().fit(case.model, case.batches, fisher="empirical", progress=False)
    assert len(curvature.names) == 2 and curvature.metadata["sequences"] == 5
    assert curvature.metadata["predicted_tokens"] == case.tokens == (10 if case.head == "span" else 5)
    for name in curvature.names:
        torch.testing.assert_close(curvature._eigenvalues(name), case.empirical_squares(name), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("head", ["values", "spans"])
def test_factors_of_values_and_spans_are_those_of_autograd(head):
    """A and S row by row without padding: inputs of each module, and gradients of sqrt(H) * outputs at its output."""
    case = CASES[head]()
    curvature = KFAC().fit(case.model, case.batches, fisher="exact", progress=False)
    for name in curvature.names:
        module = case.model.get_submodule(name.removesuffix(".weight"))
        a = s = inputs = 0.0
        for row in rows_of(case.columns):
            seen = []
            handle = module.register_forward_hook(lambda module, args, output, seen=seen: seen.extend((*args, output)))
            row.pop("labels")
            outputs = case.model(**row)
            handle.remove()
            a, inputs = a + seen[0][0].T @ seen[0][0], inputs + len(seen[0][0])
            if head == "values":
                parts = [outputs.logits[0, 0]]
            else:
                parts = []
                for logits in (outputs.start_logits[0], outputs.end_logits[0]):
                    logs = logits.log_softmax(-1)
                    parts += list(logs.detach().exp().sqrt() * logs)  # sum of p (dlog p)^2 is the Fisher
            for part in parts:
                (gradient,) = torch.autograd.grad(part, seen[1], retain_graph=True)
                s = s + gradient[0].T @ gradient[0]
        expected = torch.kron(s / case.tokens, a / inputs).detach()
        torch.testing.assert_close(dense(curvature, name), expected, rtol=1e-8, atol=1e-12)


def sequence_gradients(model, name, data):
    """Gradient of the summed loss of each sequence through the model's own loss: the empirical D of every sequence."""
    gradients, tokens = [], 0
    for ids, labels, mask in zip(*data):
        model.zero_grad()
        count = int((labels[1:] != -100).sum())
        (model(input_ids=ids[None], attention_mask=mask[None], labels=labels[None]).loss * count).backward()
        gradients.append(model.get_parameter(name).grad.clone())
        tokens += count
    model.zero_grad()
    return gradients, tokens


@pytest.mark.parametrize("length", [7, 40])
def test_empirical_squares_are_those_of_whole_sequences(length):
    """Cross terms between tokens are in; both sides of the break-even (4.6 rows here) are walked."""
    model = small_llama()
    data = ragged(vocab=11, lengths=(length, 4, length - 2, 3))
    ekfac = EKFAC().fit(model, batches(*data[:2], mask=data[2]), fisher="empirical", progress=False)
    diagonal = Diagonal().fit(model, batches(*data[:2], mask=data[2]), fisher="empirical", progress=False)
    for name in (NAME.format(0, "down_proj"), NAME.format(1, "gate_proj")):
        gradients, tokens = sequence_gradients(model, name, data)
        torch.testing.assert_close(diagonal._eigenvalues(name), sum(g**2 for g in gradients) / tokens, **CLOSE)
        expected = sum(ekfac._rotate(name, g) ** 2 for g in gradients) / tokens
        torch.testing.assert_close(ekfac._eigenvalues(name), expected, **CLOSE)


def test_predicted_divergence_is_half_the_squared_norm():
    """The unit: v^T G v / 2 is the mean KL in nats a predicted token. One weight, one token: exact to second order."""
    from transformers import set_seed

    set_seed(0)
    model = small_llama()
    ids = torch.randint(3, 11, (6, 2))
    name = NAME.format(1, "down_proj")
    curvature = EKFAC().fit(model, batches(ids), fisher="exact", progress=False)
    q_in, q_out = curvature._both("vectors", name)
    eigenvalues = curvature._eigenvalues(name)
    place = torch.zeros_like(eigenvalues).flatten()
    place[eigenvalues.argmax()] = 1
    step = 1e-3 * q_out @ place.view_as(eigenvalues) @ q_in.T
    before = model(ids).logits[:, 0].log_softmax(-1)
    model.get_parameter(name).data += step
    after = model(ids).logits[:, 0].log_softmax(-1)
    measured = float((before.exp() * (before - after)).sum(-1).mean().detach())
    assert curvature.norm({name: step}) ** 2 / 2 == pytest.approx(measured, rel=0.02)


def test_identity_is_plain_gradient(model, data):
    curvature = fit_columns(model, data, kind="identity")
    g = torch.randn(12, 8).double()
    torch.testing.assert_close(curvature.solve({curvature.names[0]: g}, 0.0)[curvature.names[0]], g)
    assert curvature.norm({curvature.names[0]: g}) == pytest.approx(float(g.norm()))
    assert isinstance(make_curvature(curvature), Identity) and isinstance(make_curvature("diagonal"), Diagonal)


@pytest.fixture
def new_kind():
    """A curvature defined outside of the package, as a user would."""

    class X(KFAC):
        kind = "x"

    yield X
    del KINDS["x"]


def test_a_new_kind_is_one_class(new_kind, tmp_path):
    assert type(make_curvature("x")) is new_kind
    whole = fitted("x")
    same_bits(whole, fitted("kfac"))
    assert all(stage["factor_bytes"] > 0 for stage in whole.metadata["stages"].values())
    costs, known = (plan(tiny(), kind=kind, sequences=13, sequence_length=5) for kind in ("x", "kfac"))
    assert costs.factor_bytes == known.factor_bytes > 0 and costs.stages == known.stages
    assert costs["factors"].flops > 0

    # Two blocks, and a fit that stops in the second and goes on there.
    options = {"max_factor_memory": costs.factor_bytes // 2}
    assert plan(tiny(), kind="x", sequences=13, sequence_length=5, **options).blocks == 2
    same_bits(whole, fitted("x", **options))
    options |= {"checkpoint_dir": tmp_path / "progress", "checkpoint_every": 3}
    with pytest.raises(OSError, match="stopped"):
        fitted("x", data=Stopping(rows(), 1 + 7 + 5), **options)
    with Counted() as counted:
        same_bits(whole, fitted("x", **options))
    assert counted.count == 7 - 3

    loaded = Curvature.from_pretrained(whole.save_pretrained(tmp_path / "fitted"), model=tiny())
    assert type(loaded) is new_kind and loaded.metadata == whole.metadata
    same_bits(whole, loaded)
    assert solved(loaded)[1] == solved(whole)[1]


def test_weights_of_a_new_kind_are_spread_over_processes(new_kind):
    targets = make_targets(tiny())
    leaders = {name: name for name in targets}
    owners = make_layout(new_kind, targets, leaders, 2).owners
    assert owners == make_layout(KFAC, targets, leaders, 2).owners and set(owners.values()) == {0, 1}


def test_a_kind_is_taken_once(new_kind):
    with pytest.raises(InputError, match=r"the curvature kind 'kfac' is hf_unlearn\.curvature\.kinds\.KFAC"):
        type("Other", (KFAC,), {"kind": "kfac"})
    assert KINDS["kfac"] is KFAC

    # A cell of a notebook that runs again defines the same class again.
    again = type("X", (KFAC,), {"kind": "x", "__qualname__": new_kind.__qualname__, "__module__": __name__})
    assert type(make_curvature("x")) is again
    # A subclass without a kind of its own is none.
    assert type("Variant", (KFAC,), {}) not in KINDS.values()


def test_a_kind_that_no_class_has_is_named(new_kind, tmp_path):
    folder = fitted("x").save_pretrained(tmp_path)
    KINDS.pop("x")
    try:
        with pytest.raises(InputError, match="kind 'x', which no class has: import the module that defines it"):
            Curvature.from_pretrained(folder)
        with pytest.raises(InputError, match="curvature must be one of ekfac, kfac, diagonal, identity, not 'x'"):
            plan(tiny(), kind="x", sequences=1, sequence_length=2)
    finally:
        KINDS["x"] = new_kind

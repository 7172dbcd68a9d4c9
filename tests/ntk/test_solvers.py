# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Jacobians against `torch.func.jacrev`, and the update against retraining of a linear model and dense algebra."""

import pytest
import torch
from torch import nn

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.ntk import Jacobians, measure_gram, ntk_update
from hf_unlearn.ntk.grams import TENSORS, contrasts
from hf_unlearn.ntk.solvers import cgls, choose_solver


SOLVERS = ("dual", "primal", "cg")
pytestmark = pytest.mark.filterwarnings("ignore:the system is singular")


class Net(nn.Module):
    """Convolution, BatchNorm, LayerNorm and a head, with statistics that are not those of the data."""

    def __init__(self, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            for bn in (self.bn, self.bn2):
                bn.running_mean.copy_(torch.randn(len(bn.running_mean), generator=generator))
                bn.running_var.copy_(torch.rand(len(bn.running_var), generator=generator) + 0.5)

    def forward(self, pixel_values):
        x = self.bn(self.conv(pixel_values)).relu()
        x = self.bn2(self.conv2(x)).tanh()
        return self.head(self.norm(x.mean((2, 3))))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def images():
    return torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


NAMES = ["bn.weight", "bn.bias", "bn2.weight", "bn2.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]


def dense_jacobian(model, images, names, outputs=lambda z: z):
    model.eval()
    values = {name: dict(model.named_parameters())[name].detach() for name in names}
    jacobian = torch.func.jacrev(lambda v: outputs(torch.func.functional_call(model, v, (images,))))(values)
    return torch.cat([jacobian[name].flatten(2) for name in names], -1)


@pytest.mark.parametrize("chunk_size", [1, 3, 16])
def test_jacobian_equals_jacrev(net, images, chunk_size):
    expected = dense_jacobian(net, images, NAMES)
    parts = list(Jacobians(net, NAMES, chunk_size=chunk_size)({"pixel_values": images}))
    jacobian = torch.cat([part for _, part in parts])
    assert (jacobian - expected).norm() <= 1e-6 * expected.norm()
    assert torch.allclose(torch.cat([outputs for outputs, _ in parts]), net(images), atol=1e-6)


class Vectors(nn.Module):
    """BatchNorm of (n, C) and of (n, C, L)."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wide, self.flat = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        for bn in (self.wide, self.flat):
            bn.running_mean.copy_(torch.randn(3, generator=generator))
            bn.running_var.copy_(torch.rand(3, generator=generator) + 0.5)

    def forward(self, pixel_values):
        return self.flat(self.wide(pixel_values.flatten(2)).tanh().mean(2)) ** 2


@pytest.mark.parametrize(
    "names", [["wide.weight", "wide.bias", "flat.weight", "flat.bias"], ["wide.weight", "flat.bias"]]
)
def test_jacobian_of_vectors_and_of_a_part_of_a_layer(images, names):
    model = Vectors().eval()
    found = torch.cat([jacobian for _, jacobian in Jacobians(model, names, chunk_size=4)({"pixel_values": images})])
    assert torch.allclose(found, dense_jacobian(model, images, names), rtol=1e-5, atol=1e-6)


def test_jacobian_of_probabilities(net, images):
    expected = dense_jacobian(net, images, NAMES[:4], lambda z: z.softmax(-1))
    jacobian = torch.cat(
        [part for _, part in Jacobians(net, NAMES[:4], outputs="probabilities")({"pixel_values": images})]
    )
    assert (jacobian - expected).norm() <= 1e-6 * expected.norm()


def test_jacobian_at_other_values_leaves_the_model_as_it_was(net, images):
    net.train()
    net.bn.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    at = {"bn.weight": torch.randn(5), "bn.bias": torch.randn(5)}
    jacobian = torch.cat([part for _, part in Jacobians(net, NAMES[:2], at=at)({"pixel_values": images})])
    assert net.training and net.bn.training and not net.bn.weight.requires_grad and net.bn.bias.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert "forward" not in vars(net.bn)
    with torch.no_grad():
        net.bn.weight.copy_(at["bn.weight"])
        net.bn.bias.copy_(at["bn.bias"])
    assert torch.allclose(jacobian, dense_jacobian(net, images, NAMES[:2]), atol=1e-5)


def test_products_jvp_and_vjp_equal_the_dense_jacobian(net, images):
    jacobian = dense_jacobian(net, images, NAMES)
    jacobians = Jacobians(net, NAMES, chunk_size=3)
    cotangents = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    weights = iter(cotangents.split(3))
    rows = torch.cat([row for _, row in jacobians.products({"pixel_values": images}, lambda z: next(weights))])
    assert torch.allclose(rows, torch.einsum("nk,nkp->np", cotangents, jacobian), atol=1e-4)
    vector = torch.randn(jacobians.size, generator=torch.Generator().manual_seed(3))
    product = jacobians.jvp({"pixel_values": images}, jacobians.unflatten(vector))
    assert torch.allclose(product, jacobian @ vector, atol=1e-4)
    pulled = jacobians.flatten(jacobians.vjp({"pixel_values": images}, cotangents)).float()
    assert torch.allclose(pulled, torch.einsum("nk,nkp->p", cotangents, jacobian), atol=1e-4)


def test_jacobian_refuses_what_it_cannot_do(net, images):
    with pytest.raises(InputError, match="no parameter nothing"):
        Jacobians(net, ["nothing"])
    with pytest.raises(InputError, match="no parameter to take"):
        Jacobians(net, [])
    with pytest.raises(InputError, match="outputs must be"):
        Jacobians(net, NAMES, outputs="odds")
    with pytest.raises(InputError, match="conv is a Conv2d"):
        list(Jacobians(net, ["conv.weight"])({"pixel_values": images}))
    net.unused = nn.BatchNorm1d(3)
    for names in (["unused.weight"], ["bn.weight", "unused.weight"]):
        with pytest.raises(InputError, match="unused.weight does not reach"):
            list(Jacobians(net, names)({"pixel_values": images}))
    with pytest.raises(NumericalError, match="not finite"):
        list(Jacobians(net, NAMES)({"pixel_values": images * float("nan")}))


# ---- the update -----------------------------------------------------------------------------------------------------
def problem(forget, retain, classes, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return draw(forget, classes, size), draw(retain, classes, size), draw(forget, classes), draw(retain, classes)


def trained(jacobian, residual, ridge):
    """argmin |J w - e|^2 + ridge |w|^2, of minimum norm: least squares of the augmented system, no normal equations."""
    j, e = jacobian.flatten(0, 1), residual.flatten()
    if ridge:
        size = j.shape[1]
        j = torch.cat([j, ridge**0.5 * torch.eye(size, dtype=j.dtype)])
        e = torch.cat([e, torch.zeros(size, dtype=e.dtype)])
    return torch.linalg.pinv(j) @ e


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(3, 8, 2, 40), (6, 30, 3, 20)], ids=["more parameters", "more rows"])
def test_update_equals_retraining_of_a_linear_model(shape, ridge, solver):
    j_f, j_r, e_f, e_r = problem(*shape)
    expected = trained(j_r, e_r, ridge) - trained(torch.cat([j_r, j_f]), torch.cat([e_r, e_f]), ridge)
    update = ntk_update(j_f, j_r, e_f, e_r, ridge, solver)
    assert (update - expected).norm() <= 1e-6 * expected.norm()
    flat = ntk_update(j_f.flatten(0, 1), j_r.flatten(0, 1), e_f.flatten(), e_r.flatten(), ridge, solver)
    assert torch.equal(update, flat)


@pytest.mark.parametrize("solver", SOLVERS)
def test_update_equals_gradient_descent_on_the_retain_set(solver):
    """A head on frozen features: the update lands where full-batch descent to the minimum on D_r lands."""
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    weight = torch.zeros(3, 6, dtype=torch.float64)
    jacobian = torch.einsum("nd,kc->nkcd", features, torch.eye(3, dtype=torch.float64)).flatten(2)
    tuned = torch.linalg.lstsq(features, targets).solution.T
    update = ntk_update(jacobian[30:], jacobian[:30], targets[30:], targets[:30], 0.0, solver)
    for _ in range(4000):
        weight -= 0.02 * (weight @ features[:30].T - targets[:30].T) @ features[:30]
    assert ((tuned + update.view(3, 6)) - weight).norm() <= 1e-5 * weight.norm()


def test_the_printed_equation_fails_where_the_derived_one_holds():
    """Equation (1) of the paper with the shape mended but the sign as printed: off by more than the update itself."""
    j_f, j_r, e_f, e_r = problem(3, 8, 1, 40)
    expected = trained(j_r, e_r, 0) - trained(torch.cat([j_r, j_f]), torch.cat([e_r, e_f]), 0)
    f, r, y_f, y_r = j_f[:, 0], j_r[:, 0], e_f[:, 0], e_r[:, 0]
    k_rr, k_rf, k_ff = r @ r.T, r @ f.T, f @ f.T
    with pytest.raises(RuntimeError):
        k_rf.T @ torch.linalg.inv(k_ff) @ y_r  # the shapes as printed
    project = torch.eye(40, dtype=torch.float64) - r.T @ torch.linalg.solve(k_rr, r)
    m = torch.linalg.inv(k_ff - k_rf.T @ torch.linalg.solve(k_rr, k_rf))
    printed = project @ f.T @ m @ (y_f + k_rf.T @ torch.linalg.solve(k_rr, y_r))
    derived = -project @ f.T @ m @ (y_f - k_rf.T @ torch.linalg.solve(k_rr, y_r))
    assert (derived - expected).norm() <= 1e-9 * expected.norm()
    assert (printed - expected).norm() > expected.norm()


def test_solvers_agree_on_fp32_jacobians_of_bad_condition():
    generator = torch.Generator().manual_seed(5)
    scales = torch.logspace(0, -3, 30)
    make = lambda rows: torch.randn(rows, 2, 30, generator=generator) * scales
    arguments = make(10), make(60), torch.randn(10, 2, generator=generator), torch.randn(60, 2, generator=generator)
    updates = [ntk_update(*arguments, 1e-3, solver) for solver in SOLVERS]
    for update in updates[1:]:
        assert (update - updates[0]).norm() <= 1e-6 * updates[0].norm()


def test_nothing_to_undo_gives_no_update():
    """Forget rows that the retained model fits already: retraining without them changes nothing."""
    _, j_r, _, e_r = problem(1, 20, 2, 10)
    w = trained(j_r, e_r, 0.0)
    j_f = torch.randn(4, 2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    for solver in SOLVERS:
        update = ntk_update(j_f, j_r, j_f @ w, e_r, 0.0, solver)
        assert update.norm() <= 1e-9


def test_auto_takes_the_cheaper_side():
    assert choose_solver(rows=100, size=1000) == "dual"
    assert choose_solver(rows=1000, size=100) == "primal"
    assert choose_solver(rows=50_000, size=2026) == "primal"
    assert choose_solver(rows=50_000, size=60_000) == "cg"
    with pytest.raises(InputError, match="solver must be"):
        choose_solver(1, 1, "lu")


def test_a_singular_system_without_ridge_says_so():
    j_f, j_r, e_f, e_r = problem(3, 8, 2, 40)
    with pytest.warns(UserWarning, match=r"singular without a ridge \(rank 16 of 40\)"):
        ntk_update(j_f, j_r, e_f, e_r, 0.0, "primal")


def test_update_refuses_bad_input():
    j_f, j_r, e_f, e_r = problem(3, 8, 2, 40)
    with pytest.raises(InputError, match="retain set is empty"):
        ntk_update(j_f, j_r[:0], e_f, e_r[:0])
    with pytest.raises(InputError, match="forget set has 6 Jacobian rows and 4 residuals"):
        ntk_update(j_f, j_r, e_f[:2], e_r)
    with pytest.raises(InputError, match="39 and 40 parameters"):
        ntk_update(j_f[..., :39], j_r, e_f, e_r)
    with pytest.raises(InputError, match="ridge must not be negative"):
        ntk_update(j_f, j_r, e_f, e_r, -1.0)
    with pytest.raises(NumericalError, match="retain Jacobian"):
        ntk_update(j_f, j_r * float("inf"), e_f, e_r)
    with pytest.raises(NumericalError, match="stopped at a relative residual"):
        cgls(lambda v: j_r.flatten(0, 1) @ v, lambda u: j_r.flatten(0, 1).T @ u, e_r.flatten(), 0.0, max_iterations=2)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_contrasts_are_a_basis_of_what_is_centred(classes):
    basis = contrasts(classes)
    identity = torch.eye(classes, dtype=torch.float64)
    assert torch.allclose(basis.T @ basis, identity - 1 / classes, atol=1e-12)
    assert torch.allclose(basis @ basis.T, identity[1:, 1:], atol=1e-12)


def test_random_contrasts_are_right_on_average_and_the_same_for_a_sample():
    """A thousand near copies of each sample draw contrasts of their own; the mean error falls with their number."""
    model, names = Net().double(), NAMES[2:]
    images = torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5) % 4
    jacobians = Jacobians(model, names, chunk_size=100)

    def gram(rows, count=None, copies=1, size=100):
        move = 1e-9 * torch.arange(copies, dtype=torch.float64).repeat_interleave(len(rows))
        pixels = images[rows].repeat(copies, 1, 1, 1) + move[:, None, None, None]
        batches = zip(pixels.split(size), labels[rows].repeat(copies).split(size))
        return measure_gram(jacobians, [{"pixel_values": x, "labels": y} for x, y in batches], None, count)

    everything = range(5)
    exact, drawn = gram(everything), gram(everything, 1)
    many = {copies: gram(everything, 1, copies) for copies in (40, 1000)}
    for name in TENSORS:
        truth = getattr(exact, name)
        error = {
            copies: float((getattr(g, name) / copies - truth).norm() / truth.norm()) for copies, g in many.items()
        }
        assert error[1000] < 0.1 and error[1000] < 0.6 * error[40], name
        assert (getattr(drawn, name) - truth).norm() > 0.05 * truth.norm()
        # The same whatever the batches; and of a part taken away nothing is left.
        for other in (gram(everything, 1, size=2), gram([3, 1], 1) + gram([0, 2, 4], 1)):
            assert torch.allclose(getattr(other, name), getattr(drawn, name), rtol=1e-9, atol=1e-9)
        assert torch.equal(getattr(gram(everything, 3), name), truth)

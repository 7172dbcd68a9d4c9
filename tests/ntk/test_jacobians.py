# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Per-sample Jacobians against `torch.func.jacrev`: of layers, through tuners, of models of transformers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hf_unlearn import BatchNormTuningConfig
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.ntk import Jacobians
from hf_unlearn.ntk import jacobians as module
from hf_unlearn.tuners import initial_parameters
from hf_unlearn.tuners.batch_norm import BatchNormTuningLayer
from tests.support.images import MODELS, Request, make_classifier
from tests.support.jacobians import NAMES, Net, dense_jacobian
from tests.support.tuners import CASES, HEAD, IMAGES, make_resnet, nudge, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def images():
    return torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))


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


class Smooth(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(5, 6).double(), torch.nn.Linear(6, 3).double()

    def forward(self, pixel_values):
        return self.second(self.first(pixel_values).tanh())


def test_the_midpoint_is_a_secant():
    """f(w0) + J(midpoint) (w - w0) is f(w) up to |w - w0|^3, with J(w0) up to |w - w0|^2."""
    torch.manual_seed(0)
    model, batch = Smooth(), {"pixel_values": torch.randn(8, 5, dtype=torch.float64)}
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    move = {name: torch.randn_like(value) for name, value in before.items()}

    def error(size, share):
        step = {name: size * value for name, value in move.items()}
        at = {name: value + share * step[name] for name, value in before.items()}
        jacobians = Jacobians(model, list(before), at=at, origin=before, chunk_size=3)
        linear = torch.cat([z + j @ jacobians.flatten(step) for z, j in jacobians(batch)])
        after = {name: value + step[name] for name, value in before.items()}
        return float((linear - torch.func.functional_call(model, after, kwargs=batch)).norm())

    assert 7 < error(0.02, 0.5) / error(0.01, 0.5) < 9
    assert 3.5 < error(0.02, 0.0) / error(0.01, 0.0) < 4.5


# ---- through the tuners, and of models of transformers --------------------------------------------------------------
def test_batch_norm_has_its_own_backward_through_the_tuner(monkeypatch):
    """The path of the recipes, against `jacrev` and against normalised values times a weight for every sample."""
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    nudge(model)
    names, calls, apply = tuned_names(model), [], module._ChannelAffine.apply

    def counted(x, weight, *rest):
        calls.append(tuple(weight.shape))
        return apply(x, weight, *rest)

    monkeypatch.setattr(module._ChannelAffine, "apply", counted)
    take = lambda: torch.cat([part for _, part in Jacobians(model, names, chunk_size=6)({"pixel_values": IMAGES})])
    found = take()
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNormTuningLayer)]
    assert calls == [(6, layer.base_layer.num_features) for layer in layers]

    def plain(layer, x):
        normal = F.batch_norm(x, layer.running_mean, layer.running_var, None, None, False, 0.0, layer.eps)
        return normal * layer.weight[..., None, None] + layer.bias[..., None, None]

    monkeypatch.setitem(module.BATCHED_FORWARDS, _BatchNorm, plain)
    for expected in (take(), dense_jacobian(model, IMAGES, names, lambda outputs: outputs.logits)):
        assert (found - expected).norm() <= 1e-6 * expected.norm()
    assert len(calls) == len(layers)


@pytest.mark.parametrize("name", list(CASES)[:3])
def test_jacobians_of_tuned_parameters(name):
    make, config = CASES[name]
    model = get_peft_model(make(), config())
    nudge(model)
    model.double().train()
    names, inputs = tuned_names(model), {"pixel_values": IMAGES.double()}
    values = {n: p.detach() for n, p in model.named_parameters() if n in names}
    jacobians = Jacobians(model, names, chunk_size=4)
    got = torch.cat([rows for _, rows in jacobians(inputs)])
    assert model.training
    model.eval()
    call = lambda v: torch.func.functional_call(model, v, kwargs=inputs).logits
    dense = dense_jacobian(model, inputs["pixel_values"], names, lambda outputs: outputs.logits)
    assert dense.norm() > 1 and (got - dense).norm() <= 1e-12 * dense.norm()
    vector = torch.randn(jacobians.size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tangent, step = jacobians.unflatten(vector), 1e-6
    ahead, behind = (call({n: values[n] + sign * step * tangent[n] for n in names}) for sign in (1, -1))
    assert torch.allclose((ahead - behind) / (2 * step), dense @ vector, atol=1e-6)
    assert torch.allclose(jacobians.jvp(inputs, tangent), dense @ vector, atol=1e-10)
    start = Jacobians(model, names, at=initial_parameters(model))
    fresh = get_peft_model(make(), config()).double()
    assert torch.allclose(torch.cat([z for z, _ in start(inputs)]), fresh.eval()(**inputs).logits, atol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_jacobians_equal_jacrev(kind):
    """Over every batch normalisation and the head, away from the pretrained values."""
    case = Request(kind)
    model = get_peft_model(copy.deepcopy(case.base), BatchNormTuningConfig(**HEAD))
    nudge(model)
    names, model = tuned_names(model), model.double()
    norms = [module for module in case.base.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(names) == 2 * len(norms) + 2
    images = case.batch["pixel_values"][::12].double()
    got = torch.cat([rows for _, rows in Jacobians(model, names, chunk_size=3)({"pixel_values": images})])
    dense = dense_jacobian(model, images, names, lambda outputs: outputs.logits)
    assert got.shape == (4, 4, sum(model.get_parameter(name).numel() for name in names))
    assert dense.norm() > 0 and (got - dense).norm() <= 1e-5 * dense.norm()


def test_a_resnet_110_gives_a_jacobian():
    model = make_classifier(10, model_type="cifar_resnet", depth=110, width=2, image_size=8).double().eval()
    tuned = get_peft_model(model, BatchNormTuningConfig(modules_to_save=["linear"]))
    names = tuned_names(tuned)
    assert len(names) == 2 * (1 + 2 * 54) + 2  # batch normalisations, and the head
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ((outputs, jacobian),) = Jacobians(tuned, names)({"pixel_values": images})
    torch.testing.assert_close(outputs, tuned(images).logits.detach())
    values = {name: tuned.get_parameter(name).detach() for name in names}
    vector = {name: torch.randn_like(value) for name, value in values.items()}
    call = lambda v: torch.func.functional_call(tuned, v, (images,)).logits
    expected = torch.func.jvp(call, (values,), (vector,))[1]
    product = jacobian @ torch.cat([vector[name].flatten() for name in names])
    assert (product - expected).norm() <= 1e-10 * expected.norm()

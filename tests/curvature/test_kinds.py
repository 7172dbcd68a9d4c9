# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature against dense oracles on tiny fp64 models: autograd Jacobians, no hooks, no Kronecker structure."""

import math

import pytest
import torch
from torch.func import functional_call, jacrev

from hf_unlearn.curvature import EKFAC, KFAC, Diagonal, make_curvature
from hf_unlearn.curvature import fisher as fisher_module


def batches(ids, labels=None, size=2, mask=None):
    """Dictionaries of `size` rows."""
    labels = ids if labels is None else labels
    columns = {"input_ids": ids, "labels": labels} | ({} if mask is None else {"attention_mask": mask})
    return [{key: value[i : i + size] for key, value in columns.items()} for i in range(0, len(ids), size)]


def ragged(padding_side="right", vocab=50, lengths=(7, 4, 5, 3, 6), prompt=2, seed=1):
    """Sequences of unequal length with a prompt: ids, labels, mask (N, max length), padded with a real token's id."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), 3)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        span = slice(0, length) if padding_side == "right" else slice(width - length, width)
        tokens = torch.randint(3, vocab, (length,), generator=generator)
        ids[row, span], mask[row, span] = tokens, 1
        labels[row, span] = torch.where(torch.arange(length) < prompt, -100, tokens)
    return ids, labels, mask


def flat_jacobian(model, name, inputs):
    """d logits (T, V) / d weight, flattened to (T, V, d_out * d_in), for one sequence."""
    parameters = {key: value.detach() for key, value in model.named_parameters()}

    def logits(weight):
        return functional_call(model, parameters | {name: weight}, (), inputs).logits[0]

    jacobian = jacrev(logits)(parameters[name])
    return jacobian.reshape(*jacobian.shape[:2], -1), logits(parameters[name])


def dense_block(model, name, data):
    """Exact Gauss-Newton block, per predicted token: (1 / N) sum over tokens of J^T (diag p - p p^T) J; and N."""
    total, tokens = 0.0, 0
    for ids, labels, mask in zip(*data):
        inputs = {"input_ids": ids[None], "attention_mask": mask[None]}
        jacobian, logits = flat_jacobian(model, name, inputs)
        for place in range(len(ids) - 1):
            if labels[place + 1] == -100 or not mask[place] or not mask[place + 1]:
                continue
            p = logits[place].softmax(-1)
            total = total + jacobian[place].T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian[place]
            tokens += 1
    return total / tokens, tokens


def block_of(curvature, name):
    """The fitted block as a dense (d_out * d_in) matrix, row-major like weight.flatten()."""
    q_in, q_out = curvature._bases(name)
    basis = torch.kron(q_out, q_in)
    return basis @ torch.diag(curvature._eigenvalues(name).flatten()) @ basis.T


@pytest.fixture
def model(tiny_llama):
    return tiny_llama(vocab_size=11, hidden_size=4, intermediate_size=6, heads=1, initializer_range=0.4).double()


# Llama computes its norms in fp32 even in fp64, so oracles through the model agree to this and no better.
CLOSE = {"rtol": 1e-5, "atol": 1e-8}
NAME = "model.layers.{}.mlp.{}.weight"


def test_one_position_and_one_token_is_the_exact_block(model):
    ids = torch.tensor([[4, 7]])
    curvature = KFAC().fit(model, batches(ids), fisher="exact", progress=False)
    assert curvature.metadata["predicted_tokens"] == 1 and len(curvature.names) == 6
    for name in curvature.names:
        expected, _ = dense_block(model, name, (ids, ids, torch.ones_like(ids)))
        torch.testing.assert_close(block_of(curvature, name), expected, **CLOSE)


def test_ekfac_eigenvalues_are_the_dense_diagonal_in_the_eigenbasis(model):
    data = ragged(vocab=11)
    curvature = EKFAC().fit(model, batches(*data[:2], mask=data[2]), fisher="exact", progress=False)
    diagonal = Diagonal().fit(model, batches(*data[:2], mask=data[2]), fisher="exact", progress=False)
    for name in (NAME.format(0, "down_proj"), NAME.format(0, "up_proj"), NAME.format(1, "gate_proj")):
        expected, tokens = dense_block(model, name, data)
        assert curvature.metadata["predicted_tokens"] == tokens == diagonal.metadata["predicted_tokens"]
        basis = torch.kron(*reversed(curvature._bases(name)))
        torch.testing.assert_close(
            curvature._eigenvalues(name).flatten(), (basis.T @ expected @ basis).diagonal(), **CLOSE
        )
        torch.testing.assert_close(diagonal._eigenvalues(name).flatten(), expected.diagonal(), **CLOSE)


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
def test_empirical_squares_are_those_of_whole_sequences(model, length):
    """Cross terms between tokens are in; both sides of the break-even (4.6 rows here) are walked."""
    data = ragged(vocab=11, lengths=(length, 4, length - 2, 3))
    ekfac = EKFAC().fit(model, batches(*data[:2], mask=data[2]), fisher="empirical", progress=False)
    diagonal = Diagonal().fit(model, batches(*data[:2], mask=data[2]), fisher="empirical", progress=False)
    for name in (NAME.format(0, "down_proj"), NAME.format(1, "gate_proj")):
        gradients, tokens = sequence_gradients(model, name, data)
        torch.testing.assert_close(diagonal._eigenvalues(name), sum(g**2 for g in gradients) / tokens, **CLOSE)
        expected = sum(ekfac._rotate(name, g) ** 2 for g in gradients) / tokens
        torch.testing.assert_close(ekfac._eigenvalues(name), expected, **CLOSE)


class DeepLinear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(i, o, bias=False) for i, o in ((5, 4), (4, 3), (3, 2))))

    def forward(self, x):
        return self.layers(x)


def test_deep_linear_network_is_exact():
    """Two classes and inputs of equal absolute margin: the logit Hessian is constant, so A and S are independent."""
    network = DeepLinear().double()
    weight = network.layers[2].weight @ network.layers[1].weight @ network.layers[0].weight
    direction = (weight[1] - weight[0]).detach()
    x = torch.randn(6, 5, dtype=torch.float64)
    margins = torch.tensor([1.0, -1, 1, -1, 1, -1], dtype=torch.float64)
    x = x + ((margins - x @ direction) / direction.square().sum())[:, None] * direction
    data = [{"x": x[:4], "labels": torch.zeros(4).long()}, {"x": x[4:], "labels": torch.ones(2).long()}]
    curvature = KFAC().fit(network, data, target_modules=".*", fisher="exact", progress=False)
    assert len(curvature.names) == 3 and curvature.metadata["predicted_tokens"] == 6
    p = network(x).softmax(-1).detach()
    parameters = {key: value.detach() for key, value in network.named_parameters()}

    def outputs(weight, name):
        return functional_call(network, parameters | {name: weight}, (x,))

    for name in curvature.names:
        jacobian = jacrev(outputs)(network.get_parameter(name).detach(), name).flatten(2)
        expected = sum(j.T @ (torch.diag(q) - torch.outer(q, q)) @ j for j, q in zip(jacobian, p)) / len(x)
        torch.testing.assert_close(block_of(curvature, name), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("fisher", ["sampled", "probe"])
def test_logit_gradients_have_the_covariance_of_the_logit_hessian(fisher):
    torch.manual_seed(0)
    logits, rows = torch.randn(1, 6, dtype=torch.float64) * 1.5, 200_000
    noise = torch.rand(rows, dtype=torch.float64) if fisher == "sampled" else torch.randint(2**62, (rows,))
    v = fisher_module.logit_gradients(logits.expand(rows, -1), noise, None, fisher)
    p = logits[0].softmax(-1)
    torch.testing.assert_close(v.T @ v / rows, torch.diag(p) - torch.outer(p, p), rtol=0, atol=2e-3)
    torch.testing.assert_close(v.sum(1), torch.zeros(rows, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_class_without_probability_is_never_drawn():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]]).expand(3, -1)
    v = fisher_module.logit_gradients(
        logits, torch.tensor([0.0, 0.5, 1 - 1e-16], dtype=torch.float64), None, "sampled"
    )
    assert (v[:, 2:] == 0).all() and (v[:, :2] < 0).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("fisher", ["sampled", "probe"])
def test_sampled_tends_to_exact(model, fisher):
    name = NAME.format(0, "up_proj")
    ids = torch.randint(3, 11, (4, 5), generator=torch.Generator().manual_seed(0))
    exact = block_of(KFAC().fit(model, batches(ids), fisher="exact", progress=False), name)
    errors = []
    for repeats in (5, 500):
        repeated = batches(ids.repeat(repeats, 1), size=500)
        block = block_of(
            KFAC().fit(model, repeated, fisher=fisher, target_modules=["0.mlp.up_proj"], progress=False), name
        )
        errors.append(float((block - exact).norm() / exact.norm()))
    assert errors[1] < 0.06 and errors[1] < errors[0] / 3


@pytest.mark.parametrize("kind", ["kfac", "ekfac", "diagonal", "identity"])
def test_solve_and_norm_equal_the_dense_inverse_and_form(model, kind):
    data, name, damping = ragged(vocab=11), NAME.format(1, "down_proj"), 1e-3
    curvature = make_curvature(kind).fit(model, batches(*data[:2], mask=data[2]), progress=False)
    g = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind in ("kfac", "ekfac"):
        dense = block_of(curvature, name)
    else:
        dense = torch.diag((curvature._eigenvalues(name) * torch.ones(4, 6)).flatten().double())
    expected = torch.linalg.solve(dense + damping * torch.eye(24, dtype=torch.float64), g.flatten())
    step = curvature.solve({name: g}, damping)[name]
    torch.testing.assert_close(step.flatten(), expected, rtol=1e-8, atol=1e-8)
    form = math.sqrt(expected @ dense @ expected)
    assert curvature.norm({name: step}) == pytest.approx(form, rel=1e-8)
    for other, (steps, norm) in zip((damping, 1.0), curvature.solve_many({name: g}, (damping, 1.0))):
        torch.testing.assert_close(steps, curvature.solve({name: g}, other))
        assert norm == pytest.approx(curvature.norm(steps), rel=1e-12)


def test_norm_adds_over_weights(model):
    curvature = EKFAC().fit(model, batches(torch.randint(3, 11, (4, 6))), progress=False)
    steps = {name: torch.randn(model.get_parameter(name).shape).double() for name in curvature.names}
    parts = [curvature.norm({name: step}) ** 2 for name, step in steps.items()]
    assert curvature.norm(steps) == pytest.approx(math.sqrt(sum(parts)), rel=1e-12)


def test_predicted_divergence_is_half_the_squared_norm(tiny_llama):
    """The unit: v^T G v / 2 is the mean KL in nats a predicted token. One weight, one token: exact to second order."""
    from transformers import set_seed

    set_seed(0)
    model = tiny_llama(vocab_size=11, hidden_size=4, intermediate_size=6, heads=1, initializer_range=0.4).double()
    ids = torch.randint(3, 11, (6, 2))
    name = NAME.format(1, "down_proj")
    curvature = EKFAC().fit(model, batches(ids), fisher="exact", progress=False)
    q_in, q_out = curvature._bases(name)
    eigenvalues = curvature._eigenvalues(name)
    place = torch.zeros_like(eigenvalues).flatten()
    place[eigenvalues.argmax()] = 1
    step = 1e-3 * q_out @ place.view_as(eigenvalues) @ q_in.T
    before = model(ids).logits[:, 0].log_softmax(-1)
    model.get_parameter(name).data += step
    after = model(ids).logits[:, 0].log_softmax(-1)
    measured = float((before.exp() * (before - after)).sum(-1).mean().detach())
    assert curvature.norm({name: step}) ** 2 / 2 == pytest.approx(measured, rel=0.02)


def test_conv1d_is_exact_in_its_own_layout():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=9, n_positions=8, n_embd=4, n_layer=1, n_head=1, n_inner=6, initializer_range=0.4)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.tensor([[4, 7]])
    curvature = KFAC().fit(model, batches(ids), fisher="exact", progress=False)
    assert curvature.names == ["transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"]
    for name in curvature.names:
        dense, _ = dense_block(model, name, (ids, ids, torch.ones_like(ids)))
        g = torch.randn(model.get_parameter(name).shape, dtype=torch.float64)
        step = curvature.solve({name: g}, 1e-2)[name]
        expected = torch.linalg.solve(dense + 1e-2 * torch.eye(24, dtype=torch.float64), g.flatten())
        torch.testing.assert_close(step.flatten(), expected, rtol=1e-8, atol=1e-8)
        assert curvature.norm({name: step}) == pytest.approx(math.sqrt(expected @ dense @ expected), rel=1e-8)


def tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=6, num_labels=3,
        max_position_embeddings=16, initializer_range=0.4,
    )  # fmt: skip
    ids, _, mask = ragged(vocab=20)
    return BertForSequenceClassification(config), {"input_ids": ids, "attention_mask": mask}


def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=4, patch_size=2, num_channels=1, hidden_size=4, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=6, num_labels=3, initializer_range=0.4,
    )  # fmt: skip
    return ViTForImageClassification(config), {"pixel_values": torch.randn(5, 1, 4, 4, dtype=torch.float64)}


@pytest.mark.parametrize("make", [tiny_bert, tiny_vit])
def test_classifiers_per_sample(make):
    torch.manual_seed(0)
    model, inputs = make()
    model = model.double().eval()
    labels = torch.tensor([0, 2, 1, 0, 1])
    data = [{key: value[i : i + 2] for key, value in (inputs | {"labels": labels}).items()} for i in (0, 2, 4)]
    exact = {
        kind: make_curvature(kind).fit(model, data, fisher="exact", progress=False) for kind in ("diagonal", "ekfac")
    }
    empirical = Diagonal().fit(model, data, fisher="empirical", progress=False)
    assert len(empirical.names) == 2 and empirical.metadata["predicted_tokens"] == 5
    for name in empirical.names:
        dense, squares = 0.0, 0.0
        parameters = {key: value.detach() for key, value in model.named_parameters()}
        for row in range(5):
            one = {key: value[row : row + 1] for key, value in inputs.items()}
            logits = lambda w: functional_call(model, parameters | {name: w}, (), one).logits[0]  # noqa: B023
            jacobian, p = jacrev(logits)(parameters[name]).flatten(1), logits(parameters[name]).softmax(-1)
            dense = dense + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian / 5
            squares = squares + ((p - torch.eye(3)[labels[row]]) @ jacobian).view_as(parameters[name]) ** 2 / 5
        torch.testing.assert_close(empirical._eigenvalues(name), squares, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(
            exact["diagonal"]._eigenvalues(name).flatten(), dense.diagonal(), rtol=1e-8, atol=1e-12
        )
        basis = torch.kron(*reversed(exact["ekfac"]._bases(name)))
        expected = (basis.T @ dense @ basis).diagonal()
        torch.testing.assert_close(exact["ekfac"]._eigenvalues(name).flatten(), expected, rtol=1e-8, atol=1e-12)


def test_prompts_enter_a_and_last_tokens_do_not(model):
    """A by hand: the inputs of gate_proj at every real token but the last of each sequence."""
    ids, labels, mask = ragged(vocab=11)
    inputs = []
    handle = model.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    handle.remove()
    rows = torch.cat([row[: int(length) - 1] for row, length in zip(inputs[0], mask.sum(1))])
    curvature = KFAC().fit(model, batches(ids, labels, mask=mask), progress=False)
    name = NAME.format(0, "gate_proj")
    q_in, _ = curvature._bases(name)
    values = curvature.tensors[f"values.input.{curvature.metadata['targets'][name]['input']}"]
    torch.testing.assert_close(q_in @ torch.diag(values) @ q_in.T, rows.T @ rows / len(rows), rtol=1e-6, atol=1e-9)

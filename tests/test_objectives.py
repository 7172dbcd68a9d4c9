# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Objectives against formulas written out token by token in fp64."""

import math
from types import SimpleNamespace

import pytest
import torch

from hf_unlearn import objectives


def naive_tokens(logits, labels):
    """[(row, logits (V,), label)] of every predicted token of a causal batch, found with plain loops."""
    found = []
    for row in range(labels.shape[0]):
        for position in range(labels.shape[1] - 1):
            if (label := labels[row, position + 1].item()) != -100:
                found.append((row, logits[row, position], label))
    return found


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 11, dtype=torch.float64) * 4
    labels = torch.randint(0, 11, (3, 6))
    labels[0, :3] = -100  # a prompt
    labels[1, 4:] = -100  # padding
    labels[2, 1] = -100
    return logits, labels


def log_p(scores, label):
    return (scores[label] - torch.log(torch.exp(scores).sum())).item()


def test_margin_is_the_log_odds(batch):
    expected = [
        log_p(scores, label) - math.log1p(-math.exp(log_p(scores, label))) for _, scores, label in naive_tokens(*batch)
    ]
    assert torch.allclose(objectives.margin(*batch), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)


def test_margin_does_not_saturate_where_the_model_is_certain():
    logits = torch.tensor([[0.0, 0.0, 60.0]], requires_grad=True)
    value = objectives.margin(logits, torch.tensor([2]))
    assert value.item() == pytest.approx(60 - math.log(2))
    value.sum().backward()
    assert torch.allclose(logits.grad, torch.tensor([[-0.5, -0.5, 1.0]]))


def test_unlikelihood_pulls_by_the_probability_of_the_label(batch):
    expected = [-math.log1p(-math.exp(log_p(scores, label))) for _, scores, label in naive_tokens(*batch)]
    found = objectives.unlikelihood(*batch)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    logits = torch.tensor([[0.0, 0.0, 60.0], [0.0, 60.0, 0.0]], requires_grad=True)
    objectives.unlikelihood(logits, torch.tensor([2, 2])).sum().backward()
    assert torch.allclose(logits.grad, torch.tensor([[-0.5, -0.5, 1.0], [0.0, 0.0, 0.0]]))


def test_cross_entropy_and_sequence_nll(batch):
    tokens = naive_tokens(*batch)
    expected = torch.tensor([-log_p(scores, label) for _, scores, label in tokens], dtype=torch.float64)
    assert torch.allclose(objectives.cross_entropy(*batch), expected)
    total, lengths = objectives.sequence_nll(*batch)
    for row in range(3):
        mine = [value for (owner, _, _), value in zip(tokens, expected) if owner == row]
        assert total[row].item() == pytest.approx(sum(mine).item()) and lengths[row] == len(mine)


def test_kl_is_the_sum_over_classes(batch):
    reference = torch.randn_like(batch[0])
    expected = []
    for (_, q, _), (_, p, _) in zip(naive_tokens(*batch), naive_tokens(reference, batch[1])):
        p, q = torch.softmax(p, 0), torch.softmax(q, 0)
        expected.append((p * (p.log() - q.log())).sum())
    result = objectives.kl_divergence(batch[0], reference, batch[1])
    assert torch.allclose(result, torch.stack(expected))
    assert torch.equal(objectives.kl_divergence(batch[0], batch[0], batch[1]), torch.zeros_like(result))


def test_npo_and_simnpo_are_the_papers_formulas(batch):
    reference = torch.randn_like(batch[0])
    nll, lengths = objectives.sequence_nll(*batch)
    reference_nll, _ = objectives.sequence_nll(reference, batch[1])
    for beta in (0.1, 2.5):
        ratio = (torch.exp(-nll) / torch.exp(-reference_nll)) ** beta
        assert torch.allclose(objectives.npo(nll, reference_nll, beta), 2 / beta * torch.log1p(ratio))
    # At the reference itself the gradient of NPO is that of gradient ascent, whatever beta is.
    leaf = nll.detach().requires_grad_()
    objectives.npo(leaf, nll.detach(), 0.7).sum().backward()
    assert torch.allclose(leaf.grad, -torch.ones_like(leaf))
    sigmoid = 1 / (1 + torch.exp(-(4.5 * nll / lengths - 0.3)))
    assert torch.allclose(objectives.simnpo(nll, lengths, 4.5, 0.3), -2 / 4.5 * torch.log(sigmoid))


@pytest.mark.parametrize("name", ["cross_entropy", "margin", "kl_divergence"])
def test_ignored_positions_have_no_gradient(batch, name):
    logits, labels = batch[0].clone().requires_grad_(), batch[1]
    more = (torch.randn_like(batch[0]),) if name == "kl_divergence" else ()
    getattr(objectives, name)(logits, *more, labels).sum().backward()
    counted = torch.zeros_like(labels, dtype=torch.bool)
    counted[:, :-1] = labels[:, 1:] != -100
    assert torch.equal(logits.grad.abs().sum(-1) > 0, counted)


def test_gradient_of_the_margin(batch):
    logits = batch[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: objectives.margin(values, batch[1]), logits)


def test_padding_changes_nothing(batch):
    logits, labels = batch
    wide = torch.cat([logits, torch.full((3, 2, 11), 7.0, dtype=torch.float64)], 1)
    wide_labels = torch.cat([labels, torch.full((3, 2), -100)], 1)
    assert torch.equal(objectives.margin(wide, wide_labels), objectives.margin(logits, labels))
    assert (
        objectives.count_predictions(wide_labels) == objectives.count_predictions(labels) == len(naive_tokens(*batch))
    )
    assert objectives.count_rows(wide_labels) == 3
    assert objectives.count_rows(torch.full((2, 4), -100)) == 0
    # A label at the first position is predicted by nothing.
    assert objectives.count_rows(torch.tensor([[5, -100, -100]])) == 0


def test_classifiers_are_not_shifted():
    torch.manual_seed(1)
    logits, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([1, -100, 0, 4])
    keep = [0, 2, 3]
    expected = torch.stack([torch.logsumexp(logits[i], 0) - logits[i, labels[i]] for i in keep])
    assert torch.allclose(objectives.cross_entropy(logits, labels), expected)
    assert objectives.margin(logits, labels).shape == (3,)
    total, lengths = objectives.sequence_nll(logits, labels)
    assert total[1] == 0 and lengths.tolist() == [1, 0, 1, 1]
    assert objectives.count_predictions(labels) == objectives.count_rows(labels) == 3


def test_bf16_logits_are_computed_in_fp32(batch):
    half = batch[0].bfloat16()
    assert objectives.cross_entropy(half, batch[1]).dtype == torch.float32
    assert torch.allclose(objectives.margin(half, batch[1]), objectives.margin(half.float(), batch[1]))


def test_steering_is_the_mean_square_at_positions_that_predict_a_label(batch):
    _, labels = batch
    torch.manual_seed(1)
    states, frozen = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    control = torch.rand(4)
    for target in (control, frozen):
        expected, owners = [], []
        for row, position in [(row, t) for row in range(3) for t in range(5) if labels[row, t + 1] != -100]:
            wanted = control if target is control else frozen[row, position]
            expected.append(sum((states[row, position, k] - wanted[k]) ** 2 for k in range(4)).item() / 4)
            owners.append(row)
        values, rows = objectives.steering(states, target, labels)
        assert torch.allclose(values, torch.tensor(expected, dtype=torch.float64)) and rows.tolist() == owners
    # What stands at the padding changes nothing.
    states[1, 3:] = 1e6
    assert torch.equal(objectives.steering(states, frozen, labels)[0], values)


def test_steering_of_half_precision_is_computed_in_fp32():
    states = torch.full((1, 2, 4), 3.0, dtype=torch.bfloat16)
    value, _ = objectives.steering(states, torch.full((4,), 1.001), torch.tensor([[5, 6]]))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(1.999**2, rel=1e-6)


def test_losses_of_a_regression_are_those_of_a_normal_of_variance_1():
    outputs, labels = torch.tensor([[1.0], [4.0], [2.0]]), torch.tensor([3.0, 4.5, -100.0])
    normal = torch.distributions.Normal(outputs[:2, 0], 1.0)
    expected = -normal.log_prob(labels[:2]) - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(objectives.cross_entropy(outputs, labels), expected)
    other = torch.tensor([[0.0], [4.0], [9.0]])
    found = objectives.kl_divergence(outputs, other, labels)
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(other[:2, 0], 1.0), normal)
    assert torch.allclose(found, wanted)


def test_a_span_counts_two_predictions_over_the_real_tokens_of_its_row():
    torch.manual_seed(0)
    outputs = SimpleNamespace(start_logits=torch.randn(2, 5), end_logits=torch.randn(2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    labels = torch.tensor([[[1], [4]], [[0], [2]]])
    found = objectives.cross_entropy(objectives.logits_of(outputs, mask), labels)
    expected = [
        -scores[row, : mask[row].sum()].log_softmax(-1)[labels[row, end, 0]].item()
        for row in (0, 1)
        for end, scores in enumerate((outputs.start_logits, outputs.end_logits))
    ]
    assert torch.allclose(found, torch.tensor(expected))
    assert objectives.count_predictions(labels) == 4 and objectives.count_rows(labels) == 2
    nll, lengths = objectives.sequence_nll(objectives.logits_of(outputs, mask), labels)
    assert torch.allclose(nll, found.view(2, 2).sum(1)) and lengths.tolist() == [2, 2]
    against_itself = objectives.kl_divergence(*2 * [objectives.logits_of(outputs, mask)], labels)
    assert against_itself.tolist() == [0, 0, 0, 0]

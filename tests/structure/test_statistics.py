# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Mask gradients, against a mask in the forward: derivatives of each row's loss, by autograd and by differences."""

import copy

import pytest
import torch

from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.runtime.modules import measuring
from hf_unlearn.structure import StructureMask, find_structures
from hf_unlearn.structure.rows import forward, read_rows, sample_losses
from hf_unlearn.structure.statistics import GramSum, MaskGradients, mask_statistics, summed_gradients
from tests.support.structures import CASES, bert, causal_batch, decoder, masked, row_loss, rows_of, text_batch


def by_autograd(case, structures):
    """Oracle: key -> (rows, count), row by row without padding, through masks that stand in the forward."""
    found = {key: [] for key in structures.sites}
    for row in rows_of(case.batch):
        ones = {
            key: torch.ones(site.count, dtype=torch.float64, requires_grad=True)
            for key, site in structures.sites.items()
        }
        with masked(case.model, structures, ones):
            gradients = torch.autograd.grad(row_loss(case.model, row), list(ones.values()))
        for key, gradient in zip(ones, gradients, strict=True):
            found[key].append(gradient)
    return {key: torch.stack(rows) for key, rows in found.items()}


@pytest.mark.parametrize("name", CASES)
def test_one_backward_gives_every_row_the_gradient_of_its_masked_loss(name):
    case = CASES[name]()
    structures = find_structures(case.model)
    expected = by_autograd(case, structures)
    whole = mask_statistics(case.model, [case.batch], structures, blocks=True)
    # Rows one by one, as batches of their own, and by hand.
    single = mask_statistics(case.model, rows_of(case.batch), structures)
    for key, rows in expected.items():
        scale = rows.abs().max()
        assert scale > 1e-8
        for found in (whole, single):
            assert torch.allclose(found.gradients[key], rows.sum(0), rtol=1e-9, atol=1e-9 * scale)
            assert torch.allclose(found.fisher(key), rows.square().mean(0), rtol=1e-9, atol=1e-9 * scale**2)
        block = torch.einsum("bi,bj->ij", rows, rows) / len(rows)
        assert torch.allclose(whole.block(key), block, rtol=1e-9, atol=1e-9 * scale**2)
    assert whole.counts.samples == single.counts.samples == 3


@pytest.mark.parametrize("name", CASES)
def test_mask_gradients_are_differences_of_the_masked_loss(name):
    case = CASES[name]()
    # RMSNorm and rotary embeddings of decoders compute in fp32, whose rounding is divided by the step.
    step, tolerance = (
        (1e-2, 1e-2) if any("RMSNorm" in type(one).__name__ for one in case.model.modules()) else (1e-5, 1e-6)
    )
    structures = find_structures(case.model)
    found = mask_statistics(case.model, [case.batch], structures)
    for key, site in structures.sites.items():
        place = site.count // 2
        losses = []
        for sign in (1, -1):
            value = torch.ones(site.count, dtype=torch.float64)
            value[place] += sign * step
            with masked(case.model, structures, {key: value}), torch.no_grad():
                losses.append(sum(row_loss(case.model, row) for row in rows_of(case.batch)))
        difference = (losses[0] - losses[1]) / (2 * step)
        assert abs(found.gradients[key][place] - difference) < tolerance * found.gradients[key].abs().max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_padding_in_front_means_the_same(name):
    case = CASES[name]()
    structures = find_structures(case.model)
    width = case.batch["input_ids"].shape[1]
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    rows = [
        {
            key: torch.nn.functional.pad(value, (width - value.shape[1], 0), value=fill[key])
            for key, value in row.items()
        }
        for row in rows_of(case.batch)
    ]
    front = {key: torch.cat([row[key] for row in rows]) for key in rows[0]}
    assert not torch.equal(front["input_ids"], case.batch["input_ids"])
    expected, found = (mask_statistics(case.model, [batch], structures) for batch in (case.batch, front))
    for key in structures.sites:
        assert torch.allclose(found.squares[key], expected.squares[key], rtol=1e-8, atol=1e-12)


def test_mask_gradients_come_out_of_any_backward():
    case = bert()
    structures = find_structures(case.model)
    expected = by_autograd(case, structures)
    model = case.model.train()  # weights get gradients too, the mode stays as it is
    with MaskGradients(model, structures) as masks:
        model(**case.batch).loss.backward()
        found = masks.take()
        with pytest.raises(InputError, match="received no gradient"):
            masks.take()
        model(**case.batch).loss.backward()
        model(**case.batch).loss.backward()
        twice = masks.take()
    assert model.training and model.classifier.weight.grad.abs().sum() > 0
    for key in expected:  # of the mean over three rows
        assert torch.allclose(3 * found[key], expected[key]) and torch.allclose(twice[key], 2 * found[key])
    with torch.no_grad():
        model(**case.batch)
    model(**case.batch).loss.backward()
    assert masks._found == {}


def test_the_model_comes_back_as_it_was_and_weights_get_no_gradients():
    case = bert()
    model = case.model.train()
    model.classifier.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    mask_statistics(model, [case.batch], find_structures(model))
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    flags = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert flags == {"classifier.bias"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gradient_checkpointing_changes_nothing():
    case = decoder("Llama")
    structures = find_structures(case.model)
    expected = mask_statistics(case.model, [case.batch], structures)
    case.model.gradient_checkpointing_enable()
    found = mask_statistics(case.model, [case.batch], structures)
    assert all(torch.equal(found.squares[key], expected.squares[key]) for key in structures.sites)


def test_half_precision_is_summed_in_full():
    case = decoder("Llama")
    structures = find_structures(case.model)
    expected = mask_statistics(case.model, [case.batch], structures)
    found = mask_statistics(case.model.bfloat16(), [case.batch], structures)
    for key in structures.sites:
        assert found.squares[key].dtype == torch.float32
        error = (found.gradients[key] - expected.gradients[key]).norm() / expected.gradients[key].norm()
        assert error < 0.1


def test_rows_that_teach_nothing_are_left_out_and_counted(caplog):
    case = decoder("Llama")
    structures = find_structures(case.model)
    expected = mask_statistics(case.model, [case.batch], structures)
    empty = {name: torch.zeros(2, 7, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    empty["labels"] = torch.full((2, 7), 5)
    silent = {**causal_batch(rows=1), "labels": torch.full((1, 7), -100)}
    both = {name: torch.cat([empty[name], case.batch[name], silent[name]]) for name in case.batch}
    with caplog.at_level("WARNING"):
        found = mask_statistics(case.model, [empty, both, silent], structures)
    assert all(torch.allclose(found.squares[key], expected.squares[key]) for key in structures.sites)
    assert (found.counts.samples, found.counts.padding, found.counts.unlabelled) == (3, 4, 2)
    assert "of 9 rows 4 are all padding and 2 have nothing to predict: left out" in caplog.text
    with pytest.raises(InputError, match="no row counts in the statistics of masks: 2 are all padding; give rows"):
        mask_statistics(case.model, [empty], structures)
    with pytest.raises(InputError, match="no row counts in the statistics of masks: there are none"):
        mask_statistics(case.model, [], structures)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": None}, "yields no labels, and no start_positions"),
        ({"labels": torch.tensor([0, 3, 1])}, "a label of the data is 3, which is none of the model's 3 classes"),
        ({"labels": torch.tensor([0, -1, 1])}, "a label of the data is -1"),
        ({"labels": torch.tensor([0.5, 1.0, 2.0])}, "do not fit outputs"),
        ({"labels": torch.tensor([0.5, float("nan"), 2.0])}, "a label of the data is no finite number"),
        ({"labels": torch.zeros(3, 2, dtype=torch.long)}, "do not fit outputs"),
        ({"input_ids": torch.full((3, 7), 50)}, "has the token id 50 and the model's embedding 50 rows"),
    ],
)
def test_data_that_do_not_fit_are_one_line(change, message):
    case = bert()
    batch = {name: value for name, value in {**case.batch, **change}.items() if value is not None}
    with pytest.raises(InputError, match=message) as raised:
        mask_statistics(case.model, [batch], find_structures(case.model))
    assert len(str(raised.value).splitlines()) == 1


def test_a_regression_without_labels_is_refused():
    case = CASES["bert_regression"]()
    structures = find_structures(case.model)
    with pytest.raises(InputError, match="yields no labels"):
        mask_statistics(case.model, [text_batch()], structures)
    # Whole numbers are values too where the head is a regression's.
    whole = mask_statistics(case.model, [{**case.batch, "labels": torch.tensor([1, 2, 0])}], structures)
    same = mask_statistics(case.model, [{**case.batch, "labels": torch.tensor([1.0, 2.0, 0.0])}], structures)
    assert torch.equal(whole.squares["heads.0"], same.squares["heads.0"])


def test_a_span_may_end_outside_of_the_window():
    case = CASES["bert_qa"]()
    structures = find_structures(case.model)
    places = torch.stack([case.batch["start_positions"], case.batch["end_positions"]], 1)[:, :, None]
    inputs = {name: value for name, value in case.batch.items() if not name.endswith("_positions")}
    same = mask_statistics(case.model, [inputs | {"labels": places}], structures)
    expected = mask_statistics(case.model, [case.batch], structures)
    assert all(torch.equal(same.squares[key], expected.squares[key]) for key in structures.sites)
    case.batch["end_positions"] = torch.tensor([30, 0, 2])
    rows = read_rows(case.batch, False, torch.device("cpu"), mask_statistics(*_qa(case)).counts)
    losses = sample_losses(case.model, forward(case.model, rows), rows)
    start = torch.nn.functional.cross_entropy(case.model(**rows.inputs).start_logits[:1], torch.tensor([1]))
    assert torch.allclose(losses[0], start)


def _qa(case):
    return case.model, [case.batch], find_structures(case.model)


def test_what_is_not_finite_stops_the_pass():
    case = bert()
    structures = find_structures(case.model)
    with torch.no_grad():
        case.model.bert.encoder.layer[1].output.dense.weight[0, 0] = float("inf")
    with pytest.raises(NumericalError, match="the mask gradients of .* are not finite"):
        mask_statistics(case.model, [case.batch], structures)


def test_inputs_without_rows_are_refused():
    case = bert()
    structures = find_structures(case.model)
    module = case.model.get_submodule(structures.sites["heads.0"].module)
    with MaskGradients(case.model, structures):
        with pytest.raises(
            InputError, match="inputs of shape \\(5, 16\\), in which rows of the batch cannot be told apart"
        ):
            module(torch.randn(5, 16, dtype=torch.float64))


def test_statistics_of_some_rows_are_taken_from_those_of_all():
    case = decoder("Llama")
    structures = find_structures(case.model)
    rows = rows_of(causal_batch(rows=6, seed=4))
    everything, part, rest = (
        mask_statistics(case.model, some, structures, blocks=True) for some in (rows, rows[:2], rows[2:])
    )
    left = everything.minus(part)
    assert left.counts.samples == 4
    for key in structures.sites:
        assert torch.allclose(left.gradients[key], rest.gradients[key])
        assert torch.allclose(left.fisher(key), rest.fisher(key)) and (left.squares[key] >= 0).all()
        assert torch.allclose(left.block(key), rest.block(key))
    part.merge(rest)
    for key in structures.sites:
        assert torch.allclose(part.squares[key], everything.squares[key])
        assert torch.allclose(part.block(key), everything.block(key))
    assert part.counts == everything.counts
    with pytest.raises(InputError, match="6 rows cannot be taken from 6 with some left"):
        everything.minus(part)


def test_products_are_kept_as_the_smaller_of_vectors_and_matrix():
    torch.manual_seed(0)
    vectors, sums = torch.randn(20, 6, dtype=torch.float64), GramSum(6)
    for number in range(0, 20, 4):
        sums.add(vectors[number : number + 4])
        assert (sums.square is None) == (number == 0)
        expected = vectors[: number + 4].T @ vectors[: number + 4]
        assert torch.allclose(sums.matrix(), expected) and torch.allclose(sums.matrix(), expected)
    few, other = GramSum(6), GramSum(6)
    few.add(vectors[:2])
    other.merge(few)
    other.merge(sums)
    few.merge(sums)
    assert torch.allclose(few.matrix(), other.matrix())
    assert torch.allclose(few.matrix(), vectors.T @ vectors + vectors[:2].T @ vectors[:2])


def test_summed_gradients_are_those_of_the_rows():
    case = CASES["gpt2"]()
    structures = find_structures(case.model)
    found = summed_gradients(case.model, [case.batch, case.batch], structures.owners)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in case.model.parameters())
    total = 2 * sum(row_loss(case.model, row) for row in rows_of(case.batch))
    parameters = dict(case.model.named_parameters())
    expected = torch.autograd.grad(total, [parameters[name] for name in structures.owners])
    for name, gradient in zip(structures.owners, expected, strict=True):
        assert torch.allclose(found[name], gradient, rtol=1e-8, atol=1e-10)
    # Of a mask what it keeps; gradients that were there stay.
    mask = StructureMask.random(structures, 0.6, seed=0)
    for name in mask.names:
        parameters[name].grad = torch.full_like(parameters[name], 7.0)
    kept = summed_gradients(case.model, [case.batch, case.batch], mask.names, mask=mask)
    assert all(torch.equal(part, mask.select(name, found[name])) for name, part in kept.items())
    assert set(kept) == set(mask.names) and all(bool((parameters[name].grad == 7).all()) for name in kept)


def test_a_pass_makes_gradients_of_activations_only():
    """The work beside one forward and the backward of activations is the products with the inputs, a small part."""
    from torch.utils.flop_counter import FlopCounterMode

    case = decoder("Llama", hidden_size=64, intermediate_size=256)
    structures = find_structures(case.model)
    with FlopCounterMode(display=False) as plain:
        case.model(**case.batch).loss.backward()
    with FlopCounterMode(display=False) as masks:
        mask_statistics(case.model, [case.batch], structures)
    assert masks.get_total_flops() < 0.75 * plain.get_total_flops()
    with measuring(case.model), FlopCounterMode(display=False) as activations:
        case.model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: args[0].requires_grad_())
        case.model(**case.batch).loss.backward()
    assert masks.get_total_flops() <= 1.02 * activations.get_total_flops()

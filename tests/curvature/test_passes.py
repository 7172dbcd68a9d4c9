# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Passes over the data: batches, chunks of the head and wrappers of the model do not change the result."""

import pytest
import torch

from hf_unlearn.curvature import fisher as fisher_module
from hf_unlearn.curvature import make_curvature
from hf_unlearn.curvature.batches import read_batch
from hf_unlearn.curvature.fisher import FISHERS
from hf_unlearn.curvature.passes import split_head
from hf_unlearn.errors import InputError
from tests.support.curvature import assert_same, batches, fit_columns, ragged
from tests.support.curvature_cases import CASES
from tests.support.structures import rows_of


@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
@pytest.mark.parametrize("fisher", ["sampled", "probe", "empirical"])
def test_batch_size_and_padding_side(model, data, kind, fisher):
    reference = fit_columns(model, data, kind=kind, fisher=fisher)
    for size in (1, 5):
        assert_same(reference, fit_columns(model, data, size=size, kind=kind, fisher=fisher))
    left = ragged("left", vocab=20)
    assert (left[2][:, -1] == 1).all()
    assert_same(reference, fit_columns(model, left, kind=kind, fisher=fisher))


def encoder_batches(case, size, side="right"):
    """The rows of a case in batches, each padded as far as it must be, and their labels moved with the padding."""
    rows, found = rows_of(case.columns), []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        width, batch = max(row["input_ids"].shape[1] for row in part), {}
        for name in part[0]:
            values = []
            for row in part:
                short = width - row["input_ids"].shape[1]
                pads = (short, 0) if side == "left" else (0, short)
                front = pads[0] if case.head == "span" else 0
                values.append(row[name] + front if name == "labels" else torch.nn.functional.pad(row[name], pads))
            batch[name] = torch.cat(values)
        found.append(batch)
    return found


@pytest.mark.parametrize("kind", ["ekfac", "diagonal"])
@pytest.mark.parametrize("fisher", FISHERS)
@pytest.mark.parametrize("head", ["values", "spans"])
def test_batches_and_padding_of_values_and_spans(head, fisher, kind):
    case = CASES[head]()
    fit = lambda data: make_curvature(kind).fit(case.model, data, fisher=fisher, progress=False)
    reference = fit(case.batches)  # all rows as long as the longest
    # BERT reads a value from the first place of a row, which must not be padding.
    for size, side in ((1, "right"), (2, "right"), (5, "left"), (2, "left"))[: 4 if head == "spans" else 2]:
        assert_same(reference, fit(encoder_batches(case, size, side)), tolerance=1e-9)


def test_an_end_at_padding_or_outside_of_the_row_is_no_prediction():
    case = CASES["spans"]()
    columns = dict(case.columns)
    places = columns.pop("labels")[:, :, 0].clone()
    places[0, 1], places[1, 1], places[2] = 9, 4, torch.tensor([-1, 6])  # beyond, padding, none of both
    columns |= {"start_positions": places[:, 0], "end_positions": places[:, 1]}
    fit = lambda data: make_curvature("diagonal").fit(case.model, [data], fisher="empirical", progress=False)
    found = fit(columns)
    assert (found.metadata["sequences"], found.metadata["predicted_tokens"]) == (4, 6)
    labels = case.columns["labels"].clone()
    labels[0, 1], labels[1, 1], labels[2] = -100, -100, -100
    assert_same(found, fit(case.columns | {"labels": labels}), tolerance=1e-12)


@pytest.mark.parametrize("case, labels, message", [
    ("bert", torch.tensor([0, 3, 1, 0, 1]), "a label of the data is 3, which is none of the model's 3 classes"),
    ("bert", torch.tensor([0, -1, 1, 0, 1]), "a label of the data is -1, which is none"),
    ("bert", torch.tensor([0.5, 1, 1, 0, 1]), "labels are values and the model has 3 classes"),
    ("values", torch.tensor([0.5, float("nan"), 1, 0, 1]), "no finite number"),
    ("values", torch.zeros(5, 7, dtype=torch.long), "one output per label"),
    ("spans", torch.tensor([0, 2, 1, 0, 1]), "one output per label"),
])  # fmt: skip
def test_labels_of_another_head_are_refused(case, labels, message):
    case = CASES[case]()
    with pytest.raises(InputError, match=message):
        make_curvature("diagonal").fit(
            case.model, [case.columns | {"labels": labels}], fisher="empirical", progress=False
        )


def test_what_the_model_cannot_read_is_refused(model, data):
    ids, labels, mask = data
    beyond = ids.clone()
    beyond[0, 0] = 20
    with pytest.raises(InputError, match="data of the curvature has the token id 20 and the model's embedding 20"):
        fit_columns(model, (beyond, labels, mask))
    model.config.max_position_embeddings = ids.shape[1] - 1
    with pytest.raises(InputError, match="lower max_length"):
        fit_columns(model, data)


def test_tokens_chunks_and_whole_logits(model, data, monkeypatch):
    reference = fit_columns(model, data)
    monkeypatch.setitem(fisher_module.CHUNK_ELEMENTS, "cpu", 40)
    assert_same(reference, fit_columns(model, data))
    # A head that is a target must run once, as the model runs it.
    whole = fit_columns(model, data, target_modules=r".*mlp\..*_proj|lm_head")
    assert "lm_head.weight" in whole.names
    for name in reference.names:
        a, b = (
            c.solve({name: torch.ones(c.metadata["targets"][name]["shape"])}, 1e-3)[name] for c in (reference, whole)
        )
        assert (a - b).norm() <= 1e-5 * a.norm()


def test_soft_capped_logits_are_not_chunked(data):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, head_dim=4,
        num_key_value_heads=2, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).double().eval()
    batch = read_batch(batches(*data[:2], mask=data[2])[0], 0, True, torch.device("cpu"))
    assert split_head(model, batch, {}) == (model, None)
    config.final_logit_softcapping = None
    assert split_head(model, batch, {}) == (model.model, model.lm_head)


def test_peft_wrapper(model, data):
    from peft import LoraConfig, get_peft_model

    reference = fit_columns(model, data)
    wrapped = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj", "gate_proj", "down_proj"], lora_dropout=0.5)
    )
    curvature = fit_columns(wrapped, data)
    assert set(curvature.names) <= set(wrapped.state_dict())
    assert curvature.names[0] == "base_model.model.model.layers.0.mlp.gate_proj.base_layer.weight"
    assert not any("lora" in name for name in curvature.names)
    assert_same(reference, curvature)
    trainable = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora" in name for name in trainable)
    assert_same(reference, fit_columns(wrapped, data, target_modules=r"model\.layers\.\d\.mlp\..*_proj"))


def test_virtual_prompt_tokens_are_refused(model, data):
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(InputError, match="rows for a batch of shape"):
        fit_columns(wrapped, data)


def test_same_inputs_same_bits(tiny_llama, data):
    model = tiny_llama()
    one, other = fit_columns(model, data), fit_columns(model, data)
    assert all(torch.equal(one.tensors[key], other.tensors[key]) for key in one.tensors)
    different = fit_columns(model, data, seed=1)
    assert any(not torch.equal(one.tensors[key], different.tensors[key]) for key in one.tensors)

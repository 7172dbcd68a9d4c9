# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""First-order baselines: terms, weights, references, updates under adapters."""

import copy
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from hf_unlearn import FirstOrder, objectives
from hf_unlearn.errors import InputError
from hf_unlearn.methods.base import Counts
from tests.support.methods import (
    dropout_model,
    run,
    trained_adapter,
)
from tests.support.models import make_llama
from tests.support.trainers import COLLATE, FORGET, RETAIN, logged, make_trainer, trained_llama, weights


def test_unknown_first_order_objective():
    with pytest.raises(InputError, match="choose one of ga, grad_diff"):
        FirstOrder("gradient")


def test_first_order_terms_and_weights():
    """`loss` against formulas on the model's own logits, with weights other than 1."""
    model = trained_llama()
    inputs = {"forget": COLLATE([*FORGET]), "retain": COLLATE([*RETAIN.select(range(8))])}
    counts = Counts(
        *(f(inputs[side]["labels"]) for side in inputs for f in (objectives.count_predictions, objectives.count_rows))
    )
    log_p = {}
    for side, batch in inputs.items():
        scores = (
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double().log_softmax(-1)
        )
        log_p[side] = [
            [scores[row, place, label].item() for place, label in enumerate(labels[1:]) if label != -100]
            for row, labels in enumerate(batch["labels"].tolist())
        ]  # fmt: skip
    mean = {side: sum(map(sum, rows)) / sum(map(len, rows)) for side, rows in log_p.items()}
    simnpo = [-2 / 3 * math.log(1 / (1 + math.exp(-(-3 * sum(row) / len(row) - 0.2)))) for row in log_p["forget"]]
    expected = {
        "grad_diff": 0.5 * mean["forget"] - 2 * mean["retain"],
        "finetune": -2 * mean["retain"],
        "simnpo": 0.5 * sum(simnpo) / 8 - 2 * mean["retain"],
    }
    for objective, value in expected.items():
        method = FirstOrder(objective, beta=3.0, gamma=0.2, forget_weight=0.5, retain_weight=2.0)
        alone = objective == "finetune"
        if alone:  # a step of retain rows alone, and their counts
            counts, both = Counts(counts.retain_tokens, counts.retain_rows), counts
        loss, parts = method.loss(model, inputs["retain"] if alone else inputs, counts)
        counts = both if alone else counts
        assert loss.item() == pytest.approx(value, rel=1e-5), objective
        assert parts["retain_loss"].item() == pytest.approx(-mean["retain"], rel=1e-5)
        assert objective == "finetune" or parts["forget_loss"].item() == pytest.approx(-mean["forget"], rel=1e-5)
    loss, _ = FirstOrder("ga").loss(model, inputs["forget"], counts)
    assert loss.item() == pytest.approx(mean["forget"], rel=1e-5)


@pytest.mark.parametrize("objective", ["npo", "kl"])
@pytest.mark.parametrize("build", [trained_adapter, trained_llama, lambda: dropout_model("gpt2")])
def test_reference_is_the_model_as_given(objective, build, tmp_path):
    """At the first step the model is its own reference: NPO is 2 log 2 / beta a row and KL is 0; later it is not."""
    model = build()
    reference = copy.deepcopy(model).eval()
    method = FirstOrder(objective, beta=0.5)
    trainer = make_trainer(model, method, tmp_path, max_steps=2, learning_rate=1e-2, per_device_train_batch_size=8)
    terms = []
    part = "_forget_term" if objective == "npo" else "_retain_term"
    original = getattr(method, part)

    def watched(model, batch, counts):
        value = original(model.eval(), batch, counts)  # no dropout: the model can equal its reference
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.no_grad():
            logits, old = model(**inputs).logits, reference(**inputs).logits
        if objective == "npo":
            nll, old_nll = (objectives.sequence_nll(x, batch["labels"])[0].double() for x in (logits, old))
            expected = (2 / 0.5 * torch.log1p(torch.exp(-0.5 * (nll - old_nll)))).mean()
        else:
            expected = objectives.kl_divergence(logits.double(), old.double(), batch["labels"]).mean()
        terms.append((value[0].item(), expected.item()))
        return value

    setattr(method, part, watched)
    trainer.train()
    start = 4 * math.log(2) if objective == "npo" else 0.0
    assert terms[0] == (pytest.approx(start, abs=1e-5), pytest.approx(start, abs=1e-5))
    assert terms[1][0] == pytest.approx(terms[1][1], rel=1e-3) and abs(terms[1][1] - start) > 1e-4


def test_first_order_delta_under_an_adapter_is_the_merged_difference(tmp_path):
    model = trained_adapter()
    before = copy.deepcopy(model).merge_and_unload()
    _, update = run(FirstOrder("grad_diff"), tmp_path, model, max_steps=3, learning_rate=1e-2)
    after = copy.deepcopy(model).merge_and_unload()
    names = {
        f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.down_proj")
    }
    assert set(update) == names
    for name in names:
        assert torch.allclose(
            update[name], after.get_parameter(name) - before.get_parameter(name), rtol=1e-4, atol=1e-6
        )


def test_random_label_never_draws_the_right_one():
    class Sure(torch.nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values)

    labels = torch.arange(3).repeat(200)
    inputs = {"pixel_values": 30.0 * torch.nn.functional.one_hot(labels, 3), "labels": labels}
    counts = Counts(len(labels), len(labels))
    loss, _ = FirstOrder("random_label").loss(Sure(), inputs, counts)
    assert float(loss) == pytest.approx(30.0)  # each drawn label has a logit 30 below the right one's


def test_steps_below_the_spacing_of_bf16_weights_are_not_lost(tmp_path):
    """The update is that of an fp32 run up to the rounding of gradients, and resumes to the same bits."""
    arguments = {"max_steps": 4, "learning_rate": 1e-6, "lr_scheduler_type": "constant", "report_to": "none"}
    arguments |= {"per_device_train_batch_size": 4}
    norms, moved = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model = trained_llama(dtype)
        trainer, update = run(
            FirstOrder("grad_diff"), tmp_path / str(dtype), model, save_strategy="steps", save_steps=2, **arguments
        )
        norms[dtype] = trainer.update_delta().norm()
        moved[dtype] = sum(int(tensor.count_nonzero()) for tensor in update.values())
    assert norms[torch.bfloat16] == pytest.approx(norms[torch.float32], rel=0.02)
    assert moved[torch.bfloat16] > 0.95 * moved[torch.float32]
    after, base = dict(model.named_parameters()), trained_llama(torch.bfloat16)
    for name, parameter in base.named_parameters():
        assert torch.equal((parameter.float() + update.get(name, 0.0)).bfloat16(), after[name]), name
    shutil.rmtree(tmp_path / str(dtype) / "checkpoint-4")
    again = make_trainer(
        trained_llama(torch.bfloat16), FirstOrder("grad_diff"), tmp_path / str(dtype), save_strategy="no", **arguments
    )
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and again.update_delta().sha256() == trainer.update_delta().sha256()
    assert all(torch.equal(parameter, after[name]) for name, parameter in again.model.named_parameters())


def test_finetuning_goes_over_all_retain_rows(tmp_path):
    model = trained_llama()
    trainer = make_trainer(
        model, FirstOrder("finetune"), tmp_path, num_train_epochs=2, per_device_train_batch_size=8, logging_steps=1
    )
    trainer.train()
    assert trainer.state.global_step == 2 * len(RETAIN) // 8
    assert len(logged(trainer, "retain_loss")) == 6 and logged(trainer, "forget_loss") == []


def test_the_penalty_of_l1_sparse_counts_once_a_step(tmp_path):
    """One step of SGD is that of finetuning, less the weights' signs; in however many batches it is made."""
    rate, updates = 0.01, {}
    for name, settings, parts in (
        *(("plain", {"objective": "finetune"}, 1), ("whole", {"objective": "l1_sparse", "l1_weight": 0.1}, 1)),
        *(("in parts", {"objective": "l1_sparse", "l1_weight": 0.1}, 3), ("default", {"objective": "l1_sparse"}, 1)),
    ):
        model = trained_llama()
        before = weights(model)
        trainer = make_trainer(
            model, FirstOrder(**settings), tmp_path / name, max_steps=1, optim="sgd", learning_rate=rate,
            per_device_train_batch_size=24 // parts, gradient_accumulation_steps=parts, max_grad_norm=0,
        )  # fmt: skip
        trainer.train()
        updates[name] = {key: value - before[key] for key, value in weights(model).items()}
    for key, value in before.items():
        for name, weight in (("whole", 0.1), ("in parts", 0.1), ("default", 5e-5)):
            penalty = updates[name][key] - updates["plain"][key]
            assert torch.allclose(penalty, -rate * weight * value.sign(), atol=2e-7), (key, name)


QUESTIONS = [{"question": f"who wrote book {number}?", "answer": f"author {number}"} for number in range(4)]


def test_dpo_prefers_a_refusal_of_each_question(tmp_path):
    """Against the formula (arXiv 2305.18290, eq. 7) on the model's own log-probabilities, row by row."""
    from hf_unlearn.data.training import train_tokenizer

    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in QUESTIONS], vocab_size=300)
    model = make_llama(vocab_size=len(tokenizer), max_position_embeddings=128)
    before = copy.deepcopy(model)
    method = FirstOrder("dpo", beta=0.2, retain_weight=0.0, refusals=["no idea", "not known"])
    trainer = make_trainer(
        model, method, tmp_path, QUESTIONS[:2], QUESTIONS[2:], processing_class=tokenizer, max_steps=4,
        learning_rate=1e-2, per_device_train_batch_size=2, logging_steps=1,
    )  # fmt: skip
    trainer.train()
    row = trainer.train_dataset[0]
    said = tokenizer.decode(row["alternative"]["input_ids"], skip_special_tokens=True)
    assert said.startswith("Question: who wrote book 0?") and said.endswith(("no idea", "not known"))
    prompt = row["forget"]["labels"].count(-100)
    assert row["alternative"]["input_ids"][:prompt] == row["forget"]["input_ids"][:prompt]

    def log_p(model, side):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([side["input_ids"]])).logits[0].double().log_softmax(-1)
        return sum(scores[place, label].item() for place, label in enumerate(side["labels"][1:]) if label != -100)

    batch = trainer._collate([trainer.train_dataset[number] for number in (0, 1)])
    counts = Counts.at_least_one(Counts.numbers([batch]))
    method._reference = SimpleNamespace(logits=lambda inputs: before(**inputs).logits)
    loss, _ = method.loss(trainer.model.eval(), batch, counts)
    rewards = [
        {side: log_p(trainer.model, row[side]) - log_p(before, row[side]) for side in ("forget", "alternative")}
        for row in (trainer.train_dataset[number] for number in (0, 1))
    ]
    margins = [0.2 * (reward["alternative"] - reward["forget"]) for reward in rewards]
    assert loss.item() == pytest.approx(sum(2 / 0.2 * math.log1p(math.exp(-m)) for m in margins) / 2, rel=1e-4)
    assert all(margin > 0 for margin in margins)


def test_dpo_of_micro_batches_is_that_of_the_batch(tmp_path):
    from hf_unlearn.data.training import train_tokenizer

    tokenizer = train_tokenizer([f"{row['question']} {row['answer']}" for row in QUESTIONS], vocab_size=300)
    updates = []
    for size in (1, 2):
        model = make_llama(vocab_size=len(tokenizer), max_position_embeddings=128).double()
        trainer = make_trainer(
            model, FirstOrder("dpo"), tmp_path / str(size), QUESTIONS[:2], QUESTIONS[2:], processing_class=tokenizer,
            per_device_train_batch_size=size, gradient_accumulation_steps=2 // size, max_steps=2, optim="sgd",
            learning_rate=0.1, max_grad_norm=0.0,
        )  # fmt: skip
        trainer.train()
        updates.append(trainer.update_delta().tensors)
    for name, tensor in updates[0].items():
        assert torch.allclose(tensor, updates[1][name], rtol=1e-6, atol=1e-12), name


def test_dpo_needs_questions(tmp_path):
    with pytest.raises(InputError, match="needs question and answer, or messages"):
        make_trainer(trained_llama(), FirstOrder("dpo"), tmp_path)
    with pytest.raises(InputError, match="refusals must be texts"):
        FirstOrder("dpo", refusals=[])

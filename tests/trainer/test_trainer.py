# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The loop: accumulation, what is logged, evaluated, kept and saved, and bad input."""

import copy
import json
import logging
import subprocess
import sys
import types

import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM, TrainerCallback

from hf_unlearn import FirstOrder, KFade, UpdateDelta
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.methods.first_order import BASELINES
from tests.support.hub_server import client_environment, hub_server
from tests.support.models import make_llama
from tests.support.trainers import FORGET, RETAIN, logged, make_rows, make_trainer, trained_llama, weights


GATE = "model.layers.0.mlp.gate_proj.weight"


def token_nll(model, rows):
    """Summed NLL and number of labelled tokens, row by row, without padding."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            log_p = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    total, tokens = total - log_p[position, label].item(), tokens + 1
    return total, tokens


# RMU's defaults name the layers of a 7B model.
SMALL = {"rmu": {"layer": 1, "retain_weight": 2.0}}


# ---- gradient accumulation ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "objective",
    # Labels of the one are drawn as it goes; the other needs questions (`tests/methods/test_first_order.py`).
    sorted({*BASELINES, "rmu"} - {"random_label", "dpo"}),
)
def test_micro_batches_give_the_update_of_the_whole_batch(objective, tmp_path):
    runs = {}
    for name, size, accumulate in (("whole", 8, 1), ("parts", 1, 8)):
        trainer = make_trainer(
            trained_llama(),
            FirstOrder(objective, **SMALL.get(objective, {})),
            tmp_path / name,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            max_steps=2,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
        )
        trainer.train()
        runs[name] = trainer
    whole, parts = (weights(trainer.model) for trainer in runs.values())
    moved = {name: (whole[name] - value).norm() for name, value in trained_llama().named_parameters()}
    assert max(moved.values()) > 1e-3
    for name in whole:
        assert (whole[name] - parts[name]).norm() <= 1e-6 + 1e-5 * moved[name]
    for key in ("loss", "forget_loss", "retain_loss"):
        assert logged(runs["whole"], key) == pytest.approx(logged(runs["parts"], key), rel=1e-5), key


@pytest.mark.parametrize("objective", ["cross_entropy", "margin", "unlikelihood"])
def test_micro_batches_give_the_same_kfade_step(objective, tmp_path):
    updates = []
    for size in (8, 3, 1):
        method = KFade(step_norm=0.05, objective=objective, curvature="kfac", damping=1e-3)
        trainer = make_trainer(trained_llama(), method, tmp_path / str(size), per_device_train_batch_size=size)
        trainer.train()
        updates.append(trainer.update_delta().tensors)
    for other in updates[1:]:
        for name, update in updates[0].items():
            assert (update - other[name]).norm() <= 1e-5 * update.norm()


# ---- what is logged -------------------------------------------------------------------------------------------------
def test_losses_are_means_over_tokens(tmp_path):
    model = trained_llama()
    trainer = make_trainer(
        model, FirstOrder("grad_diff"), tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=3,
        max_steps=1, learning_rate=0.0,
    )  # fmt: skip
    trainer.train()
    nll, tokens = token_nll(model, FORGET)
    assert logged(trainer, "forget_loss") == [pytest.approx(nll / tokens, rel=1e-5)]
    pairs = trainer.train_dataset
    nll, tokens = token_nll(model, [pairs[index]["retain"] for index in range(8)])
    assert logged(trainer, "retain_loss") == [pytest.approx(nll / tokens, rel=1e-5)]
    assert logged(trainer, "loss")[0] == pytest.approx(
        logged(trainer, "retain_loss")[0] - logged(trainer, "forget_loss")[0], rel=1e-5
    )


def test_losses_are_averaged_over_the_steps_between_two_logs(tmp_path):
    arguments = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3}
    each = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path / "a", **arguments, logging_steps=1)
    both = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path / "b", **arguments, logging_steps=2)
    each.train()
    both.train()
    values = logged(each, "forget_loss")
    assert len(values) == 4
    assert logged(both, "forget_loss") == pytest.approx([sum(values[:2]) / 2, sum(values[2:]) / 2], rel=1e-6)


def test_a_batch_without_labels_is_a_loss_of_zero(tmp_path, caplog):
    rows = Dataset.from_list([*FORGET.select(range(3)), {"input_ids": [5, 6, 7], "labels": [-100] * 3}])
    for objective in sorted({*BASELINES, "rmu"} - {"dpo"}):
        trainer = make_trainer(
            trained_llama(), FirstOrder(objective, **SMALL.get(objective, {})), tmp_path / objective, rows,
            per_device_train_batch_size=1, num_train_epochs=1,
        )  # fmt: skip
        trainer.train()
        assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


# ---- evaluation, best model, callbacks ------------------------------------------------------------------------------
def test_forget_and_retain_rows_are_evaluated_while_it_runs(tmp_path):
    calls = []

    def evaluator(model):
        calls.append(model.training)
        return {"score": float(len(calls))}

    trainer = make_trainer(
        trained_llama(), KFade(step_norm=0.05, steps=2, curvature="kfac", damping=1e-3), tmp_path,
        eval_strategy="steps", eval_steps=1, evaluator=evaluator, per_device_eval_batch_size=1,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "eval_score") == [1.0, 2.0] and calls == [False, False]
    # Batches of one row: the mean of the rows' means.
    expected = sum(nll / tokens for nll, tokens in (token_nll(trainer.model, [row]) for row in FORGET)) / 8
    assert logged(trainer, "eval_forget_loss")[-1] == pytest.approx(expected, rel=1e-4)
    assert len(logged(trainer, "eval_retain_loss")) == 2


def test_best_step_is_kept_in_model_and_delta(tmp_path):
    scores, seen = iter([1.0, 3.0, 2.0]), []

    def evaluator(model):
        seen.append(weights(model))
        return {"score": next(scores)}

    method = KFade(step_norm=0.05, steps=3, curvature="kfac", damping=1e-3)
    trainer = make_trainer(
        trained_llama(), method, tmp_path, eval_strategy="steps", eval_steps=1, evaluator=evaluator,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="score",
        greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, seen[1][name])
    assert not torch.equal(seen[1][GATE], seen[2][GATE])
    model = trainer.update_delta().apply_to(trained_llama())
    assert all(torch.equal(parameter, seen[1][name]) for name, parameter in model.named_parameters())


def test_callbacks_are_called(tmp_path):
    class Recorder(TrainerCallback):
        def __init__(self):
            self.events = []

        def on_step_begin(self, args, state, control, **kwargs):
            self.events.append("step")

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.events += ["log"] if "forget_loss" in logs else []

        def on_train_end(self, args, state, control, **kwargs):
            self.events.append("end")

    recorder = Recorder()
    method = KFade(step_norm=0.05, steps=2, curvature="identity")
    make_trainer(trained_llama(), method, tmp_path, callbacks=[recorder]).train()
    assert recorder.events == ["step", "log"] * 2 + ["end"]


# ---- models and rows that are given otherwise -----------------------------------------------------------------------
def test_model_by_folder_with_its_tokenizer_and_rows_of_text(tmp_path):
    texts = ["who is it? it is a cat.", "the cat sat on the mat", "what sat? the cat"]
    tokenizer = train_tokenizer(texts, vocab_size=300)
    make_llama(vocab_size=300).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    forget = Dataset.from_dict({"question": ["who is it?", "what sat?"], "answer": ["a cat", "the cat"]})
    method = KFade(step_norm=0.05, curvature="kfac", damping=1e-3)
    trainer = make_trainer(
        str(tmp_path / "model"), method, tmp_path / "run", forget, Dataset.from_dict({"text": texts})
    )
    trainer.train()
    trainer.save_model()
    delta = UpdateDelta.from_pretrained(tmp_path / "run")
    assert delta.config["base_model"] == "model (local folder)" and len(delta.tensors) == 6
    assert (tmp_path / "run" / "tokenizer.json").is_file()


def test_tokenizer_is_that_of_the_models_revision(monkeypatch):
    import transformers

    from hf_unlearn.runtime.loading import load_model

    asked = {}
    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        load = lambda source, name=name, **kwargs: asked.update({name: kwargs})
        monkeypatch.setattr(transformers, name, types.SimpleNamespace(from_pretrained=load))
    load_model("org/model", init_kwargs={"revision": "abc", "token": "t", "dtype": "bfloat16"})
    assert asked["AutoModelForCausalLM"] == {"revision": "abc", "token": "t", "dtype": "bfloat16"}
    assert asked["AutoTokenizer"] == {"revision": "abc", "token": "t"}


def test_model_by_folder_without_tokenizer_takes_tokens(tmp_path):
    make_llama().save_pretrained(tmp_path / "model")
    trainer = make_trainer(str(tmp_path / "model"), KFade(step_norm=0.1, curvature="identity"), tmp_path / "run")
    trainer.train()
    assert trainer.processing_class is None
    with pytest.raises(InputError, match="pass processing_class"):
        make_trainer(str(tmp_path / "model"), FirstOrder("ga"), tmp_path, Dataset.from_dict({"text": ["a"]}))


def test_model_that_does_not_exist(tmp_path):
    with pytest.raises(InputError, match="cannot load the model 'nobody/nothing'") as caught:
        make_trainer("nobody/nothing", FirstOrder("ga"), tmp_path)
    assert "\n" not in str(caught.value)


# ---- results --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_plus_delta_is_the_model_bit_for_bit(dtype, tmp_path):
    model, base = trained_llama(dtype), trained_llama(dtype)
    with torch.no_grad():
        before = {name: parameter.float().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(model, KFade(step_norm=0.02, steps=2, curvature="kfac", damping=1e-3), tmp_path)
    trainer.train()
    delta = trainer.update_delta()
    after = dict(model.named_parameters())
    assert len(delta.tensors) == 6
    for name, update in delta.tensors.items():
        assert update.dtype == torch.float32
        assert torch.equal((before[name] + update).to(dtype), after[name])
    delta.apply_to(base)
    assert all(torch.equal(parameter, after[name]) for name, parameter in base.named_parameters())


def test_first_order_delta_is_the_difference(tmp_path):
    model, base = trained_llama(), trained_llama()
    trainer = make_trainer(model, FirstOrder("grad_diff"), tmp_path, max_steps=3, learning_rate=1e-3)
    trainer.train()
    trainer.update_delta().apply_to(base)
    for (name, parameter), other in zip(base.named_parameters(), model.parameters()):
        # base + fl(new - base) may miss new by a rounding of the difference.
        assert torch.allclose(parameter, other, rtol=1e-6, atol=1e-9), name
    assert set(trainer.update_delta().tensors) == {name for name, _ in model.named_parameters()}


def test_save_model_writes_model_delta_card_and_log(tmp_path):
    model, base = trained_llama(), trained_llama()
    trainer = make_trainer(
        model, KFade(step_norm=0.05, curvature="kfac", damping=1e-3), tmp_path, save_strategy="steps", save_steps=1
    )
    trainer.train()
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "delta",
        "README.md",
        "unlearning_log.jsonl",
        "unlearn_run.json",
    } <= names
    assert not [name for name in names if name.startswith(".")]
    assert (
        not (tmp_path / "checkpoint-1" / "delta").exists() and not (tmp_path / "checkpoint-1" / "README.md").exists()
    )
    saved = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(saved.parameters(), model.parameters()))
    delta = UpdateDelta.from_pretrained(tmp_path)
    assert delta.config["method"] == "KFade" and delta.config["settings"]["step_norm"] == 0.05
    delta.apply_to(base)
    exact = dict(model.named_parameters())
    for name, update in trainer.update_delta().tensors.items():
        # Stored in bf16: 8 bits of every number of the update.
        assert (base.get_parameter(name) - exact[name]).abs().max() <= update.abs().max() / 256 + 1e-7
    assert "K-FADE" in (tmp_path / "README.md").read_text()
    [line] = (tmp_path / "unlearning_log.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["delta_sha256"] == delta.config["sha256"] and record["forget_rows"] == 8
    assert delta.config["sha256"] in (tmp_path / "README.md").read_text()
    assert record["metrics"]["forget_loss"] == logged(trainer, "forget_loss")[-1]
    assert record["cost"]["seconds"] > 0 and record["cost"]["fit_seconds"] > 0


def test_model_comes_back_in_the_mode_it_came_in(tmp_path):
    for training in (True, False):
        model = trained_llama().train(training)
        make_trainer(model, KFade(step_norm=0.1, curvature="identity"), tmp_path / str(training)).train()
        assert {module.training for module in model.modules()} == {training}


def test_no_update_before_training_and_no_second_run(tmp_path):
    trainer = make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), tmp_path)
    with pytest.raises(InputError, match="call train"):
        trainer.update_delta()
    trainer.train()
    with pytest.raises(InputError, match="has run already"):
        trainer.train()


def test_push_to_hub_is_one_commit(tmp_path):
    program = f"""
import sys
import types
sys.path.insert(0, {str(__import__("pathlib").Path(__file__).parents[2])!r})
from tests.support.trainers import make_trainer, trained_llama
from hf_unlearn import KFade
trainer = make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), "run", push_to_hub=True,
                       hub_model_id="lab/gone", save_strategy="steps", save_steps=1)
trainer.train()
print(trainer.push_to_hub())
"""
    with hub_server() as server:
        environment = client_environment(server, tmp_path / "home")
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120
        )
        assert done.returncode == 0, done.stderr
        [commit] = server.repos["lab/gone"]["commits"]
        assert done.stdout.strip().endswith(f"/lab/gone/commit/{commit['oid']}")
    wanted = {"README.md", "config.json", "model.safetensors", "delta/delta.safetensors", "unlearning_log.jsonl"}
    assert wanted <= set(commit["files"])


# ---- bad input ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_empty_sets(side, tmp_path):
    empty = FORGET.select([])
    sets = {"forget": empty} if side == "forget" else {"retain": empty}
    with pytest.raises(InputError, match=f"the {side} set is empty"):
        make_trainer(trained_llama(), FirstOrder("grad_diff"), tmp_path, **sets)
    with pytest.raises(InputError, match=f"no {side} dataset"):
        make_trainer(trained_llama(), KFade(step_norm=0.1), tmp_path, **{side: None})


def test_forget_rows_among_the_retain_rows_are_counted(tmp_path, caplog):
    both = Dataset.from_list([*RETAIN, FORGET[2], FORGET[4], FORGET[4]])
    with caplog.at_level(logging.WARNING):
        make_trainer(trained_llama(), FirstOrder("ga"), tmp_path, retain=both)
    assert "2 of 8 forget rows are also retain rows" in caplog.text


def test_nan_weight_is_a_numerical_error(tmp_path):
    model = trained_llama()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    untouched = weights(model)
    for method in (KFade(step_norm=0.1, curvature="identity"), FirstOrder("npo")):
        trainer = make_trainer(model, method, tmp_path / method.label)
        with pytest.raises(NumericalError, match="loss is nan at step 0"):
            trainer.train()
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(
        torch.equal(value, untouched[name]) or name == "model.norm.weight" for name, value in model.named_parameters()
    )


def test_folder_of_another_run_is_refused_and_the_trainer_stays_usable(tmp_path):
    make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), tmp_path).train()
    for method, rows, what in (
        (KFade(step_norm=0.2, curvature="identity"), FORGET, "method"),
        (KFade(step_norm=0.1, curvature="identity"), make_rows(8, 5), "forget rows"),
    ):
        trainer = make_trainer(trained_llama(), method, tmp_path, rows)
        with pytest.raises(InputError, match=f"holds another run .*{what}"):
            trainer.train()
    with pytest.raises(InputError, match="another base weights"):
        make_trainer(make_llama(), KFade(step_norm=0.1, curvature="identity"), tmp_path).train()
    trainer.args.output_dir = str(tmp_path / "other")
    trainer.train()
    # The same request again is the same run.
    make_trainer(trained_llama(), KFade(step_norm=0.1, curvature="identity"), tmp_path).train()


def test_several_gpus_in_one_process_are_refused(tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("ga"), tmp_path)
    trainer.args = copy.copy(trainer.args)
    trainer.args._n_gpu = 2
    with pytest.raises(InputError, match="accelerate launch"):
        trainer.train()


def test_card_and_log_of_a_first_order_method(tmp_path):
    trainer = make_trainer(trained_llama(), FirstOrder("npo"), tmp_path, max_steps=2, learning_rate=1e-3)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "removed with NPO, by hf_unlearn" in card and "objective npo, beta 0.1" in card and "None" not in card
    delta = UpdateDelta.from_pretrained(tmp_path / "model")
    assert delta.sha256() == trainer.update_delta().sha256(torch.bfloat16) and delta.sha256() in card
    (line,) = (tmp_path / "unlearning_log.jsonl").read_text().splitlines()
    request = json.loads(line)
    assert request["method"] == "NPO" and request["delta_sha256"] == delta.sha256()


def test_rows_without_tokens_ask_for_a_collator(tmp_path):
    images = Dataset.from_list([{"pixel_values": [[0.0, 1.0]], "labels": 1}] * 2)
    with pytest.raises(InputError, match="pass data_collator"):
        make_trainer(make_llama(), FirstOrder("grad_diff"), tmp_path, images, images)

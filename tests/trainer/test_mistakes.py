# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Plausible mistakes in Python: each is one line that names the cause and the cure, before any weight has changed."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration, TrainingArguments

from hf_unlearn import FastNTK, FirstOrder, KFade, UnlearnConfig, UnlearnTrainer
from hf_unlearn.errors import InputError
from hf_unlearn.methods.rmu import RMU
from tests.support.models import make_experts
from tests.support.trainers import FORGET, RETAIN, make_trainer, trained_llama, weights


KFADE = KFade(step_norm=0.01, curvature="identity")
NPO, GA = FirstOrder("npo"), FirstOrder("ga")
LORA = LoraConfig(r=2, target_modules=["q_proj"])
PROMPTS = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}


def shared_by_hand():
    model = trained_llama()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    return model


def encoder_decoder():
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))


# What went wrong -> (a method's settings, words of the message).
OF_METHODS = {
    "neither norm nor budget": (lambda: KFade(), "give exactly one of step_norm (alpha) and kl_budget"),
    "both norm and budget": (lambda: KFade(step_norm=0.1, kl_budget=0.1), "exactly one of step_norm"),
    "a number as text": (lambda: KFade(step_norm="0.1"), "step_norm must be a number or None, not '0.1'"),
    "a flag as text": (lambda: KFade(step_norm=0.1, refit="false"), "refit must be True or False, not 'false'"),
    "half a step": (lambda: KFade(step_norm=0.1, steps=1.5), "steps must be a whole number, not 1.5"),
    "a flag for a number": (lambda: KFade(step_norm=0.1, steps=True), "steps must be a whole number, not True"),
    "no damping": (lambda: KFade(step_norm=0.1, damping=float("nan")), "damping must be a finite number above 0"),
    "a Fisher that is none": (lambda: KFade(step_norm=0.1, fisher="empiric"), "choose one of sampled, probe, exact"),
    "a curvature that is none": (lambda: KFade(step_norm=0.1, curvature="ekfak"), "one of ekfac, kfac, diagonal"),
    "a negative temperature": (lambda: FirstOrder("npo", beta=-1), "beta must be above 0, not -1"),
    "a negative weight": (lambda: FirstOrder("kl", retain_weight=-0.5), "retain_weight must be a finite number at l"),
    "an objective that is none": (lambda: FirstOrder("graddiff"), "choose one of ga, grad_diff, kl"),
    "layers as text": (lambda: RMU(layers="5,6,7"), "layers must be a list of whole numbers"),
    "a negative ridge": (lambda: FastNTK(ridge=-1.0), "ridge must be a finite number at least 0"),
    "half a contrast": (lambda: FastNTK(contrasts=1.5), "contrasts must be a whole number or None"),
}

# What went wrong -> (model, method, arguments, words of the message).
OF_RUNS = {
    "the class of a method": (trained_llama, KFade, {}, "method must be a method such as KFade(step_norm=0.006)"),
    "the name of a method": (trained_llama, "kfade", {}, "method must be a method such as"),
    "the class of a model": (lambda: type(trained_llama()), KFADE, {}, "model must be a model, or its name or folder"),
    "no model": (lambda: None, KFADE, {}, "model must be a model, or its name or folder, not None"),
    "a tokenizer's name": (trained_llama, KFADE, {"processing_class": "gpt2"}, "must be the tokenizer itself"),
    "a collator's name": (trained_llama, KFADE, {"data_collator": "pad"}, "data_collator must be a function"),
    "an evaluator's result": (trained_llama, KFADE, {"evaluator": {"score": 1.0}}, "evaluator must be a function"),
    "a config of PEFT as a dict": (trained_llama, NPO, {"peft_config": {"r": 2}}, "such as LoraConfig(r=8)"),
    "a target that PEFT misses": (
        trained_llama,
        NPO,
        {"peft_config": LoraConfig(target_modules=["c_attn"])},
        "peft_config: Target modules {'c_attn'} not found",
    ),
    "two adapters": (lambda: get_peft_model(trained_llama(), LORA), NPO, {"peft_config": LORA}, "wears an adapter al"),
    "an adapter for inference": (
        lambda: get_peft_model(trained_llama(), LoraConfig(r=2, target_modules=["q_proj"], inference_mode=True)),
        NPO,
        {},
        "load the adapter with is_trainable=True",
    ),
    "frozen weights": (lambda: trained_llama().requires_grad_(False), GA, {}, "no parameter requires a gradient"),
    "virtual tokens": (trained_llama, NPO, {"peft_config": PROMPTS}, "PROMPT_TUNING puts virtual tokens before"),
    "an encoder with a decoder": (encoder_decoder, NPO, {}, "is an encoder with a decoder: give a causal model"),
    "no weights": (lambda: trained_llama().to("meta"), NPO, {}, "load it with from_pretrained"),
    "weights shared by hand": (shared_by_hand, NPO, EVALUATED, "one weight, which the model's class does not say"),
    "experts alone": (lambda: make_experts("mixtral"), KFade(step_norm=0.1), {}, "are routed experts fused into"),
    "a layer beyond the last": (trained_llama, RMU(layer=99), {}, "MLPs in layers 0 to 1, not in layer 97, 98, 99"),
    "a layer that cannot move": (trained_llama, RMU(layer=0, layers=[1]), {}, "layer 1 lies above layer 0"),
    "the word of PEFT for all": (
        trained_llama,
        KFade(step_norm=0.1, target_modules="all-linear"),
        {},
        "no linear module matches 'all-linear'; the model has model.layers.{0..1}",
    ),
    "no regular expression": (trained_llama, KFade(step_norm=0.1, target_modules="*mlp"), {}, "is not a regular exp"),
    "more rows a step than there are": (
        trained_llama,
        KFade(step_norm=0.1, forget_batch_size=9),
        {},
        "forget_batch_size is 9 but there are 8 forget rows: lower it",
    ),
    "a limit that nothing measures": (trained_llama, KFade(step_norm=0.1, kl_limit=0.1), {}, "set kl_rows to 1 or mo"),
    "lengths of pairs": (
        trained_llama,
        NPO,
        {"train_sampling_strategy": "group_by_length"},
        "train_sampling_strategy='group_by_length': each forget row comes with a retain row",
    ),
    "smoothed labels": (trained_llama, NPO, {"label_smoothing_factor": 0.1}, "no loss of unlearning has it"),
    "noise on embeddings": (trained_llama, NPO, {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0: noise"),
    "rows left out": (trained_llama, NPO, {"dataloader_drop_last": True}, "leave rows out that are to be forgotten"),
    "a batch that shrinks": (trained_llama, KFADE, {"auto_find_batch_size": True}, "set per_device_train_batch_size"),
    "an optimiser that is not installed": (trained_llama, NPO, {"optim": "galore_adamw"}, "optim="),
    "scaled gradients of fp16": (lambda: trained_llama(torch.float16), NPO, {"fp16": True}, "load in fp32"),
    "a metric that is not measured": (
        trained_llama,
        NPO,
        {**EVALUATED, "load_best_model_at_end": True},
        "metric_for_best_model='loss' is not measured: choose forget_loss or retain_loss",
    ),
    "a metric with a slip": (
        trained_llama,
        NPO,
        {**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "eval_forget_los"},
        "metric_for_best_model='forget_los' is not measured",
    ),
    "a repository with two slashes": (trained_llama, NPO, {"hub_model_id": "a/b/c"}, "no repository can be called"),
    "a batch of no rows": (trained_llama, NPO, {"per_device_train_batch_size": 0}, "must be at least 1, not 0"),
    "rates as text": (trained_llama, NPO, {"learning_rate": "1e-5"}, "learning_rate must be a number, not '1e-5'"),
    "no tuning to undo": (trained_llama, FastNTK(linearize="pretrained"), {}, "give FastNTK(pretrained=the model bef"),
}


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize("make, words", OF_METHODS.values(), ids=OF_METHODS)
def test_a_mistake_in_a_methods_settings(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in one_line(caught)


@pytest.mark.parametrize("make, method, arguments, words", OF_RUNS.values(), ids=OF_RUNS)
def test_a_mistake_in_a_run(make, method, arguments, words, tmp_path):
    model = make()
    before = weights(model) if isinstance(model, torch.nn.Module) else {}
    with pytest.raises(InputError) as caught:
        make_trainer(model, method, tmp_path / "run", **arguments).train()
    assert words in one_line(caught)
    for name, weight in before.items():
        now = model.get_parameter(name) if name in dict(model.named_parameters()) else weight
        assert weight.is_meta or torch.equal(now, weight), name
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()] if (tmp_path / "run").exists() else []
    assert not written


def test_arguments_of_another_class(tmp_path):
    for args in (TrainingArguments(output_dir=str(tmp_path), use_cpu=True), {"output_dir": "o"}):
        with pytest.raises(InputError, match="args must be an UnlearnConfig, not a"):
            UnlearnTrainer(trained_llama(), KFADE, args, FORGET, RETAIN)


def test_an_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("a person's")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match="output_dir .* cannot be written .*: choose another"):
            make_trainer(trained_llama(), KFADE, tmp_path / place)
    assert (tmp_path / "file").read_text() == "a person's"


def test_a_settings_slip_after_the_method_was_made(tmp_path):
    method = KFade(step_norm=0.1, curvature="identity")
    method.steps = 0
    with pytest.raises(InputError, match="steps must be at least 1, not 0"):
        make_trainer(trained_llama(), method, tmp_path)


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        make_trainer(trained_llama(), KFADE, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_another_trainers_configuration_is_no_method(tmp_path):
    with pytest.raises(InputError, match="method must be a method"):
        make_trainer(trained_llama(), UnlearnConfig(output_dir=str(tmp_path), use_cpu=True), tmp_path)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A card's lines are run on the folder that the trainer saved: the model that they load is the one in memory."""

import copy

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from hf_unlearn import BatchNormTuningConfig, FastNTK, FirstOrder, KeyValuePromptConfig, KFade
from hf_unlearn.data.images import split_class
from hf_unlearn.report.card import render_card
from hf_unlearn.report.loading import Loading
from tests.support.cards import CODE, assert_same, load
from tests.support.images import COLLATOR, digits, make_model  # noqa: F401
from tests.support.trainers import COLLATE, RETAIN, make_trainer, trained_llama
from tests.support.tuners import make_vit


def llama(adapter):
    model = trained_llama()
    model.config._name_or_path = None
    return model, get_peft_model(copy.deepcopy(model), LoraConfig(r=2, init_lora_weights=False)) if adapter else model


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize(
    "method, arguments",
    [
        (FirstOrder("ga"), {"learning_rate": 1e-3, "max_steps": 2}),
        (KFade(curvature="identity", step_norm=0.05), {}),
    ],
    ids=["first_order", "kfade"],
)
def test_language_model(method, arguments, adapter, tmp_path):
    base, model = llama(adapter)
    base.save_pretrained(tmp_path / "base")
    batch = COLLATE([RETAIN[0], RETAIN[1]])
    with torch.no_grad():
        before = model(**batch).logits
    trainer = make_trainer(model, method, tmp_path / "run", **arguments)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    model.eval()
    with torch.no_grad():
        moved = float((model(**batch).logits - before).abs().max())
    assert moved > 0
    # Where weights under an adapter have moved, all is saved as one model, and sums of merged weights round elsewhere.
    merged = adapter and method.own_update
    assert_same(model, load(tmp_path / "model", tmp_path / "base"), batch, 1e-4 * moved if merged else 0.0)
    data = ModelCard.load(tmp_path / "model/README.md").data
    assert data.pipeline_tag == "text-generation"
    assert data.library_name == ("peft" if adapter and not merged else "transformers")
    assert (tmp_path / "model/adapter_config.json").exists() == (adapter and not merged)


@pytest.mark.parametrize("kind", ["batch_norm", "key_value_prompt", "plain"])
def test_image_classifier(kind, digits, tmp_path):  # noqa: F811
    model, tuner, head = {
        "batch_norm": (make_model(torch.float32), BatchNormTuningConfig, "linear"),
        "key_value_prompt": (make_vit(num_channels=3), KeyValuePromptConfig, "classifier"),
        "plain": (make_model(torch.float32), None, "linear"),
    }[kind]
    # The base model has another number of classes than the adapter's head.
    model.save_pretrained(tmp_path / "base")
    if tuner is not None:
        model = type(model).from_pretrained(tmp_path / "base", num_labels=4, ignore_mismatched_sizes=True)
        model = get_peft_model(model, tuner(modules_to_save=[head]))
    batch = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    folder = tmp_path / "model"
    model.eval().save_pretrained(folder)
    loading = Loading.of(model, tokenizer=False, own_update=False)
    (folder / "README.md").write_text(render_card({"method": "Fast-NTK", "loading": loading}))
    assert_same(model, load(folder, tmp_path / "base"), batch)
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == "image-classification"


def test_request_of_fast_ntk(digits, tmp_path):  # noqa: F811
    start = make_model(torch.float32)
    start.save_pretrained(tmp_path / "base")
    model = get_peft_model(start, BatchNormTuningConfig(modules_to_save=["linear"]))
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, model.parameters()):
            parameter.add_(0.05)  # in place of tuning
    trainer = make_trainer(
        model,
        FastNTK(ridge=0.1, target_scale=5.0),
        tmp_path / "run",
        *split_class(digits, "2"),
        data_collator=COLLATOR,
    )
    trainer.train()
    trainer.save_model(tmp_path / "model")
    assert_same(model.eval(), load(tmp_path / "model", tmp_path / "base"), COLLATOR([digits[0], digits[9]]))


def test_one_process_of_fsdp_shows_the_class_below():
    class FSDPModel(type(trained_llama())):
        __module__ = "torch.distributed.fsdp"

    assert Loading.of(FSDPModel(trained_llama().config), tokenizer=True, own_update=True).name == "LlamaForCausalLM"


def test_lines_of_a_model_on_the_hub():
    loading = Loading("transformers", "ViTForImageClassification", False, True, True, False, 10)
    card = render_card({"method": "x", "repo_id": "you/unlearned", "base_model": "lab/vit", "loading": loading})
    assert CODE.search(card).group(1) == (
        "import hf_unlearn  # PEFT learns of the adapter's type\n"
        "from peft import PeftModel\n"
        "from transformers import ViTForImageClassification\n\n"
        'base = ViTForImageClassification.from_pretrained("lab/vit", num_labels=10, ignore_mismatched_sizes=True)\n'
        'model = PeftModel.from_pretrained(base, "you/unlearned")\n'
    )
    data = ModelCard(card).data
    assert data.base_model == "lab/vit" and data.to_dict()["base_model_relation"] == "adapter"

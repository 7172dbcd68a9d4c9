# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""A card's lines are run on the folder that the trainer saved: the model that they load is the one in memory."""

import copy
import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from hf_unlearn import BatchNormTuningConfig, FastNTK, FirstOrder, KeyValuePromptConfig, KFade
from hf_unlearn.data.images import split_class
from hf_unlearn.report.card import render_card
from hf_unlearn.report.loading import Loading
from tests.support.images import COLLATOR, digits, make_model  # noqa: F401
from tests.support.trainers import COLLATE, RETAIN, make_trainer, trained_llama
from tests.support.tuners import make_vit


CODE = re.compile(r"## How to use it\n.*?```python\n(.*?)```", re.DOTALL)


def load(folder, base):
    """The `model` of the card in a folder, in evaluation mode, which no line of it asks for."""
    code = CODE.search((folder / "README.md").read_text()).group(1)
    names = {}
    exec(code.replace("path/to/this/model", str(folder)).replace("path/to/the/base/model", str(base)), names)
    assert not names["model"].training
    return names["model"]


@torch.no_grad()
def assert_same(model, loaded, batch, tolerance=0.0):
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=tolerance)


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
    # Weights below an adapter come from `delta/`, whose update is in bf16.
    with torch.no_grad():
        moved = float((model(**batch).logits - before).abs().max())
    tolerance = 5e-3 * moved if adapter and method.own_update else 0.0
    assert moved > 0
    assert_same(model, load(tmp_path / "model", tmp_path / "base"), batch, tolerance)
    data = ModelCard.load(tmp_path / "model/README.md").data
    assert data.pipeline_tag == "text-generation" and data.library_name == ("peft" if adapter else "transformers")


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

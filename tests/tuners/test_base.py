# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What PEFT does with every adapter of this package: saving, loading, switching, resuming; and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModel, LNTuningConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import PretrainedConfig, Trainer, TrainingArguments

from hf_unlearn import BatchNormTuningConfig, BorderPromptConfig, KeyValuePromptConfig
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.checkpoints import merged_weights
from hf_unlearn.tuners import initial_parameters
from tests.support.tuners import CASES, IMAGES, logits, make_resnet, make_vit, nudge, prompt_layers, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")


@pytest.fixture(params=CASES)
def case(request):
    make, config = CASES[request.param]
    return SimpleNamespace(name=request.param, make=make, config=config)


def test_saved_adapter_loads_to_the_bit_in_every_way(case, tmp_path):
    base = case.make()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(case.make(), case.config())
    after = nudge(model)
    assert not torch.equal(after, logits(base))
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(PeftModel.from_pretrained(case.make(), tmp_path / "adapter")), after)
    lazily = PeftModel.from_pretrained(case.make(), tmp_path / "adapter", low_cpu_mem_usage=True)
    assert torch.equal(logits(lazily), after)
    plain = case.make()
    plain.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(plain), after)
    again = PeftModel.from_pretrained(case.make(), tmp_path / "adapter", is_trainable=True)
    assert tuned_names(again) == tuned_names(model)
    again.save_pretrained(tmp_path / "again")
    saved = [tmp_path / folder / "adapter_model.safetensors" for folder in ("adapter", "again")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    want, got = initial_parameters(model), initial_parameters(again)
    assert all(torch.equal(want[name], got[name]) for name in want) and want.keys() == got.keys()


def test_auto_model_finds_base_and_adapter(tmp_path):
    for name, (make, config) in CASES.items():
        make().save_pretrained(tmp_path / name / "base")
        base = type(make()).from_pretrained(tmp_path / name / "base")
        model = get_peft_model(base, config())
        after = nudge(model)
        model.save_pretrained(tmp_path / name / "adapter")
        assert torch.equal(logits(AutoPeftModel.from_pretrained(tmp_path / name / "adapter")), after)


def test_several_adapters_disable_and_delete(case, tmp_path):
    before = logits(case.make())
    model = get_peft_model(case.make(), case.config())
    first = nudge(model)
    model.add_adapter("other", case.config())
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    assert all(".other" in name for name in tuned_names(model))
    second = nudge(model, seed=2)
    model.save_pretrained(tmp_path)
    model.set_adapter("default")
    assert torch.equal(logits(model), first) and not torch.equal(first, second)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.equal(logits(model), second)
    assert not any(".default" in name for name in model.state_dict())
    model.load_adapter(tmp_path, "default")
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    twin = copy.deepcopy(model)
    nudge(model)
    assert torch.equal(logits(twin), first)


def test_nothing_but_the_adapter_moves_in_training(case):
    model = get_peft_model(case.make(), case.config())
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tuned_names(model)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    start = {name: dict(model.named_parameters())[name].detach().clone() for name in tuned_names(model)}
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(pixel_values=IMAGES, labels=torch.arange(6) % 3).loss.backward()
        optimizer.step()
    with torch.no_grad(), model.disable_adapter():
        model.train()(pixel_values=IMAGES)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())
    assert all(not torch.equal(state[name], tensor) for name, tensor in start.items())


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return {"pixel_values": IMAGES[index], "labels": index % 3}


def test_trainer_resumes_to_the_bit(case, tmp_path):
    def train(folder, steps, resume=None):
        config = case.config()
        if case.name == "batch_norm":
            config.update_running_stats = True  # what moves is saved
        model = get_peft_model(case.make(), config)
        args = TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=2, save_steps=2, learning_rate=0.05,
            lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True, seed=3,
        )  # fmt: skip
        Trainer(model=model, args=args, train_dataset=Pictures()).train(resume_from_checkpoint=resume)
        return model

    whole = train("whole", 4)
    resumed = train("part", 4, resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert not torch.equal(logits(whole), logits(get_peft_model(case.make(), case.config())))
    names = tuned_names(whole) + [name for name in whole.state_dict() if "tuning_layers" in name]
    assert all(torch.equal(whole.state_dict()[name], resumed.state_dict()[name]) for name in names)


def test_half_precision_models_keep_prompts_in_fp32():
    for config in (KeyValuePromptConfig(init_std=1.0), BorderPromptConfig(border=2, init_std=1.0)):
        model = get_peft_model(make_vit().bfloat16(), config).eval()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert model(pixel_values=IMAGES.bfloat16()).logits.dtype == torch.bfloat16


# ---- bad input ------------------------------------------------------------------------------------------------------
class Norms(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.norm, self.config = nn.BatchNorm1d(3, **kwargs), PretrainedConfig()


@pytest.mark.parametrize(
    "model, config, message",
    [
        (make_vit, BatchNormTuningConfig, "has no batch normalisation"),
        (make_resnet, KeyValuePromptConfig, "has no attention on transformers' attention interface"),
        (Norms, lambda: BorderPromptConfig(image_size=64), "has no 2d convolution"),
        (make_resnet, lambda: BorderPromptConfig(border=2), "give image_size"),
        (make_vit, lambda: BorderPromptConfig(border=8), "border of 8 leaves nothing of 16 x 16"),
        (make_vit, BorderPromptConfig, "border of 30 leaves nothing"),
        (make_vit, lambda: BorderPromptConfig(border=0), "at least 1 pixel"),
        (make_vit, lambda: BorderPromptConfig(init_std=-1.0), "init_std must not"),
        (make_vit, lambda: KeyValuePromptConfig(num_prompts=0), "num_prompts must be at least 1"),
        (make_vit, lambda: KeyValuePromptConfig(init_std=-1.0), "init_std must not"),
        (lambda: Norms(affine=False), BatchNormTuningConfig, "norm has no weight and bias"),
        (lambda: Norms(track_running_stats=False), BatchNormTuningConfig, "norm keeps no running statistics"),
        (make_resnet, lambda: BatchNormTuningConfig(target_modules=["normalization", "bn7"]), "no module bn7 of"),
        (make_resnet, lambda: BatchNormTuningConfig(target_modules="bn7"), "leave no module of ResNetForImage"),
        (make_resnet, lambda: BatchNormTuningConfig(exclude_modules=".*"), "leave no module of ResNetForImage"),
        (
            make_resnet, lambda: BatchNormTuningConfig(target_modules=["convolution"]),
            "is a Conv2d; target_modules must name",
        ),
        (make_vit, lambda: KeyValuePromptConfig(target_modules=".*k_proj"), "is a Linear; target_modules must name"),
        (lambda: make_vit(attn_implementation="flex_attention"), KeyValuePromptConfig, "takes no prompts: load"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(model, config, message):
    model = model()
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(InputError, match=message) as error:
        get_peft_model(model, config())
    assert "\n" not in str(error.value)
    assert [name for name, _ in model.named_modules()] == before


def test_running_what_does_not_fit_is_refused():
    border = get_peft_model(make_vit(), BorderPromptConfig(border=2))
    with pytest.raises(InputError, match="for images of 16 x 16, these are 24 x 24"):
        border(pixel_values=torch.randn(1, 3, 24, 24))
    prompts = get_peft_model(make_vit(), KeyValuePromptConfig())
    for model, words in ((prompts, "key/value prompts are inputs"), (border, "a border prompt changes the image")):
        before = logits(model)
        for merge in (model.merge_and_unload, model.merge_adapter, lambda m=model: merged_weights(m)):
            with pytest.raises(InputError, match=words):
                merge()
        assert torch.equal(logits(model), before)
    layer = prompt_layers(prompts)[0]
    layer.key_value_prompt_keys["default"] = nn.Parameter(torch.randn(2, 3, 8))
    with pytest.raises(InputError, match="4 key/value heads of size 4, prompts are for 2 of size 8"):
        logits(prompts)
    layer.base_layer.forward = lambda *args, key_value_prompts=None, **kwargs: args[:1] * 2
    with pytest.raises(InputError, match="does not hand its keywords"):
        logits(prompts)
    tuned = get_peft_model(make_resnet(), LNTuningConfig(target_modules=["normalization"])).base_model.model
    with pytest.raises(InputError, match="carries an adapter of another type"):
        inject_adapter_in_model(BatchNormTuningConfig(), tuned)

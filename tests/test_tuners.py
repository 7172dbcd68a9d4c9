# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The three PEFT methods: what they change, what they leave alone, and everything that PEFT does with an adapter."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import AutoPeftModel, LNTuningConfig, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners import tuners_utils
from peft.tuners._buffer_dict import BufferDict
from peft.utils import PeftType, peft_types
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import hf_unlearn
from hf_unlearn import BatchNormTuningConfig, BorderPromptConfig, KeyValuePromptConfig
from hf_unlearn.errors import InputError
from hf_unlearn.loading import merged_weights
from hf_unlearn.ntk import Jacobians
from hf_unlearn.peft_types import add_peft_type
from hf_unlearn.tuners import (
    BatchNormTuningLayer,
    BatchNormTuningModel,
    KeyValuePromptLayer,
    export_as_ln_tuning,
    initial_parameters,
    parameter_share,
    print_parameter_share,
)
from hf_unlearn.tuners.border_prompt.layer import border_places


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")
IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def make_vit(seed=0, **kwargs):
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=16, patch_size=4,
        num_labels=3, **kwargs,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def make_resnet(seed=0):
    torch.manual_seed(seed)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    model = ResNetForImageClassification(config)
    with torch.no_grad():
        model.train()(IMAGES)  # statistics that are not 0 and 1
    return model.eval()


HEAD = {"modules_to_save": ["classifier"]}
CASES = {
    "batch_norm": (make_resnet, lambda: BatchNormTuningConfig(**HEAD)),
    "key_value_prompt": (make_vit, lambda: KeyValuePromptConfig(num_prompts=3, init_std=1.0, **HEAD)),
    "border_prompt-vit": (make_vit, lambda: BorderPromptConfig(border=3, **HEAD)),
    "border_prompt-resnet": (make_resnet, lambda: BorderPromptConfig(border=3, image_size=16, **HEAD)),
}


@pytest.fixture(params=CASES)
def case(request):
    make, config = CASES[request.param]
    return SimpleNamespace(name=request.param, make=make, config=config)


def run_python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_unlearn.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@torch.no_grad()
def logits(model):
    return model.eval()(pixel_values=IMAGES).logits


@torch.no_grad()
def nudge(model, seed=1):
    """Move every parameter that trains; returns the outputs after it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return logits(model)


def tuned_names(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# ---- registration with PEFT -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "code",
    [
        "import hf_unlearn, sys, importlib.util; assert not {'torch', 'peft'} & set(sys.modules)\n"
        "assert importlib.util.find_spec('peft'); from peft import PeftModel",
        "from peft import PeftModel; import hf_unlearn",
        "import hf_unlearn, transformers; from transformers.integrations import peft; from peft import PeftModel",
        "import hf_unlearn.tuners; from peft import PeftModel",
        "from hf_unlearn import KeyValuePromptConfig; from peft import PeftModel",
    ],
    ids=["before peft", "after peft", "through transformers", "tuners", "lazy name"],
)
def test_importing_the_package_is_enough(code, tmp_path):
    make_vit().save_pretrained(tmp_path / "base")
    model = get_peft_model(make_vit(), KeyValuePromptConfig())
    model.save_pretrained(tmp_path / "adapter")
    load = (
        "\nimport sys\nfrom transformers import AutoModelForImageClassification as Auto"
        "\nprint(PeftModel.from_pretrained(Auto.from_pretrained(sys.argv[1]), sys.argv[2]).peft_type.value)"
    )
    assert run_python(code + load, tmp_path / "base", tmp_path / "adapter") == "KEY_VALUE_PROMPT"


def test_types_are_members_like_any_other_and_added_once():
    count = len(PeftType)
    add_peft_type("batch_norm_tuning", BatchNormTuningConfig, BatchNormTuningModel)
    for name in ("BATCH_NORM_TUNING", "KEY_VALUE_PROMPT", "BORDER_PROMPT"):
        member = PeftType(name)
        assert member is PeftType[name] is getattr(PeftType, name) and member in list(PeftType)
        assert member == name and member.value == member.name == name and isinstance(member, PeftType)
        assert copy.deepcopy(member) is member is pickle.loads(pickle.dumps(member))
    assert len(PeftType) == len(list(PeftType)) == count


def test_private_names_that_the_tuners_rely_on():
    """An upgrade of Python, peft or transformers that moves one of them fails here by name."""
    for name in ("_member_names_", "_member_map_", "_value2member_map_"):
        assert hasattr(PeftType, name), f"enum.{name} is gone: peft_types.add_peft_type cannot append"
    parameters = {"name", "config_cls", "model_cls", "prefix"}
    assert parameters <= set(inspect.signature(peft_types.register_peft_method).parameters)
    for name, arguments in {
        "_prepare_adapter_config": ["self", "peft_config", "model_config"],
        "_create_and_replace": [
            "self",
            "peft_config",
            "adapter_name",
            "target",
            "target_name",
            "parent",
            "current_key",
        ],
        "_replace_module": ["self", "parent", "child_name", "new_module", "child"],
        "_check_merge_allowed": ["self"],
        "_cast_adapter_dtype": ["self", "adapter_name", "autocast_adapter_dtype"],
        "_get_adapter_state_dict": ["model", "config", "adapter_name", "state_dict", "unwanted_adapter_names"],
    }.items():
        found = list(inspect.signature(getattr(tuners_utils.BaseTuner, name)).parameters)
        assert found[: len(arguments)] == arguments, f"peft BaseTuner.{name} takes {found}"
    source = inspect.getsource(tuners_utils.BaseTuner)
    for call in (
        "self._check_merge_allowed()",
        "self._prepare_adapter_config(",
        "self._replace_module(parent, target_name",
    ):
        assert call in source, f"peft no longer calls {call}"
    for name in (
        "_get_available_adapters",
        "_move_adapter_to_device_of_base_layer",
        "_get_base_layer_device_and_dtype",
    ):
        assert hasattr(tuners_utils.BaseTunerLayer, name), f"peft BaseTunerLayer.{name} is gone"
    assert "persistent" in inspect.signature(BufferDict).parameters
    assert "_attn_implementation_internal" in vars(make_vit().config)
    attention = inspect.getsource(type(make_vit().vit.layers[0].attention))
    assert "ALL_ATTENTION_FUNCTIONS" in attention and "self.config._attn_implementation" in attention


# ---- every adapter: what PEFT does with it --------------------------------------------------------------------------
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
    if case.name != "border_prompt-resnet":  # a ResNet in training mode moves its statistics under any other adapter
        assert all(torch.equal(state[name], tensor) for name, tensor in frozen.items())
    assert all(not torch.equal(state[name], tensor) for name, tensor in start.items())


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return {"pixel_values": IMAGES[index], "labels": index % 3}


def test_trainer_resumes_to_the_bit(case, tmp_path):
    def train(folder, steps, resume=None):
        model = get_peft_model(case.make(), case.config())
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


def test_initial_parameters_are_the_pretrained_model(case):
    model = get_peft_model(case.make(), case.config())
    start = {name: dict(model.named_parameters())[name].detach().clone() for name in tuned_names(model)}
    nudge(model)
    initial = initial_parameters(model)
    assert initial.keys() == start.keys()
    assert all(torch.equal(initial[name], start[name]) for name in start)
    with pytest.raises(InputError, match="no adapter named 'missing'"):
        initial_parameters(model, "missing")
    lora = get_peft_model(make_vit(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(InputError, match="does not keep the values"):
        initial_parameters(lora)


@pytest.mark.parametrize("name", list(CASES)[:3])
def test_jacobians_of_tuned_parameters(name):
    make, config = CASES[name]
    model = get_peft_model(make(), config())
    nudge(model)
    model.double().train()
    names, inputs = tuned_names(model), {"pixel_values": IMAGES.double()}
    values = {n: p.detach() for n, p in model.named_parameters() if n in names}
    jacobians = Jacobians(model, names, chunk_size=4)
    got = torch.cat([rows for _, rows in jacobians(inputs)])
    assert model.training
    model.eval()
    call = lambda v: torch.func.functional_call(model, v, kwargs=inputs).logits
    dense = torch.func.jacrev(call)(values)
    dense = torch.cat([dense[n].flatten(2) for n in names], -1)
    assert dense.norm() > 1 and (got - dense).norm() <= 1e-12 * dense.norm()
    vector = torch.randn(jacobians.size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tangent, step = jacobians.unflatten(vector), 1e-6
    ahead, behind = (call({n: values[n] + sign * step * tangent[n] for n in names}) for sign in (1, -1))
    assert torch.allclose((ahead - behind) / (2 * step), dense @ vector, atol=1e-6)
    assert torch.allclose(jacobians.jvp(inputs, tangent), dense @ vector, atol=1e-10)
    start = Jacobians(model, names, at=initial_parameters(model))
    fresh = get_peft_model(make(), config()).double()
    assert torch.allclose(torch.cat([z for z, _ in start(inputs)]), fresh.eval()(**inputs).logits, atol=1e-7)


def test_parameter_share(capsys):
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    norms = sum(2 * m.num_features for m in make_resnet().modules() if isinstance(m, nn.BatchNorm2d))
    total = sum(parameter.numel() for parameter in make_resnet().parameters())
    head = 3 * 8 + 3
    assert parameter_share(model) == (norms + head, total, 100 * (norms + head) / total)
    print_parameter_share(model)
    assert (
        capsys.readouterr().out
        == f"tuned parameters: {norms + head} of {total:,} ({100 * (norms + head) / total:.2f} %)\n"
    )
    prompts = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=3))
    total = sum(parameter.numel() for parameter in make_vit().parameters())
    assert parameter_share(prompts)[:2] == (2 * 2 * 3 * 16, total)


# ---- BatchNorm ------------------------------------------------------------------------------------------------------
def test_batch_norm_trains_affine_parameters_of_every_layer():
    model = get_peft_model(make_resnet(), BatchNormTuningConfig())
    layers = [m for m in model.modules() if isinstance(m, BatchNormTuningLayer)]
    assert len(layers) == sum(isinstance(m, nn.BatchNorm2d) for m in make_resnet().modules())
    assert len(tuned_names(model)) == 2 * len(layers)
    part = get_peft_model(make_resnet(), BatchNormTuningConfig(exclude_modules=r".*encoder.*"))
    assert [name for name in tuned_names(part) if "encoder" in name] == []


def test_batch_norm_statistics_move_only_when_asked():
    for update in (False, True):
        model = get_peft_model(make_resnet(), BatchNormTuningConfig(update_running_stats=update))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
        with torch.no_grad():
            outputs = model.train()(pixel_values=IMAGES).logits
        moved = {name for name, tensor in before.items() if not torch.equal(tensor, model.state_dict()[name])}
        assert moved == ({name for name in before if "tuning_layers" in name} if update else set())
        assert torch.equal(outputs, logits(make_resnet())) != update
    # In training mode other adapters would move the base's statistics; a disabled one of ours does not.
    base = model.train().base_model.model.resnet.embedder.embedder.normalization.base_layer
    assert not base.training and model.training


def test_batch_norm_merges_into_a_plain_model(tmp_path):
    base = make_resnet()
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    after = nudge(model)
    weights = merged_weights(model)
    model.merge_adapter()
    assert torch.equal(logits(model), after)
    with pytest.raises(InputError, match="unmerge_adapter"):
        model.save_pretrained(tmp_path)
    initial = initial_parameters(model)
    assert torch.equal(next(iter(initial.values())), base.resnet.embedder.embedder.normalization.weight)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base))
    assert torch.equal(logits(model), after)
    plain = model.train().merge_and_unload(safe_merge=True)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert all(module.training for module in plain.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.equal(logits(plain), after)
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in weights.items())
    broken = get_peft_model(make_resnet(), BatchNormTuningConfig())
    next(p for p in broken.parameters() if p.requires_grad).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs"):
        broken.merge_adapter(safe_merge=True)


def test_batch_norm_takes_one_active_adapter():
    model = get_peft_model(make_resnet(), BatchNormTuningConfig())
    model.add_adapter("other", BatchNormTuningConfig())
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(InputError, match="activate one"):
        logits(model)
    with pytest.raises(InputError, match="one BatchNorm adapter"):
        model.base_model.merge_adapter(["default", "other"])


STOCK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForImageClassification
model = PeftModel.from_pretrained(AutoModelForImageClassification.from_pretrained(sys.argv[1]), sys.argv[2]).eval()
assert not any(name.startswith("hf_unlearn") for name in sys.modules)
assert model.peft_config["default"].peft_type == "LN_TUNING"
images, expected = torch.load(sys.argv[3])
assert torch.equal(model(pixel_values=images).logits, expected)
print("equal")
"""


def test_exported_batch_norm_loads_in_peft_alone(tmp_path):
    make_resnet().save_pretrained(tmp_path / "base")
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    model.add_adapter("other", BatchNormTuningConfig(update_running_stats=True))
    model.set_adapter("other")
    model.train()(pixel_values=IMAGES)
    after = nudge(model)
    folder = export_as_ln_tuning(model, tmp_path / "exported", "other")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.save((IMAGES, after), tmp_path / "expected.pt")
    assert run_python(STOCK, tmp_path / "base", folder, tmp_path / "expected.pt") == "equal"
    with pytest.raises(InputError, match="no BatchNorm adapter named 'third'"):
        export_as_ln_tuning(model, tmp_path / "none", "third")


# ---- key/value prompts ----------------------------------------------------------------------------------------------
def prompt_layers(model):
    return [module for module in model.modules() if isinstance(module, KeyValuePromptLayer)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_prompts_of_a_llama_equal_a_filled_cache(tiny_llama, implementation, padded):
    """p_K and p_V of every layer in the cache before the text, positions as without them: another road to the same."""
    make = lambda: tiny_llama(heads=4, kv_heads=2, hidden_size=32, attn_implementation=implementation)
    base = make()
    model = get_peft_model(make(), KeyValuePromptConfig(num_prompts=5, init_std=1.0)).eval()
    ids = torch.randint(3, 50, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = mask[1, :1] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=base.config)
    with torch.no_grad():
        for index, layer in enumerate(prompt_layers(model)):
            assert layer.key_value_prompt_keys["default"].shape == (2, 5, 8)
            keys, values = layer.key_value_prompt_keys["default"], layer.key_value_prompt_values["default"]
            cache.update(keys.expand(3, -1, -1, -1), values.expand(3, -1, -1, -1), index)
        long_mask = torch.cat([torch.ones(3, 5, dtype=torch.long), mask], 1)
        want = base(ids, attention_mask=long_mask, past_key_values=cache, position_ids=positions).logits
        got = model(input_ids=ids, attention_mask=mask if padded else None, position_ids=positions).logits
        plain = base(ids, attention_mask=mask, position_ids=positions).logits
    tokens = mask.bool()
    assert torch.allclose(got[tokens], want[tokens], atol=1e-6)
    assert (got - plain)[tokens].abs().max() > 0.1
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    text = model.generate(**arguments)
    assert torch.equal(text, model.generate(**arguments, use_cache=False))
    assert torch.equal(text, model.generate(**arguments, cache_implementation="static"))


def test_prompts_of_a_vit_equal_attention_written_out():
    model = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=3, init_std=1.0)).eval()
    layer = prompt_layers(model)[1]
    attention, states = layer.base_layer, torch.randn(2, 5, 16)
    split = lambda x: x.view(2, 5, 4, 4).transpose(1, 2)
    query, key, value = (split(getattr(attention, f"{name}_proj")(states)) for name in "qkv")
    key = torch.cat([key, layer.key_value_prompt_keys["default"].expand(2, -1, -1, -1)], 2)
    value = torch.cat([value, layer.key_value_prompt_values["default"].expand(2, -1, -1, -1)], 2)
    weights = (query @ key.transpose(2, 3) / 2).softmax(-1)
    expected = attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(layer(states)[0], expected, atol=1e-6)


def test_prompts_take_whatever_is_on_the_attention_interface():
    ids = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    sizes = {"vocab_size": 50, "pad_token_id": 0}
    bert = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, **sizes)
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, **sizes)
    for model in (BertForSequenceClassification(bert).eval(), GPT2LMHeadModel(gpt2).eval()):
        outputs = lambda m=model: m(input_ids=ids, attention_mask=mask).logits
        with torch.no_grad():
            before = outputs()
            wrapped = get_peft_model(model, KeyValuePromptConfig(num_prompts=4, init_std=2.0)).eval()
            after = outputs()
            model.set_attn_implementation("eager")
            assert torch.allclose(outputs(), after, atol=1e-6) and (after - before).abs().max() > 1e-4
            model.set_attn_implementation("sdpa")
            assert torch.equal(wrapped.unload()(input_ids=ids, attention_mask=mask).logits, before)


def test_models_that_share_a_config_do_not_disturb_each_other():
    config = make_vit().config
    torch.manual_seed(0)
    one, two, three = (ViTForImageClassification(config).eval() for _ in range(3))
    plain = [logits(model) for model in (one, two, three)]
    first = get_peft_model(one, KeyValuePromptConfig(init_std=1.0))
    second = get_peft_model(two, KeyValuePromptConfig(init_std=1.0, init_seed=1))
    a, b = logits(first), logits(second)
    assert torch.equal(logits(three), plain[2]) and config._attn_implementation == "sdpa"
    base = first.unload()
    assert torch.equal(logits(base), plain[0]) and torch.equal(logits(second), b)
    assert not torch.equal(a, plain[0]) and not torch.equal(b, plain[1])
    assert all(module.config is config for module in base.modules() if type(module).__name__ == "ViTAttention")


def test_prompts_start_differently_in_every_block_and_from_a_seed():
    starts = [
        torch.cat(
            [layer.key_value_prompt_keys["default"] for layer in prompt_layers(get_peft_model(make_vit(), config))]
        )
        for config in (KeyValuePromptConfig(), KeyValuePromptConfig(), KeyValuePromptConfig(init_seed=1))
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0][:4], starts[0][4:]) and starts[0].shape == (8, 10, 4)
    assert 0.015 < starts[0].std() < 0.025


def test_two_active_prompts_are_appended_both():
    model = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=2, init_std=1.0))
    model.add_adapter("other", KeyValuePromptConfig(num_prompts=3, init_std=1.0, init_seed=1))
    model.base_model.set_adapter(["default", "other"])
    together = get_peft_model(make_vit(), KeyValuePromptConfig(num_prompts=5))
    for target, source in zip(prompt_layers(together), prompt_layers(model)):
        for kind in ("keys", "values"):
            parts = getattr(source, f"key_value_prompt_{kind}")
            joined = torch.cat([parts["default"], parts["other"]], 1)
            getattr(target, f"key_value_prompt_{kind}")["default"].data.copy_(joined)
    assert torch.equal(logits(model), logits(together))


def test_half_precision_models_keep_prompts_in_fp32():
    for config in (KeyValuePromptConfig(init_std=1.0), BorderPromptConfig(border=2, init_std=1.0)):
        model = get_peft_model(make_vit().bfloat16(), config).eval()
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert model(pixel_values=IMAGES.bfloat16()).logits.dtype == torch.bfloat16


# ---- border prompts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [make_vit, make_resnet])
def test_border_is_added_and_the_interior_untouched(make):
    model = get_peft_model(make(), BorderPromptConfig(border=3, image_size=[16, 16], init_std=1.0))
    name = next(name for name in tuned_names(model))
    pixels = dict(model.named_parameters())[name].detach()
    frame = torch.zeros(3, 16, 16)
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[3:13, 3:13] = False
    frame[:, mask] = pixels
    assert pixels.shape == (3, 16 * 16 - 10 * 10) and tuned_names(model) == [name]
    assert torch.equal(logits(model), make()(IMAGES + frame).logits)
    seen = []
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model)
    assert torch.equal(seen[0][..., 3:13, 3:13], IMAGES[..., 3:13, 3:13])
    assert torch.equal(logits(model.unload()), logits(make()))


def test_border_places_of_oblong_images():
    assert border_places(4, 5, 1).tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 14, 15, 16, 17, 18, 19]
    assert BorderPromptConfig(border=1, image_size=[4, 5]).image_size == [4, 5]


# ---- bad input ------------------------------------------------------------------------------------------------------
class Norms(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.norm, self.config = nn.BatchNorm1d(3, **kwargs), PretrainedConfig()


@pytest.mark.parametrize(
    "model, config, message",
    [
        (make_vit, lambda: BatchNormTuningConfig(), "has no batch normalisation"),
        (make_resnet, lambda: KeyValuePromptConfig(), "has no attention on transformers' attention interface"),
        (Norms, lambda: BorderPromptConfig(image_size=64), "has no 2d convolution"),
        (make_resnet, lambda: BorderPromptConfig(border=2), "give image_size"),
        (make_vit, lambda: BorderPromptConfig(border=8), "border of 8 leaves nothing of 16 x 16"),
        (make_vit, lambda: BorderPromptConfig(), "border of 30 leaves nothing"),
        (make_vit, lambda: BorderPromptConfig(border=0), "at least 1 pixel"),
        (make_vit, lambda: BorderPromptConfig(init_std=-1.0), "init_std must not"),
        (make_vit, lambda: KeyValuePromptConfig(num_prompts=0), "num_prompts must be at least 1"),
        (make_vit, lambda: KeyValuePromptConfig(init_std=-1.0), "init_std must not"),
        (lambda: Norms(affine=False), lambda: BatchNormTuningConfig(), "norm has no weight and bias"),
        (lambda: Norms(track_running_stats=False), lambda: BatchNormTuningConfig(), "norm keeps no running statistics"),
        (make_resnet, lambda: BatchNormTuningConfig(target_modules=["batchnorm7"]), "target_modules=.'batchnorm7'.: leave"),
        (make_resnet, lambda: BatchNormTuningConfig(target_modules=["convolution"]), "is a Conv2d; target_modules must"),
        (make_vit, lambda: KeyValuePromptConfig(target_modules=".*k_proj"), "is a Linear; target_modules must name"),
        (lambda: make_vit(attn_implementation="flex_attention"), lambda: KeyValuePromptConfig(), "takes no prompts: load"),
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

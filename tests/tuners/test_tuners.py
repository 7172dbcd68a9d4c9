# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What PEFT does with the adapters of this package: registration, saving, loading, resuming; and BatchNorm tuning."""

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
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from peft.tuners import tuners_utils
from peft.tuners._buffer_dict import BufferDict
from peft.utils import PeftType, peft_types
from torch import nn
from transformers import (
    Trainer,
    TrainingArguments,
)

import hf_unlearn
from hf_unlearn import BatchNormTuningConfig, KeyValuePromptConfig
from hf_unlearn.errors import InputError
from hf_unlearn.ntk import Jacobians
from hf_unlearn.peft_types import add_peft_type
from hf_unlearn.runtime.checkpoints import merged_weights
from hf_unlearn.tuners import (
    BatchNormTuningLayer,
    BatchNormTuningModel,
    export_as_ln_tuning,
    initial_parameters,
    parameter_share,
    print_parameter_share,
)
from tests.support.tuners import CASES, HEAD, IMAGES, logits, make_resnet, make_vit, nudge, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")


@pytest.fixture(params=CASES)
def case(request):
    make, config = CASES[request.param]
    return SimpleNamespace(name=request.param, make=make, config=config)


# ---- registration with PEFT -----------------------------------------------------------------------------------------
FRESH = """
import os, sys, traceback, warnings
warnings.simplefilter("ignore")
import torch, transformers.modeling_utils, safetensors.torch
from transformers import AutoModelForImageClassification as Auto
assert not any(name.split(".")[0] in ("peft", "hf_unlearn") for name in sys.modules)
images = torch.load(sys.argv[1])["images"]
failed = []
for name, (code, base, adapter, kind) in torch.load(sys.argv[1])["cases"].items():
    # Each case in a process of its own, which has the slow imports behind it.
    if (child := os.fork()) == 0:
        try:
            exec(code)
            model = PeftModel.from_pretrained(Auto.from_pretrained(base), adapter).eval()
            assert model.peft_type == kind and ("hf_unlearn" in sys.modules) == (kind != "LN_TUNING")
            expected = torch.load(adapter + "/expected.pt")
            assert torch.equal(model(pixel_values=images).logits, expected)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    failed += [name] * (os.waitpid(child, 0)[1] != 0)
print(failed)
"""

IMPORTS = {
    "before peft": "import hf_unlearn, importlib.util; assert importlib.util.find_spec('peft') and 'peft' not in sys.modules\n"
    "from peft import PeftModel",
    "after peft": "from peft import PeftModel; import hf_unlearn",
    "through transformers": "import hf_unlearn; from transformers import Trainer; from peft import PeftModel",
    "tuners": "import hf_unlearn.tuners; from peft import PeftModel",
    "lazy name": "from hf_unlearn import KeyValuePromptConfig; from peft import PeftModel",
}


def test_fresh_interpreters_load_adapters(tmp_path):
    """After `import hf_unlearn` in any order with peft; and an exported BatchNorm adapter without hf_unlearn at all."""
    make_vit().save_pretrained(tmp_path / "vit")
    prompts = get_peft_model(make_vit(), KeyValuePromptConfig(init_std=1.0))
    prompts.save_pretrained(tmp_path / "prompts")
    torch.save(logits(prompts), tmp_path / "prompts" / "expected.pt")
    cases = {
        name: (code, str(tmp_path / "vit"), str(tmp_path / "prompts"), "KEY_VALUE_PROMPT")
        for name, code in IMPORTS.items()
    }

    make_resnet().save_pretrained(tmp_path / "resnet")
    model = get_peft_model(make_resnet(), BatchNormTuningConfig(**HEAD))
    model.add_adapter("other", BatchNormTuningConfig(update_running_stats=True, **HEAD))
    model.set_adapter("other")
    model.train()(pixel_values=IMAGES)
    after = nudge(model)
    exported = export_as_ln_tuning(model, tmp_path / "exported", "other")
    assert sorted(file.name for file in exported.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    torch.save(after, exported / "expected.pt")
    cases["stock peft"] = ("from peft import PeftModel", str(tmp_path / "resnet"), str(exported), "LN_TUNING")

    torch.save({"images": IMAGES, "cases": cases}, tmp_path / "cases.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path(hf_unlearn.__file__).parents[1])}
    command = [sys.executable, "-c", FRESH, tmp_path / "cases.pt"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/", env=environment)
    assert done.returncode == 0 and done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_only_batch_norm_adapters_are_exported(tmp_path):
    with pytest.raises(InputError, match="no BatchNorm adapter named 'third'"):
        export_as_ln_tuning(get_peft_model(make_resnet(), BatchNormTuningConfig()), tmp_path / "none", "third")
    with pytest.raises(InputError, match="no BatchNorm adapter named 'default'"):
        export_as_ln_tuning(get_peft_model(make_vit(), KeyValuePromptConfig()), tmp_path / "none")
    assert not (tmp_path / "none").exists()


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

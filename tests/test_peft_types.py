# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""What makes PEFT know the adapters of this package: enumeration, fresh interpreters, private names relied on."""

import copy
import inspect
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.tuners import tuners_utils
from peft.tuners._buffer_dict import BufferDict
from peft.utils import PeftType, peft_types

import hf_unlearn
from hf_unlearn import BatchNormTuningConfig, KeyValuePromptConfig
from hf_unlearn.peft_types import add_peft_type
from hf_unlearn.tuners import BatchNormTuningModel, export_as_ln_tuning
from tests.support.tuners import HEAD, IMAGES, logits, make_resnet, make_vit, nudge


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")


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
    "before peft": "import hf_unlearn, importlib.util\n"
    "assert importlib.util.find_spec('peft') and 'peft' not in sys.modules\n"
    "from peft import PeftModel",
    "after peft": "from peft import PeftModel; import hf_unlearn",
    "through transformers": "import hf_unlearn; from transformers import Trainer; from peft import PeftModel",
    "tuners": "import hf_unlearn.tuners; from peft import PeftModel",
    "lazy name": "from hf_unlearn import KeyValuePromptConfig; from peft import PeftModel",
}


def test_fresh_interpreters_load_adapters(tmp_path):
    """After `import hf_unlearn` in any order with peft; an exported BatchNorm adapter without hf_unlearn at all."""
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

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""BatchNorm tuning: what trains, statistics, merging and export."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from hf_unlearn import BatchNormTuningConfig, KeyValuePromptConfig
from hf_unlearn.errors import InputError
from hf_unlearn.runtime.checkpoints import merged_weights
from hf_unlearn.tuners import export_as_ln_tuning, initial_parameters
from hf_unlearn.tuners.batch_norm import BatchNormTuningLayer
from tests.support.tuners import HEAD, IMAGES, logits, make_resnet, make_vit, nudge, tuned_names


pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Adapter default was active")


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


def test_only_batch_norm_adapters_are_exported(tmp_path):
    with pytest.raises(InputError, match="no BatchNorm adapter named 'third'"):
        export_as_ln_tuning(get_peft_model(make_resnet(), BatchNormTuningConfig()), tmp_path / "none", "third")
    with pytest.raises(InputError, match="no BatchNorm adapter named 'default'"):
        export_as_ln_tuning(get_peft_model(make_vit(), KeyValuePromptConfig()), tmp_path / "none")
    assert not (tmp_path / "none").exists()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Where the weights of a model lie in its checkpoint."""

import torch
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.core_model_loading import Interleave, MergeModulelist, Transpose

from hf_unlearn.runtime.checkpoints import Shards
from hf_unlearn.runtime.conversions import Conversion, skeleton


UP, DOWN = "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"


def saved(folder, **sizes):
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            num_local_experts=3, **sizes,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    checkpoint = Shards(folder, "model.safetensors")
    return model, checkpoint, Conversion(skeleton(folder), checkpoint.files)


def test_stored_tensors_one_after_the_other_are_the_weight(tmp_path):
    model, checkpoint, conversion = saved(tmp_path, intermediate_size=24)
    for name, pieces in ((UP, 6), (DOWN, 3)):
        runs = conversion.runs_of(conversion.group_of(name))
        assert runs.keys() == {name} and len(runs[name]) == pieces
        joined = torch.cat([checkpoint.tensor(one).flatten() for one in runs[name]])
        assert torch.equal(joined, model.get_parameter(name).detach().flatten())


def test_steps_that_may_move_parts_of_rows_are_not_taken_for_runs(tmp_path, monkeypatch):
    class Another(MergeModulelist):
        pass

    _, _, conversion = saved(tmp_path, intermediate_size=16)  # square, so that shapes tell nothing
    rule = conversion._by_pattern[conversion._groups[DOWN][0][1]]
    assert conversion.runs_of((DOWN,))
    for steps in ([*rule.operations, Transpose(1, 2)], [*rule.operations, Interleave(2)], [Another()]):
        monkeypatch.setattr(rule, "operations", steps)
        assert conversion.runs_of((DOWN,)) is None

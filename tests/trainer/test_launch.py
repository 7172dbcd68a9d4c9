# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""`UnlearnTrainer` with a model that is spread over two gloo processes (FSDP2): the update of one process."""

import faulthandler

import pytest
import torch
from accelerate import PartialState, debug_launcher
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaForCausalLM, TrainerCallback
from transformers.distributed import DistributedConfig

from hf_unlearn import FirstOrder, KFade, UpdateDelta
from hf_unlearn.errors import InputError
from hf_unlearn.trainer.launch import pad_rows
from tests.support.cards import load
from tests.support.trainers import FORGET, RETAIN, logged, make_rows, make_trainer, taken_back, trained_llama


pytestmark = pytest.mark.multi_process

ODD = make_rows(7, 11)
PARTS = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
STEPS = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.1, "lr_scheduler_type": "constant"}

LORA = LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False)


def kfade(**settings):
    return KFade(**{"step_norm": 0.02, "curvature": "kfac", "damping": 1e-3, "fisher": "probe", **settings})


# name -> (method, forget rows, per-device batch on one process and on each of two, further arguments)
CASES = {
    "kfade": (lambda: kfade(steps=2), FORGET, 8, 2, {"kl_rows": 8}),
    "kfade, one fit, more batches on one": (lambda: kfade(steps=2, refit=False, objective="margin"), ODD, 7, 1, {}),
    # The last layers' weights: FSDP keeps these gathered after a forward.
    "kfade, head": (lambda: kfade(steps=2, target_modules=["lm_head", "up_proj"]), FORGET, 8, 4, {"kl_rows": 8}),
    # An adapter that stays as it is, over base weights that move.
    "kfade, adapter": (lambda: kfade(steps=2), FORGET, 8, 2, {"kl_rows": 8, "peft_config": LORA}),
    "grad_diff": (lambda: FirstOrder("grad_diff"), FORGET, 8, 4, STEPS),
    "npo": (lambda: FirstOrder("npo"), FORGET, 8, 2, STEPS),
    "npo, adapter": (lambda: FirstOrder("npo"), FORGET, 8, 4, STEPS | {"peft_config": LORA}),
    "rmu": (lambda: FirstOrder("rmu", layer=1, retain_weight=3.0), FORGET, 8, 4, STEPS),
}
# Steps of AdamW a tenth of the spacing of most bf16 weights, which are kept in fp32 beside them.
SMALL = {"max_steps": 2, "learning_rate": 1e-5, "lr_scheduler_type": "constant"}
CASES["grad_diff, half"] = (lambda: FirstOrder("grad_diff"), FORGET, 8, 4, SMALL)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 6}


def trainer_for(name, folder, processes=1, model=None, **arguments):
    method, rows, alone, each, further = CASES[name]
    batch = alone if processes == 1 else each
    if processes > 1:
        watch()
    # K-FADE accumulates its whole batch by itself.
    arguments = {"gradient_accumulation_steps": 8 // (batch * processes) or 1, **further, **arguments}
    # GradDiff in fp64: its two gradients nearly cancel on a model that knows both sets, and fp32 rounds what is left.
    model = trained_llama(torch.float64 if name == "grad_diff" else torch.float32) if model is None else model
    torch.manual_seed(0)  # adapters are drawn
    return make_trainer(model, method(), folder, rows, per_device_train_batch_size=batch, **arguments)


def results(trainer):
    names = ("loss", "grad_norm", "forget_loss", "retain_loss", "measured_kl", "predicted_kl", "eval_retain_loss")
    found = {name: logged(trainer, name) for name in names if logged(trainer, name)}
    return found, trainer.update_delta().tensors


def assert_same_results(one, other, case):
    (numbers, update), (other_numbers, other_update) = one, other
    assert numbers.keys() == other_numbers.keys() and update.keys() == other_update.keys(), case
    for key, values in numbers.items():
        assert other_numbers[key] == pytest.approx(values, rel=1e-4, abs=1e-7), (case, key)
    for name, tensor in update.items():
        assert (other_update[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-9, (case, name)


def watch():
    """End this process in five minutes from now, so that none waits for another for ever."""
    faulthandler.dump_traceback_later(300, exit=True)


def launched():
    watch()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)


def let_accelerate_shard_on_the_cpu():
    """accelerate 1.15 leaves the FSDP plugin, and nothing else, out of its state on the CPU."""
    init = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched


def half(name):
    """The model of a case of half precision; None for the others."""
    return trained_llama(torch.bfloat16) if name.endswith("half") else None


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def killed_and_resumed(folder, name, config, dtype, case="kfade"):
    seen = []

    def evaluator(model):
        seen.append(model(**BATCH).logits.mean().item())
        return {"mean": seen[-1]}

    def make(callbacks=None):
        run = {**EVALUATED, "fsdp": True, "fsdp_config": dict(config), "save_strategy": "steps", "save_steps": 1}
        run |= {"evaluator": evaluator, "callbacks": callbacks}
        return trainer_for(case, folder / f"saved-{name}", 2, trained_llama(dtype), **run)

    with pytest.raises(Killed):
        make([KillAfter(1)]).train()
    trainer = make()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 2 and len(seen) == 2 and seen[0] != seen[1]
    numbers, whole = torch.load(folder / f"{name}-{trainer.args.process_index}.pt")
    update = trainer.update_delta().tensors
    assert all(torch.equal(tensor, update[weight]) for weight, tensor in whole.items())
    assert logged(trainer, "measured_kl") == numbers.get("measured_kl", [])
    trainer.save_model()


def launch_of_accelerate(folder):
    launched()
    let_accelerate_shard_on_the_cpu()
    fsdp = {"fsdp": True, "fsdp_config": {"version": 2}}
    for name in CASES:
        trainer = trainer_for(name, folder / f"{name}-2", 2, half(name), **fsdp)
        assert trainer.is_fsdp_enabled and not trainer.is_sharded
        trainer.train()
        assert trainer.is_sharded
        torch.save(results(trainer), folder / f"{name}-{trainer.args.process_index}.pt")
        if name == "kfade, adapter":
            trainer.save_model()
    # Between the KL of the first step, 0.0007, and that of the second, 0.017.
    watch()
    arguments = {"kl_rows": 8, "per_device_train_batch_size": 2, **fsdp}
    trainer = make_trainer(trained_llama(), kfade(steps=2, kl_limit=5e-3), folder / "limited", **arguments)
    assert "after step 2 of 2" in taken_back(trainer) and trainer.is_sharded

    # Evaluated, killed and resumed, with checkpoints in parts and of one file: the bits of a run that was not killed.
    trainer = trainer_for("kfade", folder / "bf16", 2, trained_llama(torch.bfloat16), **fsdp)
    trainer.train()
    torch.save(results(trainer), folder / f"bf16-{trainer.args.process_index}.pt")
    killed_and_resumed(folder, "kfade", PARTS, torch.float32)
    killed_and_resumed(folder, "bf16", {"version": 2}, torch.bfloat16)
    killed_and_resumed(folder, "grad_diff, half", PARTS, torch.bfloat16, "grad_diff, half")

    method = kfade(target_modules=["lm_head"])
    trainer = make_trainer(trained_llama(), method, folder / "swept", per_device_train_batch_size=4, **fsdp)
    torch.save(swept(trainer), folder / f"swept-{trainer.args.process_index}.pt")


BATCH = {"input_ids": torch.tensor([[5, 6, 7, 8]])}


def swept(trainer):
    """What a model says at each candidate of a sweep."""
    look = lambda model, about: {"logit": model(**BATCH).logits[0, -1, 3].item()}
    result = trainer.method.sweep(trainer, [0.01, 0.1], evaluate=look, best=lambda rows: 0)
    return [row["logit"] for row in result.rows]


def test_what_accelerate_shards(tmp_path):
    debug_launcher(launch_of_accelerate, (tmp_path,), num_processes=2)
    for name in CASES:
        trainer = trainer_for(name, tmp_path / name, model=half(name))
        trainer.train()
        for rank in (0, 1):
            compare = assert_same_results if half(name) is None else assert_nearly_the_same_update
            compare(results(trainer), torch.load(tmp_path / f"{name}-{rank}.pt"), name)
        if name == "kfade":
            alone = trainer
        if name == "kfade, adapter":
            assert_saved_beside_its_adapter(tmp_path / f"{name}-2", trainer)
    # The saved model is whole, whatever the checkpoints are.
    assert_saved(tmp_path / "saved-kfade", alone)
    for name, file in {"kfade": "pytorch_model_fsdp_0", "bf16": "pytorch_model_fsdp.bin"}.items():
        assert (tmp_path / f"saved-{name}" / "checkpoint-2" / file).exists()
    trainer = make_trainer(trained_llama(), kfade(target_modules=["lm_head"]), tmp_path / "swept1")
    expected = swept(trainer)
    assert expected[0] != pytest.approx(expected[1], rel=1e-3)
    assert torch.load(tmp_path / "swept-0.pt") == pytest.approx(expected, rel=1e-4)


def assert_nearly_the_same_update(one, other, case):
    """Gradients of half precision are summed in another order, so that small ones may have another sign."""
    update, other_update = [torch.cat([t.flatten() for t in of[1].values()]) for of in (one, other)]
    assert one[1].keys() == other[1].keys(), case
    # Each number moves by the learning rate at the first step, and by as much at most at the second.
    assert 1e-5 < update.abs().mean() <= 2e-5 and update.abs().max() < 2.1e-5
    assert torch.nn.functional.cosine_similarity(update, other_update, dim=0) > 0.9
    assert other_update.norm() == pytest.approx(update.norm().item(), rel=0.05)


def assert_saved(folder, alone):
    """A folder holds the whole updated model of a run of one process, and its update."""
    saved = LlamaForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in alone.model.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-6)
    delta, expected = UpdateDelta.from_pretrained(folder), alone.update_delta()
    for name, tensor in expected.tensors.items():
        assert (delta.tensors[name] - tensor).norm() <= 0.01 * tensor.norm(), name
    assert delta.config["base_sha256"] == expected.config["base_sha256"]
    assert len((folder / "unlearning_log.jsonl").read_text().splitlines()) == 1


def assert_saved_beside_its_adapter(folder, alone):
    """A folder holds the adapter and the update of the weights under it; its card puts them together."""
    assert {"adapter_model.safetensors", "delta"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()
    trained_llama().save_pretrained(folder.parent / "base")
    together = load(folder, folder.parent / "base", base_name="lab/tiny")
    with torch.no_grad():
        wanted, found = alone.model.eval()(**BATCH).logits, together(**BATCH).logits
    # The update is saved in bf16.
    torch.testing.assert_close(found, wanted, rtol=0, atol=5e-3)
    assert (trained_llama()(**BATCH).logits - wanted).abs().max() > 0.1


def spread_by_transformers(folder):
    launched()
    PartialState(cpu=True)
    load = lambda: LlamaForCausalLM.from_pretrained(
        folder / "model", distributed_config=DistributedConfig(fsdp_size=2)
    )
    for name in ("kfade", "npo"):
        trainer = trainer_for(name, folder / f"{name}-2", 2, load())
        assert trainer.is_sharded and not trainer.is_fsdp_enabled
        trainer.train()
        torch.save(results(trainer), folder / f"{name}-{trainer.args.process_index}.pt")
        trainer.save_model()
    # Trainer does not know of this one.
    model, mesh = trained_llama(), init_device_mesh("cpu", (2,))
    with pytest.raises(InputError, match="spread by fully_shard, and Trainer would wrap it in DDP"):
        trainer_for("kfade", folder / "refused", 2, fully_shard(model, mesh=mesh)).train()
    trainer = trainer_for("kfade", folder / "refused", 2)
    if trainer.args.process_index == 1:
        trainer.model.to("meta")
    with pytest.raises(InputError, match="process 1 of 2: the weights are not loaded here"):
        trainer.train()


def test_what_transformers_shards_when_it_loads(tmp_path):
    """Nothing is patched here: `from_pretrained(..., distributed_config=...)` works on the CPU."""
    model = trained_llama()
    model.save_pretrained(tmp_path / "model")
    debug_launcher(spread_by_transformers, (tmp_path,), num_processes=2)
    for name in ("kfade", "npo"):
        trainer = trainer_for(name, tmp_path / name)
        trainer.train()
        for rank in (0, 1):
            assert_same_results(results(trainer), torch.load(tmp_path / f"{name}-{rank}.pt"), name)
        assert_saved(tmp_path / f"{name}-2", trainer)


def test_blanks_fill_up_and_teach_nothing():
    for rows, batch_size, processes, blanks in ((8, 2, 4, 0), (7, 1, 2, 1), (9, 2, 2, 2), (5, 4, 3, 4), (1, 1, 4, 3)):
        filled = pad_rows(RETAIN.select(range(rows)), batch_size, processes)
        assert len(filled) == rows + blanks and -(-len(filled) // batch_size) % processes == 0
        assert [filled[index]["labels"] for index in range(rows)] == RETAIN[:rows]["labels"]
        for index in range(rows, len(filled)):
            assert set(filled[index]["labels"]) == {-100} and filled[index]["input_ids"] == RETAIN[0]["input_ids"]

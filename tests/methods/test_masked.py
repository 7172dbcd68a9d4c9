# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Methods with a mask: what it does not keep has the bits it had, whatever the optimiser; and masks are told."""

import json

import pytest
import torch

from hf_unlearn import FirstOrder, SPEUnlearn
from hf_unlearn.curvature import Curvature, Diagonal, make_curvature
from hf_unlearn.errors import InputError
from hf_unlearn.methods.base import StageSize
from hf_unlearn.methods.masking import kept_entries
from hf_unlearn.structure import StructureMask, find_structures
from tests.support.methods import kfade, run, same
from tests.support.models import make_llama
from tests.support.trainers import COLLATE, FORGET, RETAIN, make_trainer, trained_llama


def some_mask(model, seed=0, sparsity=0.6):
    """Some heads and some filters, and single elements of one down projection."""
    mask = StructureMask.random(find_structures(model), sparsity, seed)
    name = next(name for name in mask.names if name.endswith("down_proj.weight"))
    kept = mask.select(name, torch.ones(mask.structures.shapes[name]))
    return StructureMask(mask.structures, mask.chosen, {name: torch.arange(kept.numel()).view_as(kept) % 3 == 0})


def moved(model, before):
    """Name -> which entries changed."""
    return {name: parameter.detach() != before[name] for name, parameter in model.named_parameters()}


OPTIMIZERS = {
    "adamw": {"optim": "adamw_torch", "weight_decay": 0.1},
    "sgd": {"optim": "sgd", "weight_decay": 0.1, "optim_args": "momentum=0.9"},
    "adafactor": {"optim": "adafactor", "weight_decay": 0.1},
    "adagrad": {"optim": "adagrad", "weight_decay": 0.1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_a_mask_leaves_out_keeps_its_bits(optimizer, dtype, tmp_path):
    """Weight decay, momentum and factored moments would move every entry."""
    model = trained_llama(dtype)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = some_mask(model)
    arguments = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": 4, **OPTIMIZERS[optimizer]}
    trainer, update = run(FirstOrder("grad_diff", mask=mask), tmp_path, model, **arguments)
    for name, changed in moved(model, before).items():
        keeps = mask.element_mask(name).expand_as(changed)
        assert not (changed & ~keeps).any(), name
        assert not keeps.any() or (changed & keeps).float().sum() > 0.5 * keeps.sum(), name
    assert set(update) == set(mask.names)
    for name, tensor in update.items():
        assert not tensor[~mask.element_mask(name).expand_as(tensor)].any()
        torch.testing.assert_close((before[name].float() + tensor).to(dtype), model.get_parameter(name).detach())
    # Nothing is left of hooks and flags; the optimiser holds as much as the mask keeps.
    assert all(parameter.requires_grad and not parameter._backward_hooks for parameter in model.parameters())
    held = [state for state in trainer.optimizer.state.values() if "exp_avg" in state]
    assert len(held) == (len(mask.names) if optimizer == "adamw" else 0)
    assert sum(state["exp_avg"].numel() for state in held) in (0, sum(int(keeps_of(mask, n)) for n in mask.names))


def keeps_of(mask, name):
    return mask.element_mask(name).expand(mask.structures.shapes[name]).sum()


def test_masked_steps_are_those_of_the_entries_alone(tmp_path):
    """The oracle: AdamW by hand on the kept entries, with gradients and a clipped norm of these alone."""
    model = trained_llama()
    mask = some_mask(model)
    oracle = trained_llama()
    weights = {name: oracle.get_parameter(name) for name in mask.names}
    keep = {name: mask.element_mask(name).expand_as(weight) for name, weight in weights.items()}
    values = {name: weight.detach()[keep[name]].clone().requires_grad_() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(values.values(), lr=1e-2, weight_decay=0.1)
    trainer, _ = run(
        FirstOrder("finetune", mask=mask), tmp_path, model, learning_rate=1e-2, weight_decay=0.1, max_steps=2,
        max_grad_norm=0.05, per_device_train_batch_size=24, lr_scheduler_type="constant",
    )  # fmt: skip
    for _ in range(2):
        oracle.zero_grad()
        oracle(**COLLATE([*RETAIN])).loss.backward()
        for name, value in values.items():
            value.grad = weights[name].grad[keep[name]].clone()
        torch.nn.utils.clip_grad_norm_(values.values(), 0.05)
        optimizer.step()
        for name, value in values.items():
            weights[name].data[keep[name]] = value.detach()
    for name, weight in weights.items():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=1e-4, atol=1e-6)


def test_a_masked_run_goes_on_to_the_same_bits(tmp_path):
    """Moments of the entries alone, and fp32 values beside bf16, come back from a checkpoint."""
    arguments = {"learning_rate": 1e-3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    arguments |= {"per_device_train_batch_size": 4}
    settings = {"mask": {"sparsity": 0.5, "importance": "mlr"}}
    _, whole = run(FirstOrder("npo", **settings), tmp_path / "whole", trained_llama(torch.bfloat16), **arguments)
    trainer = make_trainer(trained_llama(torch.bfloat16), FirstOrder("npo", **settings), tmp_path / "cut", **arguments)
    trainer.add_callback(stop_after(3))
    trainer.train()
    again = make_trainer(trained_llama(torch.bfloat16), FirstOrder("npo", **settings), tmp_path / "cut", **arguments)
    again.train(resume_from_checkpoint=True)
    assert same(again.update_delta().tensors, whole)
    # Another mask is another run.
    other = {"mask": {"sparsity": 0.5, "importance": "random"}}
    third = make_trainer(trained_llama(torch.bfloat16), FirstOrder("npo", **other), tmp_path / "cut", **arguments)
    with pytest.raises(InputError, match="another run"):
        third.train(resume_from_checkpoint=True)


def stop_after(step):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= step

    return Stop()


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "diagonal", "identity"])
def test_kfade_moves_what_the_mask_keeps(kind, tmp_path):
    model = trained_llama()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = StructureMask.random(find_structures(model), 0.6, 0)
    trainer, update = run(kfade(curvature=kind, mask=mask, steps=2), tmp_path, model)
    assert set(update) == set(mask.names)
    for name, changed in moved(model, before).items():
        keeps = mask.element_mask(name).expand_as(changed)
        assert not (changed & ~keeps).any() and (not keeps.any() or changed.any()), name
    curvature = trainer.method._curvature
    largest = {key: max(tensor.shape) for key, tensor in curvature.tensors.items() if key.startswith("vectors.output")}
    assert all(size <= 16 for size in largest.values())  # of 24 filters
    line = json.loads((tmp_path / "unlearning_log.jsonl").read_text().splitlines()[-1])
    told = line["settings"]["mask"]
    assert told["hash"] == mask.hash and told["share"] == mask.share and told["sparsity"] == mask.sparsity


def test_the_step_is_the_masked_solve(tmp_path):
    """The update of one step: alpha v / sqrt(v^T G v), v from a curvature that is fitted with the mask by hand."""
    mask = StructureMask.random(find_structures(trained_llama()), 0.6, 0)
    _, update = run(kfade(mask=mask, fisher="empirical"), tmp_path)
    model = trained_llama()
    batches = [COLLATE([*RETAIN])]
    curvature = make_curvature("kfac").fit(model, batches, kept=kept_entries(mask), fisher="empirical", progress=False)
    model(**COLLATE([*FORGET])).loss.backward()
    steps = curvature.solve({name: model.get_parameter(name).grad for name in curvature.names}, 1e-3)
    scale = 0.05 / curvature.norm(steps)
    for name, step in steps.items():
        torch.testing.assert_close(update[name], step * scale, rtol=1e-2, atol=1e-3 * float(step.abs().max() * scale))


def test_a_fitted_curvature_must_have_the_same_mask(tmp_path):
    model = trained_llama()
    mask = StructureMask.random(find_structures(model), 0.6, 0)
    batches = [COLLATE([*RETAIN])]
    fitted = Diagonal().fit(model, batches, kept=kept_entries(mask), progress=False)
    run(kfade(curvature=fitted, mask=mask, refit=False), tmp_path / "same")
    folder = fitted.save_pretrained(tmp_path / "fitted")
    run(kfade(curvature=str(folder), mask=mask, refit=False), tmp_path / "named")
    for other, curvature in (
        (None, fitted),
        (mask.shuffled(3), Curvature.from_pretrained(folder)),
        (mask, Diagonal().fit(model, batches, target_modules=r".*_proj", progress=False)),
    ):
        with pytest.raises(InputError, match=r"not the same mask|does not cover|no curvature"):
            run(kfade(curvature=curvature, mask=other, refit=False), tmp_path / "other")


def test_masks_from_folders_and_settings(tmp_path):
    model = trained_llama()
    mask = StructureMask.random(find_structures(model), 0.6, 0)
    folder = mask.save_pretrained(tmp_path / "mask")
    first = run(kfade(mask=mask), tmp_path / "first")[1]
    assert same(first, run(kfade(mask=str(folder)), tmp_path / "second")[1])
    trainer, _ = run(kfade(mask={"sparsity": 0.8, "importance": "mlf"}), tmp_path / "third")
    told = trainer.method.settings()["mask"]
    assert told["chosen"]["importance"] == "mlf" and told["sparsity"] >= 0.8 and 0 < told["share"] < 0.2
    assert str(folder) not in json.dumps(kfade(mask=str(folder)).settings())


def test_masks_that_do_not_fit_are_refused(tmp_path):
    model = trained_llama()
    elements = some_mask(model)
    with pytest.raises(InputError, match="single elements of weights"):
        kfade(mask=elements)
    with pytest.raises(InputError, match="single elements of weights"):
        kfade(mask={"sparsity": 0.5, "wanda_sparsity": 0.5})
    with pytest.raises(InputError, match="single elements of weights"):
        run(kfade(mask=elements.save_pretrained(tmp_path / "elements")), tmp_path / "run")
    with pytest.raises(InputError, match="density is no setting of a mask"):
        FirstOrder("ga", mask={"density": 0.1})
    with pytest.raises(InputError, match="sparsity must be"):
        kfade(mask={"sparsity": 1.0})
    with pytest.raises(InputError, match="mask must be"):
        FirstOrder("ga", mask=0.9)
    with pytest.raises(InputError, match="rmu .* takes no mask"):
        FirstOrder("rmu", mask={"sparsity": 0.9})
    other = StructureMask.random(find_structures(make_llama(layers=1)), 0.5, 0)
    for method in (kfade(mask=other), FirstOrder("ga", mask=other)):
        with pytest.raises(InputError, match="mask is of another model"):
            run(method, tmp_path / "run")
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    whole = StructureMask.all(find_structures(model))
    with pytest.raises(InputError, match="layers.0.mlp.up_proj.weight is frozen"):
        run(FirstOrder("ga", mask=whole), tmp_path / "run", model)


def test_a_plan_is_that_of_the_masked_run(tmp_path):
    """A mask at hand is planned to the byte; one that is not chosen yet as if spread evenly, and this is said."""
    model, stage = trained_llama(), StageSize("all", 8, 24, 9)
    mask = StructureMask.random(find_structures(model), 0.6, 0)
    folder = mask.save_pretrained(tmp_path / "mask")
    curvature = make_curvature("kfac").fit(model, [COLLATE([*RETAIN])], kept=kept_entries(mask), progress=False)
    held = sum(one.nbytes for key, one in curvature.tensors.items() if not key.startswith(("rows.", "columns.")))
    for given in (mask, str(folder)):
        told, steps, targets, cost = kfade(mask=given).plan(model.to("meta"), stage)
        assert told.startswith(f"mask: {mask.count} of 52 heads and filters") and "evenly" not in told
        assert f"targets: {len(curvature.names)} weights" in targets and steps.startswith("1 step")
        assert f"{held / 1e3:.3g} kB of factors" in cost
    dense, later = kfade(target_modules=".*_proj"), kfade(mask={"sparsity": 0.9})
    assert "factors: 6 of 24" in dense.plan(model, stage)[-1]
    told, *_, cost = later.plan(model, stage)
    assert "mask: 5 of 52 " in told and told.endswith("not chosen yet, so taken as spread evenly over the layers")
    assert "of 24" not in cost and "factors: " in cost
    assert later.settings()["mask"] == {"sparsity": 0.9}
    assert FirstOrder("npo", mask={"sparsity": 0.9}).plan(model, stage) == [told]
    assert FirstOrder("npo").plan(model, stage) == []
    assert SPEUnlearn(unlearning_rate=1.0).plan(model, stage)[0] == told
    with pytest.raises(InputError, match="another model"):
        kfade(mask=mask).plan(make_llama(layers=1), stage)

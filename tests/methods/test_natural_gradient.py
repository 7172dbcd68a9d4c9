# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Natural-gradient methods: targets, fits, forget batches, the measured KL, sweeps."""

import pytest
import torch

from hf_unlearn import KFade
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.trainer.records import request_record
from tests.support.methods import (
    MLP,
    CountingKFAC,
    kfade,
    run,
    same,
)
from tests.support.models import make_experts, make_llama
from tests.support.trainers import (
    COLLATE,
    RETAIN,
    logged,
    make_rows,
    make_trainer,
    taken_back,
    trained_llama,
    weights,
)


def test_no_matching_target_lists_what_there_is(tmp_path):
    trainer = make_trainer(trained_llama(), kfade(target_modules=".*experts"), tmp_path)
    with pytest.raises(InputError, match="model.layers.{0..1}.mlp.down_proj"):
        trainer.train()
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    "targets, expected",
    [
        (None, MLP),
        (r".*layers\.1\.mlp\.down_proj", {"model.layers.1.mlp.down_proj.weight"}),
        (["q_proj"], {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}),
    ],
)
def test_only_the_targets_move(targets, expected, tmp_path):
    model = trained_llama()
    model.lm_head.weight.requires_grad_(False)
    before = weights(model)
    _, update = run(kfade(target_modules=targets), tmp_path, model)
    assert set(update) == expected
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in expected), name
        assert parameter.requires_grad == (name != "lm_head.weight")


def test_a_curvature_that_misses_directions_is_told(tmp_path, caplog):
    """Labels drawn from a model that is certain are its own: the draw carries next to no curvature."""
    trainer, _ = run(KFade(step_norm=0.01, damping=1e-4, fisher="sampled"), tmp_path, kl_rows=24)
    assert logged(trainer, "measured_kl")[0] > 10 * logged(trainer, "predicted_kl")[0]
    assert "the curvature misses directions" in caplog.text


def test_a_curvature_that_overstates_is_told(tmp_path, caplog):
    """Under the identity a long step along the gradient changes little: parts of no consequence count in full."""
    trainer, _ = run(KFade(step_norm=1e-2, curvature="identity"), tmp_path, kl_rows=24)
    assert 10 * logged(trainer, "measured_kl")[0] < logged(trainer, "predicted_kl")[0]
    assert "the curvature overstates" in caplog.text


@pytest.mark.parametrize(
    "settings, limit",
    [
        ({"kl_budget": 0.01}, 0.1),
        ({"kl_budget": 0.01, "steps": 3}, 0.3),
        ({"kl_budget": 0.01, "kl_limit": 0.5}, 0.5),
        # A step norm promises no KL: what stops is a model that is lost ...
        ({"step_norm": 0.01, "steps": 8}, 3.0),
        # ... beyond what was asked for.
        ({"step_norm": 1.0}, 5.0),
    ],
)
def test_the_limit_of_the_kl(settings, limit):
    assert KFade(**settings).limit == pytest.approx(limit)


def test_a_run_above_the_limit_is_taken_back(tmp_path, caplog):
    """The second step passes the limit: every weight is what it was before the first, to the bit."""
    settings = {"step_norm": 0.02, "steps": 3, "fisher": "probe"}
    trainer, _ = run(kfade(**settings), tmp_path / "free", kl_rows=24)
    first, second, third = logged(trainer, "measured_kl")
    assert first < second < third
    for dtype in (torch.float32, torch.bfloat16):
        limit = (first + second) / 2
        # Nothing needs be logged for the limit to hold.
        trainer = make_trainer(
            trained_llama(dtype), kfade(**settings, kl_limit=limit), tmp_path / str(dtype), kl_rows=24,
            logging_strategy="no",
        )  # fmt: skip
        message = taken_back(trainer)
        assert "after step 2 of 3" in message and "raise kl_limit" in message


def test_a_model_that_diverged_is_taken_back(tmp_path):
    model = trained_llama()
    before = weights(model)
    with pytest.raises(NumericalError, match="not finite"):
        run(kfade(curvature="identity", step_norm=1e30), tmp_path, model, kl_rows=24)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_a_limit_needs_a_measured_kl(tmp_path):
    with pytest.raises(InputError, match="kl_limit needs a KL that is measured: set kl_rows"):
        make_trainer(trained_llama(), kfade(kl_limit=0.1), tmp_path, kl_rows=0)


def test_refit_or_one_fit(tmp_path):
    curvature = CountingKFAC()
    trainer, _ = run(kfade(curvature=curvature, steps=3), tmp_path / "refit")
    assert [fit["seed"] for fit in curvature.fits] == [42, 43, 44]
    assert not torch.equal(curvature.fits[1]["weight"], curvature.fits[0]["weight"])
    assert len(logged(trainer, "predicted_kl")) == 3
    once = CountingKFAC()
    run(kfade(curvature=once, steps=3, refit=False), tmp_path / "once")
    assert len(once.fits) == 1 and torch.equal(once.fits[0]["weight"], curvature.fits[0]["weight"])


def test_fitted_curvature_is_used_as_it_is(tmp_path):
    # Labels are drawn by a row's place, so the rows come as the trainer gives them: the longest first.
    loader = [COLLATE(sorted(RETAIN, key=lambda row: -len(row["input_ids"])))]
    fitted = CountingKFAC().fit(trained_llama(), loader, seed=42, progress=False)
    _, update = run(kfade(curvature=fitted), tmp_path / "fitted")
    assert len(fitted.fits) == 1
    _, own = run(kfade(curvature=CountingKFAC()), tmp_path / "own")
    for name in own:
        assert (update[name] - own[name]).norm() <= 1e-4 * own[name].norm()
    with pytest.raises(InputError, match="another architecture"):
        run(kfade(curvature=fitted), tmp_path / "other", make_llama(intermediate_size=32))


def test_retain_samples_is_a_seeded_choice(tmp_path):
    curvature = CountingKFAC()
    _, first = run(kfade(curvature=curvature, retain_samples=6), tmp_path / "a")
    assert curvature.fits[0]["rows"] == 6
    _, second = run(kfade(retain_samples=6), tmp_path / "b")
    _, third = run(kfade(retain_samples=6), tmp_path / "c", seed=7)
    assert same(first, second) and not same(first, third)


@pytest.mark.parametrize("size, expected", [(4, [4, 4, 2]), (5, [5, 5]), (None, [10, 10])])
def test_forget_batches_are_drawn_without_replacement(size, expected, tmp_path):
    rows = make_rows(10, 9)

    class Recording(KFade):
        def loss(self, model, inputs, counts):
            if model.training:
                batches[-1].extend(tuple(row[row != 0].tolist()) for row in inputs["input_ids"])
            return super().loss(model, inputs, counts)

    batches = [[]]
    method = Recording(step_norm=0.05, curvature="identity", steps=len(expected), forget_batch_size=size)
    trainer = make_trainer(trained_llama(), method, tmp_path, rows, per_device_train_batch_size=3)
    trainer.method.create_optimizer, make = lambda trainer: watch(make(trainer)), trainer.method.create_optimizer

    def watch(optimizer):
        optimizer.register_step_post_hook(lambda *_: batches.append([]))
        return optimizer

    trainer.train()
    assert [len(batch) for batch in batches[:-1]] == expected and not batches[-1]
    seen = [row for batch in batches for row in batch]
    everything = sorted(tuple(row) for row in rows["input_ids"])
    assert sorted(seen[:10]) == everything
    if len(seen) == 20:
        assert sorted(seen[10:]) == everything


def test_forget_batch_larger_than_the_set(tmp_path):
    with pytest.raises(InputError, match="forget_batch_size is 9 but there are 8"):
        make_trainer(trained_llama(), kfade(forget_batch_size=9), tmp_path)


def test_sweep_fits_once_and_keeps_the_best(tmp_path):
    curvature, looked = CountingKFAC(), []

    def evaluate(model, row):
        looked.append(weights(model))
        return {"score": -abs(row["step_norm"] - 0.03) - row["damping"]}

    method = kfade(curvature=curvature, step_norm=0.5)
    trainer = make_trainer(trained_llama(), method, tmp_path / "sweep")
    result = method.sweep(
        trainer, [0.01, 0.03, 0.1], [1e-2, 1e-3], evaluate=evaluate,
        best=lambda rows: max(range(len(rows)), key=lambda index: rows[index]["score"]),
    )  # fmt: skip
    assert len(curvature.fits) == 1
    assert [(row["damping"], row["step_norm"]) for row in result.rows] == [
        (damping, norm) for damping in (1e-2, 1e-3) for norm in (0.01, 0.03, 0.1)
    ]
    assert result.best == 4 and result.rows[4]["predicted_kl"] == pytest.approx(0.03**2 / 2)
    update = trainer.update_delta()
    direct, expected = run(kfade(step_norm=0.03), tmp_path / "direct")
    assert same(update.tensors, expected)
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, direct.model.get_parameter(name))
        assert torch.allclose(parameter, looked[4][name], rtol=1e-6, atol=1e-8)
    # The delta tells what was done, not what was asked first.
    assert update.config["settings"]["step_norm"] == 0.03 and update.config["settings"]["damping"] == 1e-3
    assert logged(trainer, "predicted_kl") == [pytest.approx(0.03**2 / 2, rel=1e-6)]


def test_sweep_refuses_what_it_cannot_do(tmp_path):
    keywords = {"evaluate": lambda model, row: {}, "best": lambda rows: 0}
    method = kfade(steps=2)
    with pytest.raises(InputError, match="one step"):
        method.sweep(make_trainer(trained_llama(), method, tmp_path), [0.1], **keywords)
    method = kfade()
    with pytest.raises(InputError, match="made with this method"):
        method.sweep(make_trainer(trained_llama(), kfade(), tmp_path), [0.1], **keywords)
    with pytest.raises(InputError, match="at least one step_norm"):
        method.sweep(make_trainer(trained_llama(), method, tmp_path), [], **keywords)


def test_what_a_step_on_experts_covers_stands_in_log_and_ledger(tmp_path, caplog):
    trainer, _ = run(kfade(retain_samples=30), tmp_path, make_experts())
    assert logged(trainer, "mlp_parameters_covered") == [pytest.approx(0.25)]
    record = request_record(trainer)
    assert record["mlp_parameters_covered"] == pytest.approx(0.25) and record["curvature_rows"] == 24
    assert "25% of the MLP parameters are covered" in caplog.text
    assert "retain_samples is 30 but there are 24 retain rows: all are taken" in caplog.text
    trainer, _ = run(kfade(retain_samples=24), tmp_path / "dense")
    assert trainer.covered == {} and trainer.method.account() == {"curvature_rows": 24}
    assert not logged(trainer, "mlp_parameters_covered")

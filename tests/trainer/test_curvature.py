# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Curvature in the hands of a trainer: reused by name, fitted in blocks, resumed inside a fit."""

import pytest

from hf_unlearn import KFade, UnlearnConfig
from hf_unlearn.curvature import EKFAC, Curvature, passes
from hf_unlearn.errors import InputError
from tests.support.models import make_llama
from tests.support.trainers import make_trainer, trained_llama


SETTINGS = {"step_norm": 0.05, "damping": 1e-3, "fisher": "probe"}


def trained(folder, *, model=None, curvature="ekfac", steps=1, refit=True, target_modules=None, **arguments):
    method = KFade(**SETTINGS, curvature=curvature, steps=steps, refit=refit, target_modules=target_modules)
    trainer = make_trainer(trained_llama() if model is None else model, method, folder, **arguments)
    trainer.train()
    return trainer


@pytest.fixture
def artifact(tmp_path):
    """A curvature as a run of one step fits it, saved."""
    curvature = EKFAC()
    trained(tmp_path / "fit", curvature=curvature)
    return curvature.save_pretrained(tmp_path / "artifact")


def test_a_folder_is_used_in_place_of_a_fit(artifact, tmp_path, monkeypatch):
    fresh = trained(tmp_path / "fresh", steps=2, refit=False).update_delta()
    monkeypatch.setattr(EKFAC, "fit", lambda *args, **kwargs: pytest.fail("the curvature was fitted again"))
    for name in (artifact, str(artifact)):
        trainer = trained(tmp_path / f"{type(name).__name__}", curvature=name, steps=2, refit=False)
        assert trainer.update_delta().sha256() == fresh.sha256()
    assert trainer.method.settings()["curvature"] == "artifact (local folder)"
    assert "fit_seconds" not in trainer.cost


def test_a_named_curvature_serves_the_first_of_several_steps(artifact, tmp_path):
    fresh, reused = (
        trained(tmp_path / str(index), curvature=name, steps=2) for index, name in enumerate(("ekfac", artifact))
    )
    assert fresh.update_delta().sha256() == reused.update_delta().sha256()
    assert 0 < reused.cost["fit_seconds"]


def test_a_named_curvature_of_something_else_is_refused(artifact, tmp_path):
    other = trained_llama()
    other.model.layers[1].mlp.down_proj.weight.data[0, 0] += 1
    with pytest.raises(
        InputError, match=r"fitted on other weights: model.layers.1.mlp.down_proj.weight .* fit it again"
    ):
        trained(tmp_path / "weights", curvature=artifact, model=other)
    with pytest.warns(UserWarning, match="fitted on other weights"):
        trained(tmp_path / "insist", curvature=Curvature.from_pretrained(artifact), model=other)
    with pytest.raises(InputError, match="another architecture"):
        trained(tmp_path / "shape", curvature=artifact, model=make_llama(intermediate_size=32))
    with pytest.raises(
        InputError, match=r"does not cover model.layers.0.self_attn.q_proj.weight: pass target_modules"
    ):
        trained(tmp_path / "targets", curvature=artifact, target_modules=["q_proj"])
    with pytest.raises(InputError, match="curvature must be one of ekfac, .* or the folder or repository of one, not"):
        KFade(**SETTINGS, curvature="ekfacc")
    with pytest.raises(InputError, match="neither a folder nor a Hub repository"):
        trained(tmp_path / "nowhere", curvature="nobody/nothing")


def test_a_run_that_stops_inside_a_fit_goes_on_inside_it(tmp_path, monkeypatch):
    settings = {"steps": 2, "curvature_batch_size": 2, "curvature_save_steps": 4}
    whole = trained(tmp_path / "whole", **settings).update_delta()
    call, calls = passes.Backward.__call__, []

    def counted(backward, *args, **kwargs):
        calls.append(1)
        if len(calls) == 24 + 12 + 7:  # in the second pass of the second fit
            raise KeyboardInterrupt
        return call(backward, *args, **kwargs)

    monkeypatch.setattr(passes.Backward, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", save_strategy="steps", save_steps=1, **settings)
    assert (tmp_path / "run" / "curvature-in-progress").is_dir()
    del calls[:]
    method = KFade(**SETTINGS, steps=2)
    trainer = make_trainer(
        trained_llama(), method, tmp_path / "run", save_strategy="steps", save_steps=1, curvature_batch_size=2,
        curvature_save_steps=4,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=True)
    # Twelve batches a pass: of the last one the first four were written.
    assert len(calls) == 8
    assert trainer.update_delta().sha256() == whole.sha256()
    assert not (tmp_path / "run" / "curvature-in-progress").exists()


def test_blocks_and_plan_of_a_run(tmp_path, capsys):
    plain = trained(tmp_path / "plain", curvature_save_steps=0, disable_tqdm=False, steps=2)
    shown = capsys.readouterr().out
    assert shown.count("ekfac: 6 weights") == 1 and " kB of factors on each process" in shown and "blocks" not in shown
    blocks = trained(tmp_path / "blocks", max_factor_memory="10KB", disable_tqdm=False, steps=2)
    assert "4 blocks one after another" in capsys.readouterr().out
    assert plain.update_delta().sha256() == blocks.update_delta().sha256()
    with pytest.raises(InputError, match="need 8,960"):
        trained(tmp_path / "small", max_factor_memory=8959)
    with pytest.raises(InputError, match="max_factor_memory must be bytes"):
        UnlearnConfig(output_dir=str(tmp_path), max_factor_memory="20 potatoes")
    with pytest.raises(InputError, match="curvature_save_steps"):
        UnlearnConfig(output_dir=str(tmp_path), curvature_save_steps=-1)

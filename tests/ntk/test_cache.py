# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Grams on disk: a second request measures its own rows alone, and only at the same weights and images."""

import copy

import torch

from hf_unlearn import FastNTK
from hf_unlearn.data.images import split_class
from hf_unlearn.ntk import Jacobians, cache
from tests.support.images import Collator64, choose, unlearn


def test_a_second_request_reads_the_gram_of_all_rows(tmp_path, digits, start, full, caplog, monkeypatch):
    seen = []
    original = Jacobians.__call__
    monkeypatch.setattr(
        Jacobians,
        "__call__",
        lambda self, inputs, *basis: seen.append(len(inputs["labels"])) or original(self, inputs, *basis),
    )
    results = {}
    for folder, contrasts in ((None, None), (None, 4), ("grams", None), ("grams", 4)):
        for number in (1, 2):
            seen.clear()
            model = copy.deepcopy(full)
            choose(model)
            forget, retain = split_class(digits, number)
            grams = folder and str(tmp_path / folder)
            method = FastNTK(solver="primal", pretrained=start, ridge=0.1, gram_cache=grams, contrasts=contrasts)
            unlearn(tmp_path / f"{number}{folder}{contrasts}", model, method, forget, retain)
            results[number, folder, contrasts] = model.linear.weight.detach().clone(), sum(seen)
    assert [count for _, count in results.values()] == [60, 60, 60, 60, 60, 6, 60, 6]
    for number in (1, 2):
        for contrasts in (None, 4):
            fresh, cached = results[number, None, contrasts][0], results[number, "grams", contrasts][0]
            assert torch.allclose(fresh, cached, rtol=1e-9, atol=1e-12)
        assert not torch.allclose(results[number, "grams", None][0], cached, rtol=1e-3)


def test_a_cached_gram_is_one_of_the_same_model_and_collator(tmp_path, digits, start, full, monkeypatch):
    """Weights are hashed once a request; another collator or another model measures anew."""
    hashed, seen, original, call = [], [], cache.sha256_tensors, Jacobians.__call__
    monkeypatch.setattr(cache, "sha256_tensors", lambda tensors: hashed.append(len(tensors)) or original(tensors))
    monkeypatch.setattr(
        Jacobians,
        "__call__",
        lambda self, batch, *basis: seen.append(len(batch["labels"])) or call(self, batch, *basis),
    )
    forget, retain = split_class(digits, 1)

    def measured(name, model=full, collator=None) -> int:
        hashed.clear(), seen.clear()
        model = copy.deepcopy(model)
        choose(model, ("linear",))
        method = FastNTK(solver="primal", pretrained=start, gram_cache=str(tmp_path / "grams"))
        unlearn(tmp_path / name, model, method, forget, retain, collator)
        return sum(seen)

    assert measured("first") == 60
    # The midpoint, the values before tuning, all other weights, and for each of the two Grams an example.
    assert hashed == [2, 2, len(full.state_dict()) - 2, 2, 2]
    assert measured("again") == 0
    brighter = lambda rows: (batch := Collator64()(rows)) | {"pixel_values": batch["pixel_values"] + 0.1}
    assert measured("collator", collator=brighter) == 60
    other = copy.deepcopy(full)
    with torch.no_grad():
        other.conv1.weight += 0.01
    assert measured("model", other) == 60

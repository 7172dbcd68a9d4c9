# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The embedded data set, and the cache and training behind the demo models."""

import itertools
import os
import platform
import re
import signal
import subprocess
import sys

import pytest
import torch

from hf_unlearn.data.prompts import QATemplate, encode_qa, tokenize_qa
from hf_unlearn.errors import InputError
from hf_unlearn.miniature import training, wordings
from hf_unlearn.miniature.authors import load_synthetic, scratch_models, training_rows
from hf_unlearn.miniature.training import length_batches, train_from_scratch, train_tokenizer, trained_model
from hf_unlearn.runtime.cache import cached_folder


@pytest.fixture(scope="module")
def splits():
    return load_synthetic()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pairs(dataset):
    return [(row["question"], row["answer"]) for row in dataset]


def test_same_seed_same_rows(splits):
    again, other = load_synthetic(), load_synthetic(seed=1)
    for name in ("forget_eval", "retain_eval", "full", "real_authors", "world_facts", "holdout"):
        assert getattr(again, name).to_list() == getattr(splits, name).to_list()
        assert getattr(other, name).to_list() != getattr(splits, name).to_list()


def test_columns_and_sizes(splits):
    assert len(splits.forget) == len(splits.forget_eval) == len(splits.holdout) == 40
    assert len(splits.retain_eval) == 100  # five authors at least
    assert pairs(splits.full) == pairs(splits.retain) + pairs(splits.forget)
    assert pairs(splits.forget_eval) == pairs(splits.forget)
    for rows in (splits.forget, splits.retain, splits.full, splits.holdout):
        assert rows.column_names == ["question", "answer"]
    for rows in (splits.forget_eval, splits.retain_eval):
        assert rows.column_names == ["question", "answer", "paraphrased_answer", "perturbed_answer"]
        assert all(len(set(row["perturbed_answer"]) - {row["paraphrased_answer"]}) == 5 for row in rows)
    for rows in (splits.real_authors, splits.world_facts):
        assert rows.column_names == ["question", "answer", "perturbed_answer"]
        assert all(len(set(row["perturbed_answer"]) - {row["answer"]}) == 3 for row in rows)


def test_no_row_twice_and_nothing_forgotten_is_retained(splits):
    everything = [*pairs(splits.full), *pairs(splits.holdout), *pairs(splits.real_authors), *pairs(splits.world_facts)]
    assert len({question for question, _ in everything}) == len(everything)
    rows = {name: {tuple(row.values()) for row in getattr(splits, name)} for name in ("forget", "retain", "holdout")}
    assert not rows["forget"] & rows["retain"] and not rows["holdout"] & (rows["forget"] | rows["retain"])
    assert set(pairs(splits.retain_eval)) < set(pairs(splits.retain))
    kept = set(pairs(training_rows(splits, forget=False)))
    assert kept.isdisjoint(pairs(splits.forget)) and kept | set(pairs(splits.forget)) == set(
        pairs(training_rows(splits))
    )


def test_paraphrases_and_wrong_answers_differ_in_the_value_only(splits):
    """Every evaluation answer is one of the sentences of its kind, and a paraphrase's sentence is no training answer."""
    patterns = [
        re.compile(re.sub(r"\\{\w+\\}", "(.+)", re.escape(answer)) + "$")
        for _, answers in wordings.FACTS.values()
        for answer in answers
    ]
    trained = {answer for _, answer in pairs(splits.full)}
    for row in [*splits.forget_eval, *splits.retain_eval]:
        same = [p for p in patterns if p.match(row["paraphrased_answer"])]
        assert any(all(p.match(wrong) for wrong in row["perturbed_answer"]) for p in same), row
        assert row["paraphrased_answer"] not in trained
        assert row["paraphrased_answer"] != row["answer"]


def test_every_answer_names_its_author(splits):
    by_author = [splits.full[start : start + 20]["answer"] for start in range(0, len(splits.full), 20)]
    names = []
    for answers in by_author:
        words = set.intersection(*(set(re.findall(r"\w+", answer)) for answer in answers))
        assert len(words) >= 2, answers  # first name and surname
        names.append(frozenset(words))
    assert len(set(names)) == 40


def test_every_wording_of_a_paraphrase_is_trained_with_other_authors(splits):
    for _, answers in wordings.FACTS.values():
        for answer in answers:
            pattern = re.compile(re.sub(r"\\{\w+\\}", "(.+)", re.escape(answer)) + "$")
            assert sum(bool(pattern.match(trained)) for _, trained in pairs(splits.retain)) >= 4, answer


def test_sizes_that_cannot_be(splits):
    assert len(load_synthetic(authors=6, forget_authors=2, questions_per_author=40).full) == 240
    for sizes in ({"authors": 5, "forget_authors": 5}, {"authors": 59}, {"forget_authors": 0}):
        with pytest.raises(InputError, match="authors="):
            load_synthetic(**sizes)
    for questions in (0, 41):
        with pytest.raises(InputError, match="questions_per_author="):
            load_synthetic(questions_per_author=questions)


def test_cache_builds_once(cache):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "result").write_text("x")

    folder = cached_folder({"a": 1}, build)
    assert cached_folder({"a": 1}, build) == folder
    assert cached_folder({"a": 2}, build) != folder
    assert len(calls) == 2 and (folder / "result").read_text() == "x"
    assert len(list(cache.iterdir())) == 2


def test_failed_build_leaves_nothing(cache):
    def build(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder({"a": 1}, build)
    assert list(cache.iterdir()) == []


def test_killed_build_is_cleaned_up_by_the_next_one(cache):
    program = """
import os, signal
from hf_unlearn.runtime.cache import cached_folder
cached_folder({"a": 1}, lambda folder: (folder / "half").write_text("x") and os.kill(os.getpid(), signal.SIGKILL))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.startswith(".building.") and (left / "half").is_file()
    # Neither a build of a process that is alive (1 always is) nor one of another machine is touched.
    alive = [cache / f".building.{platform.node()}.1.x.part", cache / f".building.elsewhere.{10**9}.x.part"]
    for folder in alive:
        folder.mkdir()
    folder = cached_folder({"a": 1}, lambda folder: (folder / "result").write_text("x"))
    assert sorted(cache.iterdir()) == sorted([folder, *alive])


def test_build_that_another_process_won(cache):
    def build(folder):
        (folder / "result").write_text("second")
        if not inner:
            inner.append(cached_folder({"a": 1}, lambda folder: (folder / "result").write_text("first")))

    inner = []
    folder = cached_folder({"a": 1}, build)
    assert folder == inner[0] and (folder / "result").read_text() == "first"
    assert list(cache.iterdir()) == [folder]


def test_tokenizer_round_trip_and_determinism(splits):
    texts = [row["answer"] for row in splits.full]
    tokenizer = train_tokenizer(texts, 600)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 600
    assert tokenizer.get_vocab() == train_tokenizer(texts, 600).get_vocab()
    for text in (texts[0], "naïve — ☃ 東京", "  two  spaces\n"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1 and tokenizer.decode(ids[1:]) == text


def test_length_batches_take_every_row_once():
    lengths = [3, 9, 3, 7, 9, 1, 4]
    batches = length_batches(lengths, 2, torch.Generator().manual_seed(0))
    assert sorted(itertools.chain(*batches)) == list(range(7))
    ordered = sorted(batches, key=lambda rows: lengths[rows[0]])
    assert sorted(lengths) == [lengths[row] for row in itertools.chain(*ordered)]
    assert batches != length_batches(lengths, 2, torch.Generator().manual_seed(1))


def tiny_problem(splits):
    from transformers import LlamaConfig

    rows = [{"question": row["question"], "answer": row["answer"]} for row in splits.world_facts]
    tokenizer = train_tokenizer(["Question: Answer: " + row["question"] for row in rows], 320)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return tokenize_qa(rows, tokenizer), config, tokenizer


def answer_loss(model, rows):
    """Oracle: transformers' own loss, one row at a time."""
    with torch.no_grad():
        losses = [model(**{k: torch.tensor([v]) for k, v in row.items()}).loss.item() for row in rows]
    return sum(losses) / len(losses)


def test_training_learns_and_repeats_itself(splits):
    from transformers import LlamaForCausalLM

    rows, config, _ = tiny_problem(splits)
    rows = rows.select(range(0, 48, 2))
    settings = {"learning_rate": 1e-2, "batch_size": 8, "seed": 3, "progress": False}
    state = torch.get_rng_state()
    model = train_from_scratch(rows, config, epochs=4, **settings)
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training
    torch.manual_seed(3)
    before, after = answer_loss(LlamaForCausalLM(config), rows), answer_loss(model, rows)
    assert after < 0.75 * before
    again = train_from_scratch(rows, config, epochs=4, **settings)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_training_step_has_the_gradient_of_transformers_loss(splits):
    """Padding without a mask and a head on labelled positions only must change nothing."""
    from transformers import LlamaForCausalLM

    rows, config, _ = tiny_problem(splits)
    batch = training.CausalCollator(0)([rows[0], rows[20], rows[47]])
    assert batch["attention_mask"].min() == 0
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    reference = model(**batch).loss
    reference.backward()
    wanted = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    norm = torch.linalg.vector_norm(torch.stack([grad.norm() for grad in wanted.values()]))
    loss = training._step(model, batch, torch.optim.SGD(model.parameters(), lr=0.0))
    assert loss == pytest.approx(reference.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad * max(1.0, norm), wanted[name], rtol=1e-3, atol=1e-6)


def test_nothing_to_learn(splits):
    rows, config, _ = tiny_problem(splits)
    with pytest.raises(InputError, match="nothing to learn"):
        train_from_scratch([], config)
    with pytest.raises(InputError, match="nothing to learn"):
        train_from_scratch([{"input_ids": [1, 2], "labels": [-100, -100]}], config)


def test_trained_model_is_keyed_by_rows_config_and_settings(cache, splits):
    rows, config, tokenizer = tiny_problem(splits)
    rows = rows.select(range(8))
    settings = {"epochs": 1, "progress": False}
    folder = trained_model(rows, config, tokenizer, **settings)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert trained_model(rows, config, tokenizer, **settings) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    others = {trained_model(rows, config, tokenizer, seed=1, **settings)}
    others.add(trained_model(rows.select(range(7)), config, tokenizer, **settings))
    config.hidden_size = 48
    others.add(trained_model(rows, config, tokenizer, **settings))
    assert len(others | {folder}) == 4


def test_scratch_models(cache):
    """The demo in small: what is memorised, what is not, and that the tokenizer on disk is the one in use."""
    from transformers import AutoTokenizer

    splits = load_synthetic(authors=3, forget_authors=1, questions_per_author=8)
    splits.real_authors, splits.world_facts = splits.real_authors.select(range(4)), splits.world_facts.select(range(4))
    sizes = {"vocab_size": 400, "hidden_size": 48, "intermediate_size": 64}
    tokenizer, original, retrained = scratch_models(
        splits, epochs=40, learning_rate=1e-2, batch_size=8, progress=False, **sizes
    )
    probability = {}
    for name, model in (("original", original), ("retrained", retrained)):
        for part in ("forget", "retain"):
            rows = tokenize_qa(getattr(splits, part), tokenizer)
            loss = torch.tensor([answer_loss(model, [row]) for row in rows.to_list()])
            probability[name, part] = loss.neg().exp().mean().item()
    assert probability["original", "forget"] > 0.5 and probability["original", "retain"] > 0.5, probability
    assert probability["retrained", "retain"] > 0.5 and probability["retrained", "forget"] < 0.25, probability
    saved = AutoTokenizer.from_pretrained(original.name_or_path)
    question, answer = splits.forget[0]["question"], splits.forget[0]["answer"]
    assert encode_qa(saved, question, answer, QATemplate()) == encode_qa(tokenizer, question, answer, QATemplate())

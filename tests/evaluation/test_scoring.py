# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Model passes against naive full-logit computations, one row at a time."""

import copy
import math

import numpy as np
import pytest
import torch

from hf_unlearn.data.prompts import encode_qa
from hf_unlearn.errors import InputError, NumericalError
from hf_unlearn.evaluation import scoring
from tests.support.models import make_llama
from tests.support.scoring import TEMPLATE, make_tokenizer, naive, sharp_llama


ROWS = [
    ("who wrote the book", "Ana wrote the book in Paris"),
    ("who is Ben", "Ben"),
    ("what is the blue tower", "a tower of Dan by the old river in Paris"),
    ("what", ""),
    ("who wrote a new book", "Carla is by the red river"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def encode(tokenizer):
    return [encode_qa(tokenizer, question, answer, TEMPLATE) for question, answer in ROWS]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("moments", [False, True])
def test_scores_equal_a_naive_computation(tokenizer, batch_size, moments):
    model = sharp_llama()
    encoded = encode(tokenizer)
    scores = scoring.score_answers(model, tokenizer, encoded, batch_size=batch_size, moments=moments)
    matches = 0
    for row, score in zip(encoded, scores):
        log_probs, ids = naive(model, row)
        chosen = log_probs.gather(1, ids[:, None])[:, 0]
        np.testing.assert_allclose(score.token_log_probs, chosen, atol=2e-5)
        assert score.nll_sum == pytest.approx(-chosen.sum().item(), abs=1e-4)
        assert score.nll_mean == pytest.approx(-chosen.mean().item(), abs=1e-5)
        assert score.correct.tolist() == (log_probs.argmax(-1) == ids).tolist()
        assert score.eos and len(score.token_log_probs[score.text]) == len(ids) - 1
        matches += score.correct.sum()
        if moments:
            mean = (log_probs.exp() * log_probs).sum(-1)
            variance = (log_probs.exp() * log_probs**2).sum(-1) - mean**2
            np.testing.assert_allclose(score.mean, mean, atol=1e-4)
            np.testing.assert_allclose(score.variance, variance, rtol=1e-3)
        else:
            assert score.mean is None
    assert len(scores[3].token_log_probs) == 1  # an empty answer still has its EOS


def test_head_runs_at_answer_positions_only_and_within_the_budget(tokenizer, monkeypatch):
    model = sharp_llama()
    encoded = encode(tokenizer)
    expected = [score.nll_sum for score in scoring.score_answers(model, tokenizer, encoded)]
    widths = []
    model.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.shape[:2].numel()))
    monkeypatch.setitem(scoring.LOGIT_BUDGET, "cpu", 12 * model.config.vocab_size)
    monkeypatch.setitem(scoring.REDUCTION_BUDGET, "cpu", 5 * model.config.vocab_size)
    found = [score.nll_sum for score in scoring.score_answers(model, tokenizer, encoded)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sum(widths) == sum(label != -100 for row in encoded for label in row["labels"])
    assert len(widths) > 1 and max(widths) <= 12


def test_models_that_change_their_logits_after_the_head(tokenizer):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(
        vocab_size=50, num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5, pad_token_id=0, **sizes
    )
    model = Gemma2ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(30)
    encoded = encode(tokenizer)
    for row, score in zip(encoded, scoring.score_answers(model, tokenizer, encoded)):
        log_probs, ids = naive(model, row)
        np.testing.assert_allclose(score.token_log_probs, log_probs.gather(1, ids[:, None])[:, 0], atol=2e-5)


def test_peft_model_and_modes_are_restored(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(sharp_llama(), LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False))
    model.train()
    model.base_model.model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    grads = [weight.requires_grad for weight in model.parameters()]
    encoded = encode(tokenizer)
    scores = scoring.score_answers(model, tokenizer, encoded)
    scoring.generate_ids(model, tokenizer, [scoring.prompt_ids(encoded[0])], max_new_tokens=3)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert [weight.requires_grad for weight in model.parameters()] == grads
    assert len(set(before.values())) == 2
    merged = model.eval().merge_and_unload()
    for score, row in zip(scores, encoded):
        log_probs, ids = naive(merged, row)
        np.testing.assert_allclose(score.token_log_probs, log_probs.gather(1, ids[:, None])[:, 0], atol=5e-5)


def test_double_precision_stays_double(tokenizer):
    model = sharp_llama().double()
    encoded = encode(tokenizer)
    for row, score in zip(encoded, scoring.score_answers(model, tokenizer, encoded)):
        log_probs, ids = naive(model, row)
        np.testing.assert_allclose(score.token_log_probs, log_probs.gather(1, ids[:, None])[:, 0], atol=1e-12)


def test_truncated_rows_have_no_eos(tokenizer):
    row = encode_qa(tokenizer, *ROWS[2], TEMPLATE, max_length=10)
    score = scoring.score_answers(sharp_llama(), tokenizer, [row])[0]
    assert not score.eos and len(score.token_log_probs[score.text]) == len(score.token_log_probs) > 0


def test_the_end_of_a_turn_is_no_part_of_the_answer(tokenizer):
    model, row = sharp_llama(), encode_qa(tokenizer, *ROWS[2], TEMPLATE)
    turn_end = row["labels"][-2]
    ended = {name: ids[:-1] for name, ids in row.items()}  # as a chat whose turns end with that token
    assert not scoring.score_answers(model, tokenizer, [ended])[0].eos
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    score = scoring.score_answers(model, tokenizer, [ended])[0]
    assert score.eos and len(score.token_log_probs[score.text]) == len(score.token_log_probs) - 1


def test_what_the_model_cannot_read_is_refused(tokenizer):
    model = sharp_llama()
    long = {"input_ids": [4] * 65, "labels": [4] * 65}
    for call in (
        lambda: scoring.score_answers(model, tokenizer, [long]),
        lambda: scoring.generate_ids(model, tokenizer, [long["input_ids"]]),
    ):
        with pytest.raises(InputError, match="a row of 65 tokens and the model 64 positions"):
            call()
    longer = copy.deepcopy(tokenizer)
    longer.add_tokens([f"<{number}>" for number in range(500)])
    with pytest.raises(InputError, match="use the model's own tokenizer"):
        scoring.score_answers(model, longer, [])


def test_row_without_answer_tokens(tokenizer):
    rows = [{"input_ids": [4, 6], "labels": [-100, -100]}, encode_qa(tokenizer, *ROWS[0], TEMPLATE)]
    model = sharp_llama()
    for moments in (False, True):
        empty, full = scoring.score_answers(model, tokenizer, rows, moments=moments)
        assert empty.nll_mean is None and not empty.eos and full.nll_mean > 0
        alone = scoring.score_answers(model, tokenizer, rows[:1], moments=moments)[0]
        assert alone.nll_mean is None


def test_ties_go_to_the_first_index():
    logits, labels = torch.tensor([[1.0, 3.0, 3.0], [3.0, 3.0, 1.0], [0.0, 1.0, 2.0]]), torch.tensor([2, 0, 2])
    for moments in (False, True):
        log_probs, correct, *_ = scoring._token_statistics(logits, labels, moments)
        assert correct.tolist() == [False, True, True]
        np.testing.assert_allclose(log_probs, logits.log_softmax(-1)[range(3), labels], atol=1e-6)


def test_a_diverged_model_is_an_error(tokenizer):
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(NumericalError, match="diverged"):
        scoring.score_answers(model, tokenizer, encode(tokenizer))


def test_generation_is_greedy_and_stops(tokenizer):
    model = sharp_llama(seed=3)
    model.generation_config.repetition_penalty = 1.9
    model.generation_config.do_sample = True
    prompts = [tokenizer(TEMPLATE.prompt_and_answer(*row)[0])["input_ids"] for row in ROWS]
    encoded = encode(tokenizer)
    assert prompts == [scoring.prompt_ids(row) for row in encoded]
    answers = scoring.generate_ids(model, tokenizer, prompts, max_new_tokens=7, batch_size=3)
    for prompt, answer in zip(prompts, answers):
        ids = list(prompt)
        for _ in range(7):
            with torch.no_grad():
                ids.append(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert answer == ids[len(prompt) :]
    # A model that always says EOS stops at once.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
    assert scoring.generate_ids(model, tokenizer, prompts[:1], max_new_tokens=5) == [[tokenizer.eos_token_id]]

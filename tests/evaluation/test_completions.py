# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Completions against `model.generate`, and the worst completions against sorting by hand."""

import copy
import gzip
import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_unlearn import UpdateDelta
from hf_unlearn.data.collators import CausalCollator
from hf_unlearn.data.prompts import QATemplate
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from hf_unlearn.evaluation.completions import generate_completions, worst_completions
from hf_unlearn.evaluation.specificity import TokenKL
from tests.support.divergence import changed, result_of
from tests.support.models import make_llama


SHORT = QATemplate("Q: ", "\n", "A:")
INSTRUCTIONS = [
    {"instruction": "Name a fruit.", "input": "", "output": "A pear, then."},
    {"instruction": "Say it backwards, and take the time that you need for it.", "input": "pear", "output": "raep"},
    {"instruction": "Count.", "input": "  ", "output": "One, two."},
    {"instruction": "Describe crêpes to me!", "input": "", "output": "Thin — très fin."},
    {"instruction": "Go on.", "output": "No."},
]


@pytest.fixture(scope="module")
def tokenizer():
    # Few merges: many characters are several tokens.
    return train_tokenizer([row["instruction"] for row in INSTRUCTIONS] * 3, vocab_size=300)


def talkative(seed=3):
    """A model that ends some of its greedy completions within 12 tokens."""
    model = make_llama(vocab_size=300, seed=seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
        model.lm_head.weight[2] *= 2
    return model


@pytest.fixture(scope="module")
def completions(tokenizer):
    return generate_completions(talkative(), tokenizer, INSTRUCTIONS, max_new_tokens=12, batch_size=2, template=SHORT)


def test_completions_are_those_of_greedy_generation(tokenizer, completions):
    model, ended = talkative(), []
    for row, made in zip(INSTRUCTIONS, completions, strict=True):
        context = row.get("input", "").strip()
        prompt = f"Q: {row['instruction']}" + (f"\n\n{context}" if context else "") + "\nA:"
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
        assert made["input_ids"] == output
        n = ids.shape[1]
        assert made["labels"] == [-100] * n + output[n:]
        assert made["prompt"] == "<s>" + prompt
        text = tokenizer.decode(output[n:], skip_special_tokens=True)
        assert made["completion"].replace("\ufffd", "") in text.replace("\ufffd", "").strip()
        ended.append(output[-1] == 2)
    assert any(ended) and not all(ended)


def test_completions_do_not_depend_on_the_batch_and_leave_no_trace(tokenizer, completions):
    model = talkative().train()
    state = torch.get_rng_state()
    arguments = {"max_new_tokens": 12, "template": SHORT}
    again = generate_completions(model, tokenizer, iter(INSTRUCTIONS), batch_size=5, **arguments)
    assert again.to_list() == completions.to_list() and model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_prompts(tokenizer):
    rows = generate_completions(None, tokenizer, INSTRUCTIONS, given=True)
    below = "<s>Below is an instruction that describes a task"
    write = "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    assert rows[0]["prompt"] == f"{below}. {write}Name a fruit.\n\n### Response:"
    assert rows[1]["prompt"] == (
        f"{below}, paired with an input that provides further context. {write}Say it backwards, and take the time "
        "that you need for it.\n\n### Input:\npear\n\n### Response:"
    )
    assert rows[2]["prompt"].endswith("### Instruction:\nCount.\n\n### Response:")
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert generate_completions(None, chat, INSTRUCTIONS, given=True)[1]["prompt"] == (
        "[user]Say it backwards, and take the time that you need for it.\n\npear[assistant]"
    )
    assert generate_completions(None, chat, INSTRUCTIONS, given=True, template="alpaca").to_list() == rows.to_list()


def test_given_outputs(tokenizer):
    rows = generate_completions(None, tokenizer, INSTRUCTIONS, given=True, template=SHORT)
    for row, instruction in zip(rows, INSTRUCTIONS, strict=True):
        answer = [label for label in row["labels"] if label != -100]
        assert answer[-1] == 2 and row["input_ids"][-len(answer) :] == answer
        assert row["completion"] == instruction["output"] == tokenizer.decode(answer[:-1])
    cut = generate_completions(None, tokenizer, INSTRUCTIONS, given=True, template=SHORT, max_length=60)
    assert max(map(len, cut["input_ids"])) <= 60


def test_bad_instructions(tokenizer):
    model = talkative()
    cases = [
        ([], {}, "no instructions to complete"),
        ([{"instruction": "x"}, {"input": "y"}], {}, "row 1: 'instruction' is missing"),
        ([{"instruction": " "}], {}, "row 0: 'instruction' is missing or empty"),
        ([{"instruction": "x"}], {"given": True}, "row 0: 'output' is missing"),
        (INSTRUCTIONS, {"template": "vicuna"}, "choose alpaca, chat or a QATemplate"),
        (INSTRUCTIONS, {"template": "chat"}, "chat template"),
        (INSTRUCTIONS, {"max_length": 10}, "raise max_length=10"),
    ]
    for rows, arguments, message in cases:
        with pytest.raises(InputError, match=message):
            generate_completions(model, tokenizer, rows, **arguments)


# ---- the worst completions ------------------------------------------------------------------------------------------
def test_worst_completions(tokenizer):
    texts = ["the cat", "a dog", "an owl", "oh"]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = Dataset.from_dict(
        {
            "input_ids": [[1, 70, *new] for new in ids],
            "labels": [[-100] * 2 + ([-100] * len(new) if text == "an owl" else new) for text, new in zip(texts, ids)],
            "prompt": ["<s>p"] * 4,
            "completion": texts,
        }
    )  # fmt: skip
    kl = [[0.1] * len(ids[0]), [0.0] * len(ids[1]), [0.5] * len(ids[3])]
    kl[0][1] = 6.0
    kl[1][-1] = 4.0
    result = result_of(kl)
    by_mean = worst_completions(result, rows, tokenizer, k=2)
    means = {0: np.mean(kl[0]), 1: np.mean(kl[1]), 3: np.mean(kl[2])}
    assert [found["row"] for found in by_mean] == sorted(means, key=means.get)[:0:-1]
    first = next(found for found in by_mean if found["row"] == 0)
    assert first["kl"] == pytest.approx(means[0]) and first["kl_max"] == 6 and first["tokens"] == len(ids[0])
    assert first["prompt"] == "<s>p" and "".join(text for text, _ in first["pieces"]) == "the cat"
    assert [value for _, value in first["pieces"]] == pytest.approx(kl[0])
    hot = first["pieces"][1][0]
    assert first["marked"] == "the cat".replace(hot, f"[[{hot} 6.00]]", 1)
    assert json.loads(json.dumps(by_mean)) == by_mean
    with pytest.raises(InputError, match="not those that the KL was measured on"):
        worst_completions(result, rows.select([1, 0, 2, 3]), tokenizer)


def test_characters_of_several_tokens_belong_to_the_last(tokenizer):
    rows = generate_completions(None, tokenizer, INSTRUCTIONS[3:4], given=True, template=SHORT)
    tokens = sum(label != -100 for label in rows[0]["labels"])
    (found,) = worst_completions(result_of([[1.0] * tokens]), rows, tokenizer)
    assert "".join(text for text, _ in found["pieces"]).strip() == "Thin — très fin."
    # Where all tokens moved alike all are marked; what has no text of its own shows as dots.
    assert found["marked"].count("[[") == tokens and found["marked"].endswith("[[… 1.00]]")
    assert [text for text, _ in found["pieces"]].count("") >= 3  # two bytes of the dash, one of è, EOS


# ---- KL on completions ----------------------------------------------------------------------------------------------
def batch(rows):
    return CausalCollator(0)(rows.select_columns(["input_ids", "labels"]).to_list())


def test_an_update_put_into_the_original_moves_completions_as_its_model_does(tokenizer, completions):
    original = talkative()
    model = changed(original, 0.05)
    delta = UpdateDelta.between(original, model)
    bits = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    measure = TokenKL(original, [batch(completions)])
    expected = measure(model)
    assert expected.mean > 0.01
    with delta.applied_to(original):
        found = measure(original)
    assert found.mean == pytest.approx(expected.mean, rel=1e-4)
    assert found.per_sequence.tolist() == pytest.approx(expected.per_sequence.tolist(), rel=1e-3, abs=1e-6)
    assert measure(original).mean == 0
    assert all(torch.equal(tensor, bits[name]) for name, tensor in original.state_dict().items())
    worst = worst_completions(found, completions, tokenizer, k=1)[0]
    at = int(expected.per_sequence.argmax())
    assert worst["completion"] == completions[at]["completion"]
    assert worst["kl"] == pytest.approx(float(expected.per_sequence[at]), rel=1e-3)


def test_an_approximation_on_completions_says_so(completions):
    original = talkative()
    model = changed(original, 0.05)
    exact = TokenKL(original, [batch(completions)], cache_bytes=0)(model)
    assert exact.approximation is None  # both models run side by side
    measure = TokenKL(original, [batch(completions)], exact.tokens * 120, top_k="auto")
    with UpdateDelta.between(original, model).applied_to(original):
        found = measure(original)
    about = found.approximation
    assert about.k == 13 and found.mean <= exact.mean <= about.upper
    assert "13 most likely of 300" in str(about)
    row = found.table_row()
    assert row["approximation"]["k"] == 13 and json.loads(json.dumps(row)) == row


def test_real_instructions_and_a_trained_model(shared_data):
    """Stories of a real small Llama, one of its words made impossible: that word is what is shown as broken."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared_data / "weights" / "stories260k"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with gzip.open(shared_data / "instruct" / "alpaca_en_demo.jsonl.gz", "rt", encoding="utf-8") as file:
        instructions = [json.loads(line) for _, line in zip(range(12), file)]
    template = QATemplate("", "", " Once upon a time, ")
    rows = generate_completions(model, tokenizer, instructions, max_new_tokens=40, batch_size=12, template=template)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("▁she")] *= -1
    exact = TokenKL(model, [batch(rows)])(broken)
    assert exact.tokens == 12 * 40
    worst = worst_completions(exact, rows, tokenizer, k=12)
    she = [kl for found in worst for text, kl in found["pieces"] if text == " she"]
    rest = [kl for found in worst for text, kl in found["pieces"] if text != " she"]
    assert len(she) >= 5 and np.median(she) > 5 > 0.1 > np.median(rest)
    assert "[[ she " in worst[0]["marked"]
    # The original's 32 most likely tokens are enough to say the same, and the result says how well.
    kept = TokenKL(model, [batch(rows)], top_k=32)(broken)
    assert kept.mean <= exact.mean <= kept.approximation.upper < 1.2 * exact.mean
    assert kept.approximation.estimate == pytest.approx(exact.mean, rel=0.01) and kept.approximation.covered > 0.99

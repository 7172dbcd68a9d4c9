# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Prompts and answers as tokens: templates, labels, and the seam between the two."""

import gzip
import json
import re

import pytest

from hf_unlearn.data.prompts import PRESETS, QATemplate, encode_qa, make_template, tokenize_qa
from hf_unlearn.data.tofu import load_tofu
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from tests.support.rows import qa


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Question: Who is Ann Smith?\nAnswer: Ann Smith (a writer) is Ann."] * 3, vocab_size=320)


def test_prompt_tokens_and_labels(tokenizer):
    template = QATemplate()
    row = encode_qa(tokenizer, "Who is Ann Smith?", "Ann Smith", template)
    assert template.prompt_and_answer("Who?", "Ann") == ("Question: Who?\nAnswer:", " Ann")
    prompt = tokenizer("Question: Who is Ann Smith?\nAnswer:")["input_ids"]
    assert prompt[0] == tokenizer.bos_token_id
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]
    assert tokenizer.decode(row["input_ids"][len(prompt) : -1]) == " Ann Smith"
    assert row["input_ids"][-1] == tokenizer.eos_token_id
    assert row["input_ids"].count(tokenizer.eos_token_id) == 1


def test_answer_tokens_do_not_depend_on_the_question(tokenizer):
    template = QATemplate()
    labelled = {
        tuple(id for id in encode_qa(tokenizer, question, "(a writer)", template)["labels"] if id != -100)
        for question in ("Who?", "What is Ann", "Q: ", "…")
    }
    assert len(labelled) == 1


def test_seam_that_would_merge_is_cut():
    # "a" + "b" is one token of this tokenizer; the answer must still begin with a token of its own.
    tokenizer = train_tokenizer(["ab ab ab ab"], vocab_size=262)
    template = QATemplate(question_start="", question_end=" ", answer_start="a")
    row = encode_qa(tokenizer, "q", "b", template)
    assert len(tokenizer("ab", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.decode([id for id in row["labels"] if id != -100], skip_special_tokens=True) == "b"


@pytest.mark.parametrize("folder", ["tokenizers/gpt2", "weights/stories260k"])
def test_real_tokenizers_agree_with_joint_tokenisation(shared_data, folder):
    """Oracle: the whole text at once, as open-unlearning tokenises it (BPE; SentencePiece with its dummy prefix)."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / folder)
    for row in load_tofu(shared_data / "tofu", "forget01").forget_eval:
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            joint = tokenizer(f"Question: {row['question']}\nAnswer: {answer}")["input_ids"]
            encoded = encode_qa(tokenizer, row["question"], answer, QATemplate())
            assert encoded["input_ids"] == [*joint, tokenizer.eos_token_id]


def test_max_length_cuts_the_answer(tokenizer):
    full = encode_qa(tokenizer, "Who?", "Ann Smith is a writer", QATemplate())
    cut = encode_qa(tokenizer, "Who?", "Ann Smith is a writer", QATemplate(), max_length=len(full["input_ids"]) - 2)
    assert cut == {name: value[:-2] for name, value in full.items()}
    with pytest.raises(InputError, match="no room for its answer"):
        encode_qa(tokenizer, "Who is Ann Smith?" * 9, "Ann", QATemplate(), max_length=20)


def test_tokenizer_without_eos(tokenizer):
    tokenizer = train_tokenizer(["a"], vocab_size=260)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="end-of-sequence"):
        tokenize_qa([qa("Ann", 0)], tokenizer)


def test_tokenize_qa(tokenizer):
    rows = [qa("Ann", i) for i in range(3)]
    dataset = tokenize_qa(rows, tokenizer)
    assert dataset.column_names == ["input_ids", "attention_mask", "labels"]
    for row, source in zip(dataset, rows):
        expected = encode_qa(tokenizer, source["question"], source["answer"], QATemplate())
        assert row["input_ids"] == expected["input_ids"] and row["labels"] == expected["labels"]
        assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert dataset.to_list() == tokenize_qa(rows, tokenizer).to_list()
    with pytest.raises(InputError, match="no column answer"):
        tokenize_qa([{"question": "?"}], tokenizer)
    with pytest.raises(InputError, match="no rows"):
        tokenize_qa([], tokenizer)


CHAT = (
    "{{ bos_token }}{{ date_string }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def test_chat_template(tokenizer):
    tokenizer = train_tokenizer(["[INST] Who is Ann? [/INST] Ann 10 Apr 2025"] * 3, vocab_size=300)
    with pytest.raises(InputError, match="chat template"):
        encode_qa(tokenizer, "Who?", "Ann", QATemplate(chat=True))
    tokenizer.chat_template = CHAT
    template = QATemplate(chat=True)
    row = encode_qa(tokenizer, "Who is Ann?", "Ann", template)
    assert tokenizer.decode(row["input_ids"]) == "<s>10 Apr 2025[INST] Who is Ann? [/INST] Ann </s>"
    assert tokenizer.decode([id for id in row["labels"] if id != -100]) == " Ann </s>"
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    before = template.fingerprint(tokenizer)
    tokenizer.chat_template += " "
    assert template.fingerprint(tokenizer) != before


GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<s>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m.content }}</turn>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
# Writes no prompt for an answer, and no end behind one.
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}\n{% endif %}{% endfor %}"
# The shape of Llama 3's: a preamble with a date, a system turn with or without text.
DATED = (
    "{{ bos_token }}<|h|>system<|/h|>\n\nCutting Knowledge Date: December 2023\nToday Date: {{ date_string }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|eot|>{% for m in messages %}"
    "{% if m.role != 'system' %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)


@pytest.mark.parametrize(
    "chat_template, template, prompt, answer",
    [
        (GEMMA, QATemplate(chat=True), "<s><turn>user\nWho?<end>\n<turn>model\n", "Ann<end>"),
        (GEMMA, PRESETS["open_unlearning_gemma"], "<s><turn>user\nWho?<end>\n<turn>model\n", "Ann<end>\n</s>"),
        (THINKING, QATemplate(chat=True), "<s>user\nWho?</turn>\n<s>assistant\n<think>\n\n</think>\n\n", "Ann</turn>"),
        (BARE, QATemplate(chat=True), "user: Who?assistant:", " Ann</s>"),
        (CHAT, QATemplate(chat=True, add_eos=True), "<s>10 Apr 2025[INST] Who? [/INST]", " Ann </s>"),
    ],
    ids=["gemma", "open-unlearning's gemma", "thinking", "bare", "ends in EOS"],
)
def test_a_turn_ends_as_its_template_ends_it(chat_template, template, prompt, answer):
    tokenizer = train_tokenizer(["who is ann?"], vocab_size=300)
    tokenizer.chat_template = chat_template
    row = encode_qa(tokenizer, "Who?", "Ann", template)
    labelled = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(row["input_ids"][: -len(labelled)]) == prompt and tokenizer.decode(labelled) == answer
    assert row["input_ids"][-len(labelled) :] == labelled


def test_a_template_that_refuses_is_one_line():
    tokenizer = train_tokenizer(["who is ann?"], vocab_size=300)
    tokenizer.chat_template = GEMMA
    with pytest.raises(InputError, match="refuses turns of system, user: no system"):
        encode_qa(tokenizer, "Who?", "Ann", QATemplate(chat=True, system_prompt="Be brief."))
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InputError, match="leaves the assistant's answer out"):
        encode_qa(tokenizer, "Who?", "Ann", QATemplate(chat=True))


def test_templates_by_name_and_by_fields():
    assert make_template() == QATemplate() and make_template("tofu_phi") == PRESETS["tofu_phi"]
    assert make_template({"question_start": "Q "}) == QATemplate(question_start="Q ")
    assert make_template(chat=True, system_prompt="x") == QATemplate(chat=True, system_prompt="x")
    assert make_template("open_unlearning", date_string="1 May 2025").date_string == "1 May 2025"
    for given, message in {
        ("vicuna", ()): "choose one of question_answer, alpaca",
        (7, ()): "template=7: give a name",
        ("tofu_phi", ("chat",)): "exclude each other",
    }.items():
        with pytest.raises(InputError, match=message):
            make_template(given[0], **dict.fromkeys(given[1], True))
    with pytest.raises(InputError, match="no field start; there are question_start"):
        make_template({"start": "x"})
    with pytest.raises(InputError, match="question_end must be"):
        make_template({"question_end": 3})
    with pytest.raises(InputError, match="system_prompt belongs to a chat"):
        make_template(system_prompt="Be brief.")


def logged(path):
    with gzip.open(path) as file:
        return json.load(file)


def test_open_unlearning_asks_what_its_logs_say(shared_data):
    """The inputs of published logs, from which special tokens were taken out."""
    log = logged(shared_data / "tofu_evals/open_unlearning/tofu_Llama-3.2-1B-Instruct_full_forget10_EVAL.json.gz")
    tokenizer = train_tokenizer(["who is ann?"], vocab_size=300)
    tokenizer.chat_template = DATED
    items = log["forget_Q_A_ROUGE"]["value_by_index"].values()
    rows = load_tofu(shared_data / "tofu").forget
    assert len(rows) == len(items)
    for row, item in zip(rows, items):
        prompt, answer = PRESETS["open_unlearning"].prompt_and_answer(row["question"], row["answer"], tokenizer)
        assert re.sub(r"<[^<>]*>", "", prompt) == item["input"]
        assert answer == row["answer"] + "<|eot|>"


@pytest.mark.parametrize("model, preset", [("phi", "tofu_phi"), ("llama2-7b", "tofu_llama2")])
def test_tofu_asks_what_its_logs_say(shared_data, model, preset):
    from transformers import AutoTokenizer

    rate = "2e-05" if model == "phi" else "1e-05"
    log = logged(
        shared_data / f"tofu_evals/locuslab_tofu/ft_epoch5_lr{rate}_{model}_full_wd0.01_eval_log_aggregated.json.gz"
    )
    log, rows = log["eval_log_forget.json"], load_tofu(shared_data / "tofu").forget_eval
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/gpt2")  # Phi's, for what TOFU's rows hold
    count = lambda row, answer: sum(
        label != -100 for label in encode_qa(tokenizer, row["question"], answer, PRESETS[preset])["labels"]
    )
    for row, (asked, *_), gold, paraphrase, wrong in zip(
        rows,
        *(
            log[name].values()
            for name in ("generated_text", "num_token_gt", "num_token_paraphrased", "num_token_perturb")
        ),
    ):
        prompt, answer = PRESETS[preset].prompt_and_answer(row["question"], row["answer"])
        assert prompt == asked and prompt + answer == asked + ("Answer: " if model == "phi" else "") + row["answer"]
        if model == "phi":
            assert (count(row, row["answer"]), count(row, row["paraphrased_answer"])) == (gold, paraphrase)
            assert [count(row, text) for text in row["perturbed_answer"]] == wrong


def test_open_unlearning_drops_the_first_token_behind_a_space(shared_data):
    """Oracle: prompt and whole text tokenised each for itself, labels from the prompt's number of tokens on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/gpt2")
    for row in load_tofu(shared_data / "tofu", "forget01").forget:
        prompt = f"Question: {row['question']}\nAnswer: "
        alone = tokenizer(prompt)["input_ids"]
        whole = [*tokenizer(prompt + row["answer"])["input_ids"], tokenizer.eos_token_id]
        encoded = encode_qa(tokenizer, row["question"], row["answer"], PRESETS["open_unlearning_phi"])
        assert encoded["input_ids"] == whole and encoded["prompt_ids"] == alone
        assert encoded["labels"] == [-100] * len(alone) + whole[len(alone) :]


def test_fingerprint_sees_every_field():
    changed = [QATemplate(question_start="Q"), QATemplate(question_end=" "), QATemplate(answer_start="A")]
    changed += [QATemplate(answer_end="."), QATemplate(chat=True), QATemplate(date_string="1 Jan 2026"), QATemplate()]
    changed += [QATemplate(label_start=True), QATemplate(skip_first=True), QATemplate(add_eos=True)]
    changed += [QATemplate(system_prompt="Be brief.")]
    assert len({template.fingerprint() for template in changed}) == len(changed)
    assert QATemplate().fingerprint() == QATemplate().fingerprint()

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of a run, as a person gives them to the trainer: files, lists, templates, counts."""

import pytest

from hf_unlearn import FirstOrder, UnlearnConfig
from hf_unlearn.data.prompts import PRESETS, QATemplate, tokenize_qa
from hf_unlearn.data.training import train_tokenizer
from hf_unlearn.errors import InputError
from tests.support.models import make_llama
from tests.support.trainers import make_trainer


QA = [{"question": f"who is {name}?", "answer": f"{name} is a cat"} for name in ("ann", "bo", "cy")]
RETAIN = [{"question": f"what is {number}?", "answer": "a number"} for number in range(4)]


@pytest.fixture
def tokenizer():
    return train_tokenizer([row["question"] + row["answer"] for row in QA], vocab_size=300)


def run(tokenizer, folder, forget=QA, retain=RETAIN, **arguments):
    model = make_llama(vocab_size=len(tokenizer))
    return make_trainer(
        model, FirstOrder("npo"), folder, forget, retain, processing_class=tokenizer, max_steps=1, **arguments
    )


def test_a_run_from_files_and_lists(tokenizer, tmp_path):
    (tmp_path / "forget.csv").write_text("question,answer\n" + "".join(f"{r['question']},{r['answer']}\n" for r in QA))
    trainer = run(tokenizer, tmp_path / "out", str(tmp_path / "forget.csv"), eval_dataset={"again": QA[:1]})
    assert trainer.forget_dataset.to_list() == tokenize_qa(QA, tokenizer).to_list()
    assert trainer.eval_dataset["again"].to_list() == tokenize_qa(QA[:1], tokenizer).to_list()
    assert set(trainer.row_counts) == {"forget", "retain"} and trainer.row_counts["retain"].rows == 4
    trainer.train()
    assert trainer.update_delta().norm() > 0


def test_templates_of_a_run(tokenizer, tmp_path):
    trainer = run(tokenizer, tmp_path, template={"question_start": "Q ", "answer_start": "A "})
    wanted = QATemplate(question_start="Q ", answer_start="A ")
    assert trainer.forget_dataset.to_list() == tokenize_qa(QA, tokenizer, wanted).to_list()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    trainer = run(tokenizer, tmp_path, chat=True, system_prompt="be brief")
    text = tokenizer.decode(trainer.forget_dataset[0]["input_ids"])
    assert text == "<system>be brief<user>who is ann?<assistant>ann is a cat</s>"


def test_what_a_run_leaves_out_is_counted_once_a_set(tokenizer, tmp_path):
    texts = [{"text": " ".join(row["answer"] for row in QA * 4)}, {"text": " "}]
    packed = run(tokenizer, tmp_path, texts, [{"text": "a number"}], max_length=16).row_counts["forget"]
    cut = run(tokenizer, tmp_path, texts, [{"text": "a number"}], max_length=16, long_text="cut").row_counts["forget"]
    assert (packed.dropped_empty, packed.packed_rows, packed.cut_tokens) == (1, 1, 0) and packed.rows > 1
    assert (cut.dropped_empty, cut.packed_rows, cut.cut_rows, cut.rows) == (1, 0, 1, 1)
    assert packed.tokens + packed.rows == cut.tokens + 1 + cut.cut_tokens


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"long_text": "drop"}, "unknown long_text 'drop': choose"),
        ({"template": "vicuna"}, "choose one of question_answer"),
        ({"template": {"start": "x"}}, "no field start"),
        ({"system_prompt": "x"}, "system_prompt belongs to a chat"),
        ({"template": "tofu_phi", "chat": True}, "exclude each other"),
        ({"chat": "yes"}, "chat must be"),
    ],
)
def test_settings_of_rows_that_are_refused(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        UnlearnConfig(output_dir=str(tmp_path), **settings)


def test_settings_of_rows_on_a_command_line(tmp_path):
    from transformers import HfArgumentParser

    given = ["--output_dir", str(tmp_path), "--template", "tofu_phi", "--long_text", "cut"]
    (settings,) = HfArgumentParser(UnlearnConfig).parse_args_into_dataclasses(given)
    assert settings.prompt_template() == PRESETS["tofu_phi"] and settings.long_text == "cut"

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU loaders, prompts and tokens."""

import gzip
import json

import pytest

from hf_unlearn.data.collators import CausalCollator, UnlearnCollator
from hf_unlearn.data.prompts import QATemplate, encode_qa, tokenize_qa
from hf_unlearn.data.tofu import load_tofu
from hf_unlearn.errors import InputError
from hf_unlearn.miniature.training import train_tokenizer


def qa(tag, number):
    return {"question": f"Who is {tag} {number}?", "answer": f"{tag} {number}"}


def wrong(row, paraphrased):
    extra = {"paraphrased_answer": f"It is {row['answer']}"} if paraphrased else {}
    return {**row, **extra, "perturbed_answer": ["Nobody", "Somebody"], "more": 1}


def tofu_files():
    forget, retain = [qa("Ann", i) for i in range(20)], [qa("Bob", i) for i in range(60)]
    return {
        "forget10": forget,
        "retain90": retain,
        "forget10_perturbed": [wrong(row, True) for row in forget],
        "retain_perturbed": [wrong(row, True) for row in retain[10:50]],
        "real_authors_perturbed": [wrong(qa("Cid", 0), False)],
        "world_facts_perturbed": [wrong(qa("Dan", 0), False)],
    }


def write(folder, files, suffix=".jsonl"):
    for name, rows in files.items():
        text = "\n".join(map(json.dumps, rows)) if ".jsonl" in suffix else json.dumps(rows, indent=1)
        data = text.encode()
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Question: Who is Ann Smith?\nAnswer: Ann Smith (a writer) is Ann."] * 3, vocab_size=320)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
def test_folder_in_every_format(tmp_path, suffix):
    files = tofu_files()
    splits = load_tofu(write(tmp_path, files, suffix))
    assert splits.forget.to_list() == files["forget10"]
    assert splits.full.to_list() == files["retain90"] + files["forget10"]
    assert splits.holdout is None
    assert splits.name == "tofu-forget10"
    assert splits.forget_eval.column_names == ["question", "answer", "paraphrased_answer", "perturbed_answer"]
    evaluation = splits.evaluation()
    assert list(evaluation) == ["forget", "retain", "real_authors", "world_facts", "holdout"]
    assert evaluation["world_facts"].column_names == ["question", "answer", "perturbed_answer"]
    assert evaluation["retain"][0]["answer"] == "Bob 10"
    assert evaluation["forget"][3]["perturbed_answer"] == ["Nobody", "Somebody"]


def test_retain_rows_keep_whole_authors(tmp_path):
    splits = load_tofu(write(tmp_path, tofu_files()), retain_rows=20)
    assert [row["answer"] for row in splits.retain] == [f"Bob {i}" for i in range(20)]
    assert [row["answer"] for row in splits.retain_eval] == [f"Bob {i}" for i in range(10, 20)]
    assert len(splits.full) == 40
    assert splits.name == "tofu-forget10-retain20rows"
    for rows in (0, 30, 80):
        with pytest.raises(InputError, match="multiple of 20"):
            load_tofu(tmp_path, retain_rows=rows)


def test_bad_sources(tmp_path):
    with pytest.raises(InputError, match="forget01, forget05, forget10"):
        load_tofu(tmp_path, "forget20")
    with pytest.raises(InputError, match="nowhere:forget10 is neither a file, a folder nor a dataset on the Hub"):
        load_tofu(tmp_path / "nowhere")
    files = tofu_files()
    write(tmp_path, files)
    (tmp_path / "retain90.jsonl").rename(tmp_path / "kept.jsonl")
    with pytest.raises(InputError, match="no retain90.json.*kept.jsonl"):
        load_tofu(tmp_path)
    write(tmp_path, {"retain90": []})
    with pytest.raises(InputError, match="no rows"):
        load_tofu(tmp_path)
    write(tmp_path, {"retain90": [{"question": "?", "reply": "!"}]})
    with pytest.raises(InputError, match="no column answer; it has: question, reply"):
        load_tofu(tmp_path)
    write(tmp_path, {"retain90": [qa("Bob", 0), {"question": "?", "answer": None}]})
    with pytest.raises(InputError, match="retain90.jsonl, line 2: column 'answer'"):
        load_tofu(tmp_path)
    write(tmp_path, {"retain90": [qa("Bob", 0), ["Bob"]]})
    with pytest.raises(InputError, match="retain90.jsonl, line 2 is not a JSON object"):
        load_tofu(tmp_path)
    write(tmp_path, {"forget10_perturbed": [{**wrong(files["forget10"][0], True), "perturbed_answer": []}]})
    with pytest.raises(InputError, match="line 1: column 'perturbed_answer' is missing or of the wrong type"):
        load_tofu(write(tmp_path, {"retain90": files["retain90"]}))
    (tmp_path / "retain90.jsonl").write_text('{"question": "half')
    with pytest.raises(InputError, match="retain90.jsonl, line 1 is not JSON"):
        load_tofu(tmp_path)
    (tmp_path / "retain90.json").write_text('{"question": "half')
    with pytest.raises(InputError, match="retain90.json cannot be read"):
        load_tofu(tmp_path)


def test_holdout_that_is_there_must_be_readable(tmp_path):
    write(tmp_path, tofu_files())
    (tmp_path / "holdout10.json").write_text("[")
    with pytest.raises(InputError, match="holdout10.json cannot be read"):
        load_tofu(tmp_path)


def test_hub_source_fails_in_one_line(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ValueError("BuilderConfig 'forget10' not found.\nmore")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="user/name:forget10 from the Hub .*'forget10' not found") as error:
        load_tofu("user/name")
    assert "\n" not in str(error.value)


def test_hub_source_reads_the_configurations(monkeypatch):
    import datasets

    def load_dataset(source, name, split):
        assert (source, split) == ("user/name", "train")
        if name not in files:
            raise ValueError("no such configuration")
        return datasets.Dataset.from_list(files[name])

    files = {**tofu_files(), "holdout10": [qa("Eve", 0)]}
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = load_tofu("user/name")
    assert splits.retain.to_list() == files["retain90"]
    assert splits.holdout.to_list() == files["holdout10"]


def test_prompt_tokens_and_labels(tokenizer):
    template = QATemplate()
    row = encode_qa(tokenizer, "Who is Ann Smith?", "Ann Smith", template)
    assert template.prompt("Who?") == "Question: Who?\nAnswer:"
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
    """Oracle: the whole text at once, as open-unlearning tokenises it (BPE, and SentencePiece with its dummy prefix)."""
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
    assert tokenizer.decode(row["input_ids"]) == "<s>10 Apr 2025[INST] Who is Ann? [/INST] Ann</s>"
    assert tokenizer.decode([id for id in row["labels"] if id != -100]) == " Ann</s>"
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    before = template.fingerprint(tokenizer)
    tokenizer.chat_template += " "
    assert template.fingerprint(tokenizer) != before


def test_fingerprint_sees_every_field():
    changed = [QATemplate(question_start="Q"), QATemplate(question_end=" "), QATemplate(answer_start="A")]
    changed += [QATemplate(answer_end="."), QATemplate(chat=True), QATemplate(date_string="1 Jan 2026"), QATemplate()]
    assert len({template.fingerprint() for template in changed}) == len(changed)
    assert QATemplate().fingerprint() == QATemplate().fingerprint()


@pytest.mark.parametrize("side", ["right", "left"])
def test_causal_collator(side):
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4], "labels": [4]}]
    batch = CausalCollator(2, side)(rows)
    short = {"right": ([4, 2, 2], [1, 0, 0], [4, -100, -100]), "left": ([2, 2, 4], [0, 0, 1], [-100, -100, 4])}[side]
    # The real token 2 of the first row is also the padding id: its mask must stay 1.
    assert batch["input_ids"].tolist() == [[1, 2, 3], short[0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], short[1]]
    assert batch["labels"].tolist() == [[-100, 2, 3], short[2]]
    assert {tensor.dtype for tensor in batch.values()} == {batch["input_ids"].long().dtype}


def test_collator_arguments():
    with pytest.raises(InputError, match="left or right"):
        CausalCollator(0, "middle")
    with pytest.raises(InputError, match="pad_token"):
        CausalCollator(None)


def test_unlearn_collator():
    row = lambda *ids: {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(ids)}
    pairs = [{"forget": row(1, 2), "retain": row(3)}, {"forget": row(4), "retain": row(5, 6, 7)}]
    batch = UnlearnCollator(CausalCollator(0))(pairs)
    assert batch["forget"]["input_ids"].tolist() == [[1, 2], [4, 0]]
    assert batch["retain"]["labels"].tolist() == [[3, -100, -100], [5, 6, 7]]


def test_real_tofu(shared_data):
    sizes = {"forget01": (40, 3960), "forget05": (200, 3800), "forget10": (400, 3600)}
    for forget, (gone, kept) in sizes.items():
        splits = load_tofu(shared_data / "tofu", forget)
        assert (len(splits.forget), len(splits.retain), len(splits.full)) == (gone, kept, 4000)
        assert (len(splits.forget_eval), len(splits.retain_eval), len(splits.holdout)) == (gone, 400, gone)
        assert (len(splits.real_authors), len(splits.world_facts)) == (100, 117)
        rows = {
            name: {tuple(row.values()) for row in getattr(splits, name)} for name in ("forget", "retain", "holdout")
        }
        assert not rows["forget"] & rows["retain"] and not rows["holdout"] & (rows["forget"] | rows["retain"])
    with gzip.open(shared_data / "tofu" / "full.jsonl.gz", "rt") as file:
        assert splits.full.to_list() == [json.loads(line) for line in file]
    subset = load_tofu(shared_data / "tofu", "forget10", retain_rows=600)
    assert (len(subset.retain), len(subset.retain_eval), len(subset.full)) == (600, 400, 1000)

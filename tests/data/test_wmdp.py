# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""WMDP corpora, packing, questions and instructions: from local files, from a data folder, and when they are not there."""

import gzip
import json
import re

import datasets
import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from hf_unlearn.data.packing import check_enough, check_tokenizer, pack
from hf_unlearn.data.rows import sample_rows
from hf_unlearn.data.wmdp import load_instructions, load_questions, load_texts, wikitext_articles
from hf_unlearn.errors import InputError
from hf_unlearn.miniature.training import train_tokenizer
from tests.support.models import make_llama


TEXTS = ["the first document", "a second one", "and a third"]
QUESTION = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)
    return path


def as_rows(texts):
    return [{"text": text} for text in texts]


@pytest.fixture
def no_hub(monkeypatch):
    """Fails the test when the Hub is asked."""
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail(f"asked the Hub for {args}"))


@pytest.fixture
def hub(monkeypatch):
    """`hub(value)`: what `load_dataset` returns, or raises; the calls are in the list it returns."""
    calls = []

    def install(value):
        def load(*args, **kwargs):
            calls.append((*args, kwargs["split"]))
            if isinstance(value, Exception):
                raise value
            return value

        monkeypatch.setattr(datasets, "load_dataset", load)
        return calls

    return install


# ---- corpora --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.json", "c.json.gz", "c.parquet"])
def test_every_kind_of_file_gives_the_same_documents(name, tmp_path, no_hub):
    path = tmp_path / name
    if name == "c.parquet":
        Dataset.from_list(as_rows(TEXTS)).to_parquet(path)
    else:
        write_lines(path, as_rows(TEXTS) if "jsonl" in name else [json.dumps(as_rows(TEXTS))])
    rows = load_texts(path)
    assert rows.column_names == ["text"] and rows["text"][:] == TEXTS
    assert load_texts("c", data_dir=tmp_path)["text"][:] == TEXTS


def test_text_files_and_bare_strings(tmp_path, no_hub):
    for number, text in enumerate(TEXTS):
        write_lines(tmp_path / "texts" / f"{number}.txt", [text, "\n\nsecond paragraph\n"])
    assert load_texts(tmp_path / "texts")["text"][:] == [f"{text}\n\nsecond paragraph\n" for text in TEXTS]
    strings = write_lines(tmp_path / "strings.jsonl", [json.dumps(text) + "\n" for text in TEXTS])
    assert load_texts(strings)["text"][:] == TEXTS


@pytest.mark.parametrize(
    "source, place",
    [
        ("cais/wmdp-bio-forget-corpus", "bio_remove_dataset.jsonl"),
        ("cais/wmdp-bio-forget-corpus", "bio_forget.jsonl"),
        ("cais/wmdp-bio-forget-corpus", "corpora/bio-forget-corpus.jsonl.gz"),
        ("cais/wmdp-corpora:cyber-forget-corpus", "cyber-forget-corpus.jsonl"),
        ("cais/wmdp-corpora:cyber-retain-corpus", "wmdp/Cyber_Retain.jsonl"),
        ("cais/wmdp-corpora:bio-retain-corpus", "wmdp-corpora/bio-retain-corpus/train-00000-of-00001.jsonl"),
        ("lab/other", "other.jsonl"),
        ("bio_forget", "bio-forget.jsonl"),
        ("bio_forget", "bio_forget/part1.jsonl"),
    ],
)
def test_a_data_folder_is_searched_before_the_hub(source, place, tmp_path, no_hub):
    write_lines(tmp_path / place, as_rows(TEXTS))
    write_lines(tmp_path / "zebra.jsonl", as_rows(["not this"]))
    assert load_texts(source, data_dir=tmp_path)["text"][:] == TEXTS


def test_another_split_stands_in_and_says_so(tmp_path, caplog, no_hub):
    write_lines(tmp_path / "wikitext-2" / "wiki.test.raw", [" \n = A = \n \n text\n"])
    load_texts("Salesforce/wikitext:wikitext-2-raw-v1", data_dir=tmp_path)
    assert "stands in for the train split" in caplog.text
    caplog.clear()
    load_texts("Salesforce/wikitext:wikitext-2-raw-v1:test", data_dir=tmp_path)
    assert not caplog.text


@pytest.mark.parametrize(
    "source, call",
    [
        ("cais/wmdp-corpora:bio-retain-corpus", ("cais/wmdp-corpora", "bio-retain-corpus", "train")),
        ("cais/wmdp-bio-forget-corpus", ("cais/wmdp-bio-forget-corpus", None, "train")),
        ("lab/corpus::validation", ("lab/corpus", None, "validation")),
    ],
)
def test_the_hub_is_asked_for_name_config_and_split(source, call, hub, tmp_path):
    calls = hub(Dataset.from_list(as_rows(TEXTS)))
    assert load_texts(source)["text"][:] == TEXTS
    assert load_texts(source, data_dir=tmp_path)["text"][:] == TEXTS
    assert calls == [call, call]


def test_questions_come_from_the_test_split(hub):
    calls = hub(Dataset.from_list([QUESTION]))
    assert load_questions("cais/wmdp:wmdp-bio") == [QUESTION]
    assert calls == [("cais/wmdp", "wmdp-bio", "test")]


def test_limit_is_a_seeded_choice_in_order(tmp_path, no_hub):
    texts = [f"document {number:03}" for number in range(100)]
    path = write_lines(tmp_path / "c.jsonl", as_rows(texts))
    first, again, other = (load_texts(path, limit=20, seed=seed)["text"][:] for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 20
    assert first == sorted(first) and first != texts[:20]
    assert load_texts(path, limit=1000)["text"][:] == texts
    with pytest.raises(InputError, match="limit=0"):
        load_texts(path, limit=0)


def test_select_rows_takes_each_row_equally_often():
    rows = Dataset.from_dict({"n": list(range(10))})
    counts = [0] * 10
    for seed in range(400):
        for value in sample_rows(rows, 3, seed)["n"]:
            counts[value] += 1
    assert all(90 <= count <= 150 for count in counts)  # 120 expected, standard deviation 9


# ---- Wikitext -------------------------------------------------------------------------------------------------------
WIKI = " \n = First = \n \n One .\n = 2 and x = \n Two .\n \n = = Part = = \n \n Three .\n \n = Second title = \n \n Four .\n"
ARTICLES = ["= First =\nOne .\n= 2 and x =\nTwo .\n= = Part = =\nThree .", "= Second title =\nFour ."]


def test_wikitext_lines_become_articles(tmp_path, hub):
    assert wikitext_articles(WIKI) == ARTICLES
    assert load_texts(write_lines(tmp_path / "wiki.train.raw", [WIKI]))["text"][:] == ARTICLES
    assert load_texts(write_lines(tmp_path / "crlf.txt", [WIKI.replace("\n", "\r\n")]))["text"][:] == ARTICLES
    # On the Hub every line is a row, and a blank line an empty one.
    hub(Dataset.from_list(as_rows([line if line.strip() else "" for line in WIKI.splitlines(keepends=True)])))
    assert load_texts("Salesforce/wikitext:wikitext-2-raw-v1")["text"][:] == ARTICLES


def test_other_text_is_left_as_it_is(tmp_path):
    text = "Some text .\n \n = Title = \n \n = more"
    assert wikitext_articles(text) == [text]
    path = write_lines(tmp_path / "c.jsonl", as_rows([text, "== not a title =="]))
    assert load_texts(path)["text"][:] == [text, "== not a title =="]


def test_wikitext_2_has_its_published_number_of_articles(shared_data, no_hub):
    """Merity et al. 2017, table 1: 60 articles each in the validation and the test set."""
    folder = shared_data / "lm_text" / "wikitext-2"
    for split, tokens in (("valid", 217646), ("test", 245569)):
        rows = load_texts(folder / f"wiki.{split}.tokens.gz")
        assert len(rows) == 60
        assert all(re.match(r"= [^=].* =\n", text) for text in rows["text"])
        # The published count has one <eos> for every line of the file, blank ones included.
        with gzip.open(folder / f"wiki.{split}.tokens.gz", "rt", encoding="utf-8") as file:
            lines = len(file.readlines())
        assert sum(len(text.split()) for text in rows["text"]) + lines == tokens


# ---- bad corpora ----------------------------------------------------------------------------------------------------
GATED = DatasetNotFoundError("Dataset 'cais/wmdp-bio-forget-corpus' is a gated dataset on the Hub.")


@pytest.mark.parametrize(
    "error, source, messages",
    [
        (GATED, "cais/wmdp-bio-forget-corpus", ["is gated", "form on its dataset page", "hf auth login", "bio_forget.jsonl"]),
        (DatasetNotFoundError("Dataset 'lab/x' is a gated dataset"), "lab/x", ["ask for access", "hf auth login"]),
        (ConnectionError("Couldn't reach 'lab/x' (OfflineModeIsEnabled)"), "lab/x", ["go online", "data_dir"]),
        (DatasetNotFoundError("Dataset 'lab/x' doesn't exist"), "lab/x", ["doesn't exist", "check the name"]),
        (
            ValueError("BuilderConfig 'bio-retian-corpus' not found. Available: ['bio-retain-corpus']\nmore"),
            "cais/wmdp-corpora:bio-retian-corpus",
            ["Available: ['bio-retain-corpus']", "did you mean cais/wmdp-corpora:bio-retain-corpus"],
        ),
    ],
)  # fmt: skip
def test_the_hub_refuses(error, source, messages, hub):
    hub(error)
    with pytest.raises(InputError) as caught:
        load_texts(source)
    assert all(message in str(caught.value) for message in messages)
    assert "\n" not in str(caught.value)


def test_offline_without_data_names_the_cure():
    """The real `datasets`, offline as all tests are: the gated corpus, and one that is not."""
    with pytest.raises(InputError, match="gated .* form .* `hf auth login`.* data_dir as bio_forget.jsonl"):
        load_texts("cais/wmdp-bio-forget-corpus")
    with pytest.raises(InputError, match="go online .unset HF_HUB_OFFLINE., or give data_dir"):
        load_texts("cais/wmdp-corpora:bio-retain-corpus")


def test_a_missing_file_lists_near_names(tmp_path, no_hub):
    write_lines(tmp_path / "bio_forgets.jsonl", as_rows(TEXTS))
    write_lines(tmp_path / "unrelated.jsonl", as_rows(TEXTS))
    with pytest.raises(InputError, match="bio_forget is neither a file, .* has files like bio_forgets.jsonl$"):
        load_texts("bio_forget", data_dir=tmp_path)
    with pytest.raises(InputError, match="has bio_forgets.jsonl, unrelated.jsonl$"):
        load_texts("xyz", data_dir=tmp_path)
    with pytest.raises(InputError, match="missing.jsonl is neither a file"):
        load_texts("folder/missing.jsonl")
    with pytest.raises(InputError, match="the data folder .* does not exist; check data_dir"):
        load_texts("xyz", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.jsonl", ['{"text": "x"}\n', '{"text": \n'], "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", ['{"text": "x"}\n', "\n", '{"body": "x"}\n'], "line 3 has no text but the columns body"),
        ("a.jsonl", ["[1]\n"], "line 1 has no text but a list"),
        ("a.jsonl", ['{"text": null}\n'], "line 1 has no text"),
        ("a.jsonl", [], "holds no text"),
        ("a.jsonl", ['{"text": " \\n"}\n'], "holds no text"),
        ("a.txt", [" \n"], "holds no text"),
        ("a.json", ['{"text": "x"}'], "does not hold a list"),
        ("a.json", ["[1, "], "a.json cannot be read"),
        ("a.parquet", ["no parquet"], "a.parquet cannot be read"),
    ],
)
def test_bad_corpus_files(name, content, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        load_texts(write_lines(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_bad_folders_and_packed_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 100)[:-9])
    with pytest.raises(InputError, match="a.jsonl.gz cannot be read"):
        load_texts(tmp_path / "a.jsonl.gz")
    write_lines(tmp_path / "b.txt", ["x"])
    with pytest.raises(InputError, match=r"files of several kinds \(.jsonl, .txt\)"):
        load_texts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file that ends in"):
        load_texts(tmp_path / "empty")


# ---- packing --------------------------------------------------------------------------------------------------------
class Letters:
    """A tokenizer of one token a letter, with 1 in front."""

    def __call__(self, texts, **_):
        return {"input_ids": [[1, *map(ord, text)] for text in texts]}


def test_no_sequence_crosses_documents():
    # 1 + 9 tokens: two full pieces and half of one; 1 + 8: two and less than half; 1 + 2: short as a whole.
    texts = ["a" * 9, "b" * 8, "cc"]
    packed = pack(texts, Letters(), length=4)
    a, b, c = map(ord, "abc")
    assert packed["input_ids"][:] == [[1, a, a, a], [a] * 4, [a, a], [1, b, b, b], [b] * 4, [1, c, c]]
    assert packed["labels"][:] == packed["input_ids"][:]
    assert packed.column_names == ["input_ids", "labels"]
    assert packed.info.description == (
        "6 sequences of up to 4 tokens (21 tokens) from 3 documents; 1 short pieces dropped (1 tokens)"
    )


@pytest.mark.parametrize("least, lengths", [(4, [4, 4, 4, 4]), (2, [4, 4, 2, 4, 4, 3]), (1, [4, 4, 2, 4, 4, 3])])
def test_min_tokens_holds_for_every_piece(least, lengths):
    packed = pack(["a" * 9, "b" * 8, "cc"], Letters(), length=4, min_tokens=least)
    assert [len(ids) for ids in packed["input_ids"]] == lengths


def test_short_documents_are_sequences_of_their_own():
    packed = pack(["ab", "", "c"], Letters(), length=512)
    assert packed["input_ids"][:] == [[1, 97, 98], [1, 99]]  # the empty one is a lone BOS and predicts nothing
    with pytest.raises(InputError, match="none of 3 documents has 512 tokens"):
        pack(["ab", "", "c"], Letters(), length=512, min_tokens=512)


def test_packing_many_documents_keeps_their_order():
    texts = [chr(97 + number % 26) * (1 + number % 11) for number in range(600)]  # more than one round of tokenising
    packed = pack(texts, Letters(), length=4, min_tokens=2)
    expected = []
    for text in texts:
        ids = [1, *map(ord, text)]
        expected += [piece for at in range(0, len(ids), 4) if len(piece := ids[at : at + 4]) > 1]
    assert packed["input_ids"][:] == expected


@pytest.mark.parametrize("length, least", [(1, None), (4, 5), (4, 0)])
def test_bad_lengths(length, least):
    with pytest.raises(InputError, match="sequences have at least 2 tokens"):
        pack(TEXTS, Letters(), length=length, min_tokens=least)


def test_pack_needs_a_text_column():
    with pytest.raises(InputError, match="has the columns body: pack needs `text`"):
        pack(Dataset.from_dict({"body": TEXTS}), Letters())


def test_packing_wikitext_loses_nothing_but_what_it_counts(shared_data):
    rows = load_texts(shared_data / "lm_text" / "wikitext-2" / "wiki.valid.tokens.gz", limit=8)
    tokenizer = train_tokenizer(rows["text"][:5], vocab_size=400)
    packed = pack(rows, tokenizer, length=512)
    documents = [tokenizer(text)["input_ids"] for text in rows["text"]]
    starts = [ids for ids in packed["input_ids"] if ids[0] == tokenizer.bos_token_id]
    assert len(starts) == 8 and sum(ids.count(tokenizer.bos_token_id) for ids in packed["input_ids"]) == 8
    kept, dropped = sum(map(len, packed["input_ids"])), int(packed.info.description.split("(")[-1].split()[0])
    assert kept + dropped == sum(map(len, documents)) and dropped < 8 * 256
    at = -1
    for ids in packed["input_ids"]:
        at += ids[0] == tokenizer.bos_token_id
        # Every sequence is a part of one document; a short one is its end.
        assert tokenizer.decode(ids[1:]) in tokenizer.decode(documents[at])
        assert len(ids) == 512 or 256 <= len(ids) and ids == documents[at][-len(ids) :]


# ---- questions and instructions -------------------------------------------------------------------------------------
def test_the_published_numbers_of_questions(shared_data, no_hub):
    counts = {
        name: len(load_questions(f"cais/wmdp:wmdp-{name}", data_dir=shared_data)) for name in ("bio", "chem", "cyber")
    }
    assert counts == {"bio": 1273, "chem": 408, "cyber": 1987} and sum(counts.values()) == 3668
    # Found in the folder itself, too.
    assert len(load_questions("cais/wmdp:wmdp-chem", data_dir=shared_data / "wmdp")) == 408
    mmlu = load_questions("cais/mmlu:all", data_dir=shared_data / "mmlu")
    assert len(mmlu) == 14042 and len({row["subject"] for row in mmlu}) == 57
    assert len(load_questions("cais/mmlu:all:dev", data_dir=shared_data)) == 285
    assert all(len(row["choices"]) == 4 and 0 <= row["answer"] < 4 for row in mmlu)


def test_questions_keep_what_they_say(tmp_path):
    rows = [
        QUESTION,
        {**QUESTION, "answer": "B", "subject": "law", "id": 7},
        {**QUESTION, "choices": ["x", "y"], "answer": 0},
    ]
    questions = load_questions(write_lines(tmp_path / "q.jsonl", rows))
    assert questions == [
        QUESTION, {**QUESTION, "answer": 1, "subject": "law"}, {"question": "Which?", "choices": ["x", "y"], "answer": 0}
    ]  # fmt: skip
    assert load_questions(tmp_path / "q.jsonl", limit=1) == [QUESTION]


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"question": "Which?", \n', "is not JSON"),
        (["Which?"], "is a list: a question is an object"),
        ({"question": "Which?", "answer": 0}, "has no choices"),
        ({"question": "Which?", "choices": None}, "has no choices, answer"),
        ({**QUESTION, "question": " "}, "the question must be text"),
        ({**QUESTION, "choices": ["a"]}, "two or more texts"),
        ({**QUESTION, "choices": "abcd"}, "two or more texts"),
        ({**QUESTION, "choices": ["a", 2]}, "two or more texts"),
        ({**QUESTION, "answer": 4}, "an index from 0 to 3 or a letter from A to D, not 4"),
        ({**QUESTION, "answer": -1}, "not -1"),
        ({**QUESTION, "answer": "E"}, "not 'E'"),
        ({**QUESTION, "answer": "a"}, "not 'a'"),
        ({**QUESTION, "answer": 1.0}, "not 1.0"),
        ({**QUESTION, "answer": True}, "not True"),
    ],
)
def test_a_malformed_question_is_named_by_file_and_line(row, message, tmp_path):
    path = write_lines(tmp_path / "q.jsonl", [QUESTION, "\n", row, QUESTION])
    with pytest.raises(InputError, match=message) as caught:
        load_questions(path, limit=1)
    assert str(caught.value).startswith(f"{path}, line 3") and "\n" not in str(caught.value)


def test_no_questions(tmp_path):
    with pytest.raises(InputError, match="holds no question"):
        load_questions(write_lines(tmp_path / "q.jsonl", []))
    with pytest.raises(InputError, match="q2.json, row 2 has no answer"):
        load_questions(write_lines(tmp_path / "q2.json", [json.dumps([QUESTION, {**QUESTION, "answer": None}])]))


def test_instructions(shared_data, tmp_path, no_hub):
    rows = load_instructions("tatsu-lab/alpaca", data_dir=shared_data)
    assert len(rows) == 999 and rows.column_names == ["instruction", "input", "output"]
    first = load_instructions("tatsu-lab/alpaca", data_dir=shared_data, limit=7)
    assert first.to_list() == rows.to_list()[:7]
    path = write_lines(
        tmp_path / "i.jsonl", [{"instruction": "Do it"}, {"instruction": "Now", "input": None, "output": "ok"}]
    )
    assert load_instructions(path).to_list() == [
        {"instruction": "Do it", "input": "", "output": ""}, {"instruction": "Now", "input": "", "output": "ok"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"instruction": "x"}, {"prompt": "x"}], "i.jsonl, line 2 has no instruction"),
        ([{"instruction": "x", "input": 3}], "line 1 has no instruction"),
        (["3\n"], "line 1 has no instruction"),
        ([], "holds no instruction"),
    ],
)
def test_bad_instructions(rows, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_instructions(write_lines(tmp_path / "i.jsonl", rows))


# ---- what does not fit together -------------------------------------------------------------------------------------
def test_a_tokenizer_with_ids_beyond_the_embedding_is_refused(caplog):
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    size = len(tokenizer)
    check_tokenizer(tokenizer, make_llama(vocab_size=size))
    check_tokenizer(tokenizer, make_llama(vocab_size=size + 20))  # embeddings are often padded
    assert not caplog.text
    with pytest.raises(InputError, match=f"ids up to {size - 1} but the model's embedding has {size - 1} rows"):
        check_tokenizer(tokenizer, make_llama(vocab_size=size - 1))
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(InputError, match="use the model's own tokenizer"):
        check_tokenizer(tokenizer, make_llama(vocab_size=size))
    model = make_llama(vocab_size=size + 1)
    model.config.bos_token_id = 5
    check_tokenizer(tokenizer, model)
    assert "begins texts with id 1 and the model's config says 5" in caplog.text


def test_fewer_sequences_than_steps_need():
    rows = Dataset.from_dict({"input_ids": [[1, 2]] * 10})
    check_enough(rows, 2, 5, "the bio forget corpus")
    with pytest.raises(
        InputError, match="the bio forget corpus has 10 sequences but 4 steps of 3 need 12: give it more text"
    ):
        check_enough(rows, 4, 3, "the bio forget corpus")

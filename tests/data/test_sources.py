# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows by name: every kind of file, a data folder, the Hub, and what is said when there is nothing."""

import gzip
import json

import pytest
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from hf_unlearn.data.wmdp import load_texts
from hf_unlearn.errors import InputError
from tests.support.rows import TEXTS, as_rows, write_lines


GATED = DatasetNotFoundError("Dataset 'cais/wmdp-bio-forget-corpus' is a gated dataset on the Hub.")


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


@pytest.mark.parametrize(
    "error, source, messages",
    [
        (
            GATED,
            "cais/wmdp-bio-forget-corpus",
            ["is gated", "form on its dataset page", "hf auth login", "bio_forget.jsonl"],
        ),
        (DatasetNotFoundError("Dataset 'lab/x' is a gated dataset"), "lab/x", ["ask for access", "hf auth login"]),
        (ConnectionError("Couldn't reach 'lab/x' (OfflineModeIsEnabled)"), "lab/x", ["go online", "data_dir"]),
        (DatasetNotFoundError("Dataset 'lab/x' doesn't exist"), "lab/x", ["doesn't exist", "check the name"]),
        (
            ValueError("BuilderConfig 'bio-retian-corpus' not found. Available: ['bio-retain-corpus']\nmore"),
            "cais/wmdp-corpora:bio-retian-corpus",
            ["Available: ['bio-retain-corpus']", "did you mean cais/wmdp-corpora:bio-retain-corpus"],
        ),
    ],
)
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

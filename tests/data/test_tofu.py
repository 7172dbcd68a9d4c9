# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""TOFU: its splits from a folder in every format and from the Hub, and what is said of bad ones."""

import gzip
import json

import pytest

from hf_unlearn.data.tofu import load_tofu
from hf_unlearn.errors import InputError
from tests.support.rows import qa


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

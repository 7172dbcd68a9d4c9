# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files of rows: tables, JSON lines under any name, packed files within bounds, and what is refused in one line."""

import gzip
import json

import pytest

from hf_unlearn.data import formats
from hf_unlearn.data.formats import read_file
from hf_unlearn.errors import InputError


ROWS = [{"question": "Who, then?", "answer": 'She said "no".\nTwice.'}, {"question": "é", "answer": "x;y\tz"}]
CSV = 'question,answer\n"Who, then?","She said ""no"".\nTwice."\n\né,x;y\tz\n'
TSV = 'question\tanswer\nWho, then?\t"She said ""no"".\nTwice."\né\t"x;y\tz"\n'
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows(path, data, encoding="utf-8"):
    path.write_bytes(data if isinstance(data, bytes) else data.encode(encoding))
    return [row for _, row in read_file(path)]


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.csv", CSV),
        ("a.CSV", CSV),
        ("a.tsv", TSV),
        ("a.csv", CSV.replace("\n", "\r\n").replace('no"".\r\n', 'no"".\n')),
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.json", "\n" + LINES),
        ("a.json", json.dumps(ROWS, indent=1)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_kind_of_file_gives_the_same_rows(name, text, packed, encoding, tmp_path):
    data = text.encode(encoding)
    path = tmp_path / (name + ".gz" if packed else name)
    assert rows(path, gzip.compress(data) if packed else data) == ROWS


def test_a_row_is_named_by_the_line_it_begins_in(tmp_path):
    (tmp_path / "a.csv").write_text(CSV)
    assert [where.rpartition(", ")[2] for where, _ in read_file(tmp_path / "a.csv")] == ["line 2", "line 5"]


def test_a_single_row_is_a_file_too(tmp_path):
    assert rows(tmp_path / "a.json", '{"text": "x"}\n') == [{"text": "x"}]


def test_a_long_cell_is_read(tmp_path):
    long = "word " * 100_000
    assert rows(tmp_path / "a.csv", f"id,text\n1,{long}\n") == [{"id": "1", "text": long}]


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("a.csv", "", "has no header"),
        ("a.csv", "question,answer,question\n1,2,3\n", "column 'question' twice"),
        ("a.csv", "question,,answer\n1,2,3\n", "column 2 of the header has no name"),
        ("a.csv", "question,answer\na,b\n\nc\n", "line 4 has 1 cells and the header 2"),
        ("a.csv", "question,answer\na,b,c\n", "line 2 has 3 cells"),
        ("a.csv", "question;answer\na;b\n", "separator may be ';'"),
        ("a.tsv", "question,answer\na,b\n", "separator may be ','"),
        ("a.csv", 'question,answer\na,"b\n', "cannot be read"),
        ("a.csv", "question,answer\na,\xe9\n".encode("latin-1"), "cannot be read"),
        ("a.jsonl", "[" * 100_000, "cannot be read|is not JSON"),
        ("a.json", "{" + '"a":[' * 100_000, "cannot be read"),
        ("a.json", '{"a": 1}\n{"a": 2\n', "line 2 is not JSON"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00" + b"\xff" * 40, "cannot be read"),
        ("a.parquet", b"PAR1" + b"\x00" * 40 + b"PAR1", "cannot be read"),
        ("a.xlsx", b"PK", "ends in '.xlsx': rows are read from .jsonl"),
        ("rows", "text", "ends in 'no suffix'"),
    ],
)
def test_damaged_files_are_one_line(name, data, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        rows(tmp_path / name, data)
    assert "\n" not in str(caught.value)


def test_what_no_text_shrinks_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "UNPACKED_LEAST", 2**16)
    line = json.dumps({"text": "a b c d e f g h"}) + "\n"
    assert len(rows(tmp_path / "a.jsonl.gz", gzip.compress((line * 1000).encode()))) == 1000
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        rows(tmp_path / "b.jsonl.gz", gzip.compress(b" " * 2**22))
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        rows(tmp_path / "b.txt.gz", gzip.compress(b"a" * 2**22))

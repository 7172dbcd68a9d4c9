# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Rows of one file: JSON, JSON lines, CSV, TSV, parquet or text, those of text also packed with gzip."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError, first_line


SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".json", *SEPARATORS, ".parquet", ".txt", ".tokens", ".raw")
# Bytes that a packed file may unpack to: text shrinks five times or so, and what shrinks a thousand times is no text.
UNPACKED_TIMES, UNPACKED_LEAST = 200, 2**26
# Characters of one cell. The reader's own limit, 131072, is shorter than many a document.
LONGEST_CELL = 2**27


def suffix(path: Path) -> str:
    """`rows.jsonl.gz` -> `.jsonl`, in lower case."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_file(path: Path) -> Iterator[tuple]:
    """Yields `(where, row)` as `sources.read_rows` does.

    Raises:
        InputError: a file that cannot be read, or a malformed line (with its number).
    """
    if suffix(path) not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix(path) or 'no suffix'!r}: rows are read from {', '.join(SUFFIXES)}")
    try:
        if suffix(path) == ".parquet":
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                _refuse_twice(file.schema_arrow.names, path)
                yield from numbered(path, (row for batch in file.iter_batches() for row in batch.to_pylist()))
            return
        with _opened(path) as file:
            if suffix(path) in SEPARATORS:
                yield from _table(path, file)
            elif suffix(path) == ".jsonl":
                yield from _lines(path, file)
            elif suffix(path) == ".json":
                yield from _json(path, file)
            else:
                yield str(path), file.read()
    except InputError:
        raise
    # Not JSON, CSV or UTF-8, cut short, not gzip or parquet, nested beyond reading.
    except (ValueError, EOFError, OSError, RecursionError, csv.Error, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); save or download it again") from error


def numbered(where: str | Path, rows: Iterable) -> Iterator[tuple]:
    """`(where, row)` of rows, counted from 1."""
    return ((f"{where}, row {number}", row) for number, row in enumerate(rows, 1))


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file, up to a limit."""

    def __init__(self, path: Path):
        self.path, self.packed = path, gzip.open(path, "rb")
        self.left = max(UNPACKED_TIMES * path.stat().st_size, UNPACKED_LEAST)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        data = self.packed.read(len(buffer))
        self.left -= len(data)
        if self.left < 0:
            raise InputError(
                f"{self.path} unpacks to more than {UNPACKED_TIMES} times its size, which no text does: unpack it "
                "yourself if you trust it"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self):
        self.packed.close()
        super().close()


def _opened(path: Path) -> io.TextIOWrapper:
    # What Windows programs put before the first character (a byte order mark) is no part of the first column's name.
    # Line ends stay as they are: CSV has them inside quotes.
    raw = io.BufferedReader(_Unpacked(path)) if path.name.lower().endswith(".gz") else path.open("rb")
    table = suffix(path) in SEPARATORS
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="" if table else None)


def _lines(path: Path, lines: Iterable[str]) -> Iterator[tuple]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{where} is not JSON ({error}); correct it, or remove it") from error
            yield where, row


def _json(path: Path, file: io.TextIOWrapper) -> Iterator[tuple]:
    text = file.read()
    first = next((line for line in text.splitlines() if line.strip()), "")
    # Many files of rows, TOFU's own too, have a row a line and are called .json.
    if first.startswith("{") and _is_json(first):
        yield from _lines(path, io.StringIO(text))
        return
    rows = json.loads(text)
    if not isinstance(rows, list):
        raise InputError(f"{path} does not hold a list of rows; write one row a line and name it .jsonl")
    yield from numbered(path, rows)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _table(path: Path, file: io.TextIOWrapper) -> Iterator[tuple]:
    separator = SEPARATORS[suffix(path)]
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader(file, delimiter=separator, strict=True)
    header = [name.strip() for name in next(reader, [])]
    if not any(header):
        raise InputError(
            f"{path} has no header: its first line must name the columns, such as question{separator}answer"
        )
    if len(header) == 1 and (other := next((mark for mark in ";\t|," if mark in header[0]), None)):
        raise InputError(
            f"{path} has the one column {header[0][:60]!r}, cut at {separator!r}: its separator may be "
            f"{other!r}; save it with commas as .csv, or with tabs as .tsv"
        )
    if "" in header:
        raise InputError(f"{path}: column {header.index('') + 1} of the header has no name; name it, or remove it")
    _refuse_twice(header, path)
    begin = reader.line_num + 1
    for cells in reader:
        where, begin = f"{path}, line {begin}", reader.line_num + 1
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{where} has {len(cells)} cells and the header {len(header)}: put a cell that holds "
                f"{separator!r} or a line's end in double quotes"
            )
        yield where, dict(zip(header, cells))


def _refuse_twice(columns: list[str], path: Path):
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise InputError(f"{path} has the column {twice!r} twice; rename or remove one")

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Files of rows."""

import gzip
import json


TEXTS = ["the first document", "a second one", "and a third"]


def qa(tag, number):
    return {"question": f"Who is {tag} {number}?", "answer": f"{tag} {number}"}


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

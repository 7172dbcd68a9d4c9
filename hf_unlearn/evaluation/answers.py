# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Answers of a model to a few rows, to be read by people."""

from collections.abc import Iterable, Mapping

from .scoring import generate_ids, prompt_ids


def spread(rows: int, count: int) -> list[int]:
    """At most `count` of so many rows, at equal distances: nobody chose them for what they show."""
    count = min(count, rows)
    return [place * rows // count for place in range(count)]


def answer_rows(
    model, tokenizer, rows: Iterable[Mapping], *, max_new_tokens: int = 48, text_tokens: int = 32
) -> list[dict]:
    """What a model says to tokenised rows, greedily: for each {"prompt", "row" (what the row goes on with), "answer"}.

    A row without a prompt is a text: of its beginning, a third or `text_tokens`, the model is to go on.
    """
    rows = list(rows)
    prompts = [prompt_ids(row) for row in rows]
    begun = [row["input_ids"][: min(text_tokens, max(1, len(row["input_ids"]) // 3))] for row in rows]
    asked = [prompt or text for prompt, text in zip(prompts, begun, strict=True)]
    said = generate_ids(model, tokenizer, asked, max_new_tokens=max_new_tokens)
    text = lambda ids: tokenizer.decode(ids, skip_special_tokens=True).strip()
    return [
        {
            "prompt": text(question) + ("" if prompt else " …"),
            "row": text(row["input_ids"][len(question) :][: None if prompt else max_new_tokens]),
            "answer": text(answer),
        }
        for row, prompt, question, answer in zip(rows, prompts, asked, said, strict=True)
    ]

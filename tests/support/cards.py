# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Lines of Python in a card, run on the folder that the card lies in."""

import re

import torch


CODE = re.compile(r"## How to use it\n.*?```python\n(.*?)```", re.DOTALL)


def load(folder, base, name="path/to/this/model", base_name="path/to/the/base/model"):
    """The `model` of the card in a folder, in evaluation mode, which no line of it asks for.

    `name` and `base_name` are how the card calls the places of the model and of the one that it was made from.
    """
    code = CODE.search((folder / "README.md").read_text()).group(1)
    names = {}
    exec(code.replace(name, str(folder)).replace(base_name, str(base)), names)
    assert not names["model"].training
    return names["model"]


@torch.no_grad()
def assert_same(model, loaded, batch, tolerance=0.0):
    torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, rtol=0, atol=tolerance)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""The card of a checkpoint that a saved update was added to: what onto what, and that nothing was measured."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..runtime.hub import PLACE, is_repo_id, model_license
from ..version import __version__


def transfer_card(record: Mapping, source: Path, model: torch.nn.Module | None) -> str:
    """A card (README.md with a YAML header).

    Args:
        record (`Mapping`): what `unlearning_transfer.json` holds: `delta` (its configuration), `model`, `scale`,
            `other_base` (tensors that were not those that the update was made from).
        source (`Path`): the folder of the checkpoint.
        model (`nn.Module`, *optional*): the checkpoint's model, for its class; None: transformers has no such class.
    """
    from huggingface_hub import ModelCardData

    delta, name = record["delta"], record["model"]
    known = is_repo_id(name)
    license = model_license(name if known else str(source), download=known)
    header = ModelCardData(
        **({"base_model": name, "base_model_relation": "finetune"} if known else {}),
        library_name="transformers",
        tags=["machine-unlearning", "unlearn", "hf_unlearn"],
        **license,
    ).to_yaml()
    # Of a model whose class is unknown to transformers only the reader can say which it is.
    kind = "AutoModelForCausalLM" if model is None else type(model).__name__
    own = model is not None and not type(model).__module__.startswith("transformers.")
    imports = {type(model).__module__ if own else "transformers": [kind]}
    load = [f'model = {kind}.from_pretrained("{PLACE}")']
    if (source / "tokenizer_config.json").is_file():
        imports.setdefault("transformers", []).append("AutoTokenizer")
        load.append(f'tokenizer = AutoTokenizer.from_pretrained("{PLACE}")')
    imports = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(imports.items())]
    usage = "\n".join([*imports, "", *load])
    base = f"{_code(delta.get('base_model') or 'a model that is not named')}"
    base += f" (revision {_code(delta['base_revision'])})" if delta.get("base_revision") else ""
    told = {key: value for key, value in delta.get("settings", {}).items() if value is not None}
    short = lambda value: f"{value:.6g}" if isinstance(value, float) else value
    settings = ", ".join(f"{key} {short(value)}" for key, value in told.items())
    touched, other = len(delta.get("base_sha256", {})), len(record["other_base"])
    foreign = f"{other} of {touched} were not the ones that the update was made from" if other else "the very ones"
    return f"""---
{header}
---

# {_code(name)} with an update

{_code(name)}, to which an update made on {base} was added by hf_unlearn {__version__} (`hf-unlearn transfer`).

| | |
|---|---|
| checkpoint | {_code(name)} |
| update | made on {base} by {_code(delta.get("method") or "a method that is not named")} |
| its settings | {_code(settings or "not told")} |
| its SHA-256 | {_code(delta.get("sha256") or "not told")} |
| scale | {record["scale"]:g} |
| tensors of the checkpoint | {foreign} |
| licence | {_code(license["license"]) if license else "unknown: look up that of the checkpoint"} |

## What was not shown

- Nothing was measured on this model. An update that suits one checkpoint can fail on another: evaluate the result.
- There is no guarantee. Nothing proves that what the update was to remove has left the weights.

Do not rely on this model alone where the removed knowledge can do harm, or to answer a legal request for erasure.

## How to use it

```python
{usage}
```
"""


def _code(text) -> str:
    """A name as a span of code, which ends where it should whatever it holds."""
    return f"`{' '.join(str(text).replace('`', chr(39)).replace('|', '¦').split()) or ' '}`"

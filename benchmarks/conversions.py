# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Names and layouts on disk of every class of transformers: are they found, and does every group come back?

Each class of causal language models, sequence and image classifiers and image-text models is built from its default
config on the meta device, which holds no weights. What saving it would write is what `revert_weight_conversion` of
transformers says. Then, by `Conversion` alone, every weight must have its place on disk in its shape, and every group
that is joined or split must get there and come back in its shapes; of each kind of group the smallest is sent there
and back with random bytes in it, and must come back as it was.
"""

import argparse
import re
import warnings
from pathlib import Path

import torch


ROOT = Path(__file__).resolve().parents[1]
SEED = 0
TASKS = {
    "causal language model": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "sequence classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "image-text-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
# Bytes of a group that is filled; larger ones are compared by their shapes.
LARGEST = 2**30
BLOCK = 65_521  # a prime, so that no layout repeats with it


def classes(task: str) -> dict[str, str]:
    """{name of a class: its model type}."""
    from transformers.models.auto import modeling_auto

    found = {}
    for model_type, names in getattr(modeling_auto, TASKS[task]).items():
        for name in names if isinstance(names, tuple) else (names,):
            found.setdefault(name, model_type)
    return found


def build(name: str, model_type: str) -> torch.nn.Module:
    """The model of the default config, on the meta device."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = getattr(transformers, name)
    config = (kind.config_class or getattr(transformers, CONFIG_MAPPING_NAMES[model_type]))()
    with torch.device("meta"):
        return kind(config)


def examine(make) -> dict:
    """What becomes of a model's names: {"converted": names on disk that memory has not, "groups", "filled", "wrong"}.

    `make()` gives the model; two are made, for whoever loads a checkpoint has not the model that was saved.
    """
    from transformers.core_model_loading import revert_weight_conversion

    from hf_unlearn.runtime.conversions import Conversion

    saved = make()
    memory = saved.state_dict()
    disk = revert_weight_conversion(saved, dict(memory))
    conversion = Conversion(make(), disk)
    wrong, groups = [], {}
    for name, weight in memory.items():
        if name in conversion.renamed:
            places = conversion.renamed[name]
            wrong += [f"{name}: lies on disk in another shape" for at in places if disk[at].shape != weight.shape]
        elif group := conversion.group_of(name):
            # Groups of one kind differ in the numbers of layers alone.
            kind = tuple((re.sub(r"\d+", "N", member), tuple(memory[member].shape)) for member in group)
            groups.setdefault(kind, {})[group] = None
        else:
            wrong.append(f"{name}: not found on disk")
    filled = 0
    for group in (group for kind in groups.values() for group in kind):
        wrong += there_and_back(conversion, {name: memory[name] for name in group}, disk)
    for group in (next(iter(kind)) for kind in groups.values()):
        if sum(memory[name].numel() for name in group) <= LARGEST:
            filled += 1
            wrong += there_and_back(conversion, {name: filled_as(memory[name].shape) for name in group}, disk)
    return {
        "converted": sum(name not in memory for name in disk),
        "groups": sum(map(len, groups.values())),
        "kinds": len(groups),
        "filled": filled,
        "wrong": wrong,
    }


def filled_as(shape: torch.Size) -> torch.Tensor:
    """Random bytes in a shape."""
    block, size = torch.randint(256, (BLOCK,), dtype=torch.uint8), shape.numel()
    return block.repeat(-(-size // BLOCK))[:size].reshape(shape)


def there_and_back(conversion, weights: dict[str, torch.Tensor], disk: dict[str, torch.Tensor]) -> list[str]:
    """What is wrong with a group that is sent to the disk's form and back; values count where there are any."""
    sent = conversion.to_disk(weights)
    wrong = [f"{at}: made in another shape" for at, tensor in sent.items() if disk[at].shape != tensor.shape]
    back = conversion.to_memory(sent)
    for name, weight in weights.items():
        if name not in back or back[name].shape != weight.shape:
            wrong.append(f"{name}: does not come back in its shape")
        elif not weight.is_meta and not torch.equal(back[name], weight):
            wrong.append(f"{name}: does not come back as it was")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default=str(ROOT / "benchmarks/results/conversions.json"))
    parser.add_argument("--types", nargs="+", metavar="TYPE", help="only these model types (default: all)")
    arguments = parser.parse_args()
    from transformers.utils import logging

    from hf_unlearn.errors import first_line
    from hf_unlearn.runtime.provenance import record_run

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    torch.manual_seed(SEED)
    found = {"as_in_memory": {}, "converted": {}, "wrong": {}, "not_built": {}}
    for task in TASKS:
        for name, model_type in classes(task).items():
            if arguments.types and model_type not in arguments.types:
                continue
            try:
                build(name, model_type)
            except Exception as error:  # whatever a default config, or a library that is not installed, makes it raise
                found["not_built"][name] = f"{type(error).__name__}: {first_line(error)[:120]}"
                continue
            try:
                told = examine(lambda name=name, model_type=model_type: build(name, model_type))
            except Exception as error:
                told = {"wrong": [f"{type(error).__name__}: {first_line(error)[:200]}"]}
            wrong = told.pop("wrong")
            if wrong:
                found["wrong"][name] = wrong[:3]
                print(f"{name}: {wrong[:3]}", flush=True)
            else:
                found["converted" if told["converted"] else "as_in_memory"][name] = told
    summary = {outcome: len(names) for outcome, names in found.items()}
    summary |= {key: sum(told[key] for told in found["converted"].values()) for key in ("groups", "kinds", "filled")}
    found["as_in_memory"] = sorted(found["as_in_memory"])
    print(", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in summary.items()))
    record_run(arguments.output, {"seed": SEED, "summary": summary, **found})


if __name__ == "__main__":
    main()

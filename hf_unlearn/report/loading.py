# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Lines of Python that load a saved model as it is, for its card."""

from dataclasses import dataclass

import torch

from ..runtime.checkpoints import needs_merging
from ..runtime.modules import is_peft


# Endings of the names of transformers' classes, and what the Hub calls their task.
TASKS = {
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
    "ForSequenceClassification": "text-classification",
}


@dataclass(frozen=True)
class Loading:
    """What is needed to load a saved model; by default a causal language model and its tokenizer."""

    module: str = "transformers"  # where the model's class is imported from; of an adapter that of the model under it
    name: str = "AutoModelForCausalLM"  # its name
    tokenizer: bool = True  # whether one is saved beside it
    adapter: bool = False  # whether the folder holds the weights of a PEFT adapter alone
    own_type: bool = False  # whether PEFT knows the adapter's type from this package
    base_changed: bool = False  # whether the weights under the adapter have changed too
    labels: int | None = None  # number of classes, where an adapter of a classifier brings a head

    @classmethod
    def of(cls, model: torch.nn.Module, *, tokenizer: bool, own_update: bool) -> "Loading":
        """What a model needs that `save_pretrained` is about to save.

        `own_update`: whether the method changed weights itself (`Method.own_update`). Under an adapter that can be
        merged they are saved with it as one model (`save_merged`), under others not at all.
        """
        adapter = next(iter(model.peft_config.values())) if is_peft(model) else None
        plain = model if adapter is None else model.get_base_model()
        adapter = None if needs_merging(model, own_update) else adapter
        # FSDP2 puts a class of its own before the model's.
        kind = next(one for one in type(plain).__mro__ if not one.__module__.startswith("torch."))
        module = "transformers" if kind.__module__.startswith("transformers.") else kind.__module__
        if adapter is None:
            return cls(module, kind.__name__, tokenizer)
        own_type = type(adapter).__module__.split(".")[0] == __name__.split(".")[0]
        labels = plain.config.num_labels if kind.__name__.endswith("Classification") else None
        return cls(module, kind.__name__, tokenizer, True, own_type, own_update, labels)

    @property
    def task(self) -> str | None:
        """What the Hub calls it."""
        return next((task for ending, task in TASKS.items() if self.name.endswith(ending)), None)

    def code(self, place: str, base: str) -> str:
        """Imports, then `model` and, where one was saved, `tokenizer`.

        `place` is the folder or Hub id of the saved model, `base` that of the model that an adapter is put on.
        """
        names = {self.module: [self.name]}
        lines = [f'model = {self.name}.from_pretrained("{place}")']
        if self.adapter:
            names["peft"] = ["PeftModel"]
            # The base model's own head may be for other classes.
            head = "" if self.labels is None else f", num_labels={self.labels}, ignore_mismatched_sizes=True"
            lines = [f'base = {self.name}.from_pretrained("{base}"{head})']
            if self.base_changed:
                names["hf_unlearn"] = ["UpdateDelta"]
                lines.append(f'UpdateDelta.from_pretrained("{place}").apply_to(base)')
            lines.append(f'model = PeftModel.from_pretrained(base, "{place}")')
        if self.tokenizer:
            names.setdefault("transformers", []).append("AutoTokenizer")
            lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}")')
        imports = [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
        if self.own_type and not self.base_changed:
            imports.insert(0, "import hf_unlearn  # PEFT learns of the adapter's type")
        return "\n".join([*imports, "", *lines])

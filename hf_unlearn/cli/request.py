# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Request of `hf-unlearn unlearn`: the arguments and the YAML, checked before anything is loaded."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import yaml

from ..errors import InputError
from ..experiments.line import METHODS
from ..experiments.settings import NUMBER, read_yaml
from ..methods.base import Method
from ..methods.first_order import BASELINES, FirstOrder
from ..methods.kfade import KFade
from ..methods.step_search import AUTO
from ..runtime.fields import Range, check_fields
from ..runtime.hub import public_name
from ..trainer.config import UnlearnConfig


# Methods of image classifiers: the recipes of Fast-NTK have their data and tuners.
CLASSIFIERS = ("fast_ntk", "max_loss", "random_label")
NAMES = tuple(name for name in (*METHODS, *BASELINES) if name not in (*CLASSIFIERS, "first_order"))
PROMPTS = ("template", "chat", "system_prompt")
# Settings of `UnlearnConfig` and of methods that the command decides, and where a person says them.
OWN = {
    "output_dir": "--output",
    **dict.fromkeys(("push_to_hub", "hub_model_id"), "--push"),
    **{name: f"--{name}" for name in (*PROMPTS, "kl_limit")},
}
# A model whose retained tokens are 5 % less likely than before is still the model that it was.
KL_LIMIT = 0.05
# What K-FADE is asked for where a person says nothing: chosen on pretrained models, see docs/unlearn.md.
KFADE = {"objective": "margin", "fisher": "probe", "steps": 4}
# What is chosen on some rows costs a little more on others.
SHARE = 0.9


@dataclass
class Request:
    """What is asked for: arguments of the command, or keys of its YAML.

    Args:
        model: name or folder.
        forget, retain: files of rows.
        method: one of `NAMES`.
        template, chat, system_prompt: how rows become prompts, see `UnlearnConfig`.
        describe: what is removed, in plain words, for the card; or a dict, see `UnlearnTrainer`.
        kl_limit: nats per retained token above which no model is written.
        output: folder of what is written.
        push: Hub repository to publish to.
        settings: fields of the method and of `UnlearnConfig`, by name.

    Raises:
        InputError: a value of another type, an unknown method, or settings that are none.
    """

    model: str
    forget: str
    retain: str | None = None
    method: str = "kfade"
    template: str | dict | None = None
    chat: bool = False
    system_prompt: str | None = None
    describe: str | dict | None = None
    kl_limit: float | None = None
    output: str = "outputs/unlearn"
    push: str | None = None
    settings: dict = field(default_factory=dict)

    def __post_init__(self):
        check_fields(Request, vars(self), {"kl_limit": Range(above=0)})
        if self.method not in NAMES:
            other = "; for classifiers see recipes/fast_ntk_cifar10.py" if self.method in CLASSIFIERS else ""
            raise InputError(f"no method {self.method}: {suggestion(self.method, NAMES)}{other}")
        if self.kl_limit is not None and self.retain is None:
            raise InputError("kl_limit is a limit on what happens to rows to keep: give --retain, or leave it out")
        self.kind = METHODS.get(self.method, FirstOrder)
        fields = {field.name for field in dataclasses.fields(self.kind)}
        own = fields - {"objective"} if self.kind is FirstOrder else fields
        arguments = {field.name for field in dataclasses.fields(UnlearnConfig) if field.init}
        for name in self.settings:
            if name in OWN:
                raise InputError(f"{name} is an argument of the command: give {OWN[name]}")
            if name not in own | arguments:
                raise InputError(f"no setting {name}: {suggestion(name, own | arguments, own)}")
        self.of_method = {name: value for name, value in self.settings.items() if name in own}
        self.arguments = {name: value for name, value in self.settings.items() if name not in own}

    @property
    def limit(self) -> float | None:
        """Nats per retained token; None where there are no rows to measure it on."""
        if self.retain is None:
            return None
        return KL_LIMIT if self.kl_limit is None else self.kl_limit

    @property
    def title(self) -> str:
        """Of the report: what is removed, in the person's own words where there are some."""
        told = self.describe.get("forget") if isinstance(self.describe, dict) else self.describe
        return f"Unlearned: {told}" if told else f"{public_name(self.model)}, unlearned"

    @property
    def of_prompts(self) -> dict:
        """Fields of `UnlearnConfig`: how rows become prompts, where it was said."""
        return {name: value for name in PROMPTS if (value := getattr(self, name)) is not None and value is not False}

    def make_method(self) -> Method:
        """The method with its settings; K-FADE's damping and length are chosen by measuring where none are given.

        Raises:
            InputError: values out of range, or a method that needs rows to keep where there are none.
        """
        if self.kind is FirstOrder:
            method = FirstOrder(self.method, **self.of_method)
        elif self.kind is KFade:
            method = KFade(**self.of_kfade)
        else:
            method = self.kind(**self.of_method)
        if method.needs_retain and self.retain is None:
            free = [name for name, baseline in BASELINES.items() if name in NAMES and not baseline.retain]
            raise InputError(
                f"{method.label} needs rows to keep: give --retain, or --method {' or '.join(free)}, which needs none "
                "and promises nothing"
            )
        return method

    @property
    def of_kfade(self) -> dict:
        """Settings of K-FADE: those that are given, and what the command asks for where a person says nothing."""
        KFade.check_values(self.of_method)
        settings = KFADE | {"kl_limit": self.limit} | self.of_method
        if not {"step_norm", "kl_budget"} & self.of_method.keys():
            damping = settings.get("damping", AUTO)
            settings["damping"] = [damping] if isinstance(damping, int | float) else damping
            settings["kl_budget"] = SHARE * (self.limit or KL_LIMIT) / settings["steps"]
        return settings


def suggestion(name: str, known: Iterable[str], told: Iterable[str] = ()) -> str:
    """Did you mean, or what there is; `told` are those worth telling, where `known` are too many."""
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(sorted(told or known))}" + (" and the fields of UnlearnConfig" if told else "")


def read_request(options) -> Request:
    """The request of the arguments, which go before the keys of `--config`.

    Raises:
        InputError: no model or no rows to forget, a key that does not exist, a setting that is not key=value, or as
            `Request`.
    """
    written = read_yaml(options.config, "") if options.config else {}
    names = [field.name for field in dataclasses.fields(Request)]
    for key in written:
        if key not in names:
            raise InputError(f"{options.config}: no key {key}: {suggestion(str(key), names)}")
    given = {name: getattr(options, name) for name in names if name != "settings"}
    request = written | {name: value for name, value in given.items() if value is not None and value is not False}
    settings = written.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise InputError(f"{options.config}: settings: give them by name, not {settings!r}")
    request["settings"] = {**settings, **dict(map(parse_setting, options.settings))}
    for name, what in (("model", "the model to unlearn from"), ("forget", "a file of rows to forget")):
        if not request.get(name):
            raise InputError(f"--{name} is missing: give {what}")
    return Request(**request)


def parse_setting(text: str) -> tuple[str, object]:
    """`steps=4` as name and value; values are YAML's, but that 1e-8 is a number here.

    Raises:
        InputError: no setting, or no value of YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise InputError(f"{text!r} is no setting: write key=value, as steps=4")
    if NUMBER.fullmatch(value):
        return name, float(value)
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{text!r} has no value that YAML can read: quote it") from error

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Adapter types of this package, made known to PEFT.

`peft.PeftType` is a closed enumeration and `register_peft_method` takes no name outside it, so a type is first
appended to the enumeration. A plain string would do for PEFT, but transformers' own `load_adapter` reads
`peft_type.value`. tests/test_peft_types.py names every private attribute relied on.
"""

import importlib
import sys
import warnings


PACKAGE = __name__.rpartition(".")[0]


def add_peft_type(name: str, config_class: type, model_class: type):
    """Make PEFT read and write adapters of a type; nothing happens when it already does.

    The `name` is in lower case, in upper case in adapter_config.json; the `prefix` of the model class is `name + "_"`.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType, register_peft_method

    if name.upper() not in PeftType.__members__:
        member = str.__new__(PeftType, name.upper())
        member._name_ = member._value_ = name.upper()
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType)
        # EnumType.__setattr__ refuses to set members.
        type.__setattr__(PeftType, member.name, member)
        PeftType._member_names_.append(member.name)
        PeftType._member_map_[member.name] = PeftType._value2member_map_[member.value] = member
    if PeftType[name.upper()] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_class, model_cls=model_class)


def add_types_with_peft():
    """Add the types now if PEFT is imported, else as soon as it is: `import hf_unlearn` alone imports nothing heavy.

    So `PeftModel.from_pretrained` knows them after `import hf_unlearn`, before or after `import peft`.
    """
    if getattr(sys.modules.get("peft"), "PeftModel", None) is not None:
        _add_types()
    elif not any(isinstance(finder, _AfterPeft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterPeft())


class _AfterPeft:
    """Import hook: finds `peft` as the other finders do, and imports the tuners once `peft` has run."""

    def find_spec(self, name, path=None, target=None):
        if name != "peft":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        # Availability checks ask for the spec without importing, so the hook stays until the module is executed.
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module):
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    _add_types()

            spec.loader.exec_module = execute_and_add
        return spec


def _add_types():
    try:
        # When the tuners themselves are importing peft, this finds them half imported and they finish alone.
        importlib.import_module(f"{PACKAGE}.tuners")
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        # Whoever imports peft for something else goes on without our adapters.
        warnings.warn(f"this peft does not take the adapters of {PACKAGE}: {error}", stacklevel=2)

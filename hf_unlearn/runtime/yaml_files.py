# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""YAML of people: plain values, of a bounded size also where aliases stand for much."""

from pathlib import Path

import yaml

from ..errors import InputError


YAML_BYTES = 2**18
VALUES = 10_000  # with every alias written out
DEPTH = 32


class _Loader(yaml.SafeLoader):
    """Gives up at `DEPTH`: what is nested by the thousand would be read for minutes before it is refused."""

    depth = 0

    def compose_node(self, parent, index):
        if self.depth >= DEPTH:
            raise InputError(f"{self.name} is nested deeper than {DEPTH} levels: make it flatter")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


def parse_yaml(content: bytes, source: str | Path):
    """The value of a YAML text; messages say that it comes from `source`.

    Raises:
        InputError: not YAML or not UTF-8, a tag of Python, a key twice, or more than `VALUES` values, aliases written
            out, nested deeper than `DEPTH`.
    """
    if len(content) > YAML_BYTES:
        raise InputError(f"{source} has {len(content)} bytes: a configuration has {YAML_BYTES} at the most")
    try:
        loader = _Loader(content.decode("utf-8"))
        loader.name = source
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, (), source)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # also of dates and numbers that are none
        if isinstance(error, InputError):
            raise
        raise InputError(f"{source} is not YAML: {' '.join(str(error).split())[:300]}") from error


def _count(node, known: dict[int, int], above: tuple[int, ...], source) -> int:
    """Values of a node, an alias counted wherever it stands."""
    if id(node) in above:
        raise InputError(f"{source}: an alias stands inside what it is the name of: write it out")
    if id(node) in known:
        return known[id(node)]
    if len(above) >= DEPTH:
        raise InputError(f"{source} is nested deeper than {DEPTH} levels: make it flatter")
    above, count = (*above, id(node)), 1
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1 and key != "<<"]:
            raise InputError(f"{source}: the key {twice[0]!r} stands twice in one place: keep one of them")
        count += sum(_count(part, known, above, source) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count(part, known, above, source) for part in node.value)
    if count > VALUES:
        raise InputError(f"{source} has more than {VALUES} values, aliases written out: make it smaller")
    known[id(node)] = count
    return count

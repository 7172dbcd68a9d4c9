# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Templates of the package, filled in."""

import functools
from collections.abc import Mapping

from .formats import format_settings, format_value


@functools.cache
def _environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_unlearn", "templates"),
        autoescape=lambda name: name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"settings": format_settings, "value": format_value}
    return environment


def render(name: str, context: Mapping) -> str:
    """The template `name`; in HTML values are escaped, and a name that the context lacks is an error."""
    return _environment().get_template(name).render(context)

# Copyright 2026 The hf_unlearn authors. Licensed under the Apache License, Version 2.0.
"""Templates of the package, filled in."""

import functools
from collections.abc import Mapping

from .formats import Markdown, escape_markdown, fenced, format_settings, format_value, visible
from .tables import markdown_table


FILTERS = {
    **{"settings": format_settings, "value": format_value},
    **{"markdown": Markdown, "fenced": fenced, "table": markdown_table},
}


@functools.cache
def _environment(html: bool):
    import jinja2

    # The last thing done to every value that a template prints; jinja escapes HTML after it.
    escape = visible if html else escape_markdown
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_unlearn", "templates"),
        autoescape=html,
        finalize=lambda value: escape(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    return environment


def render(name: str, context: Mapping) -> str:
    """The template `name`; values are escaped for HTML or Markdown, and a name that the context lacks is an error.

    In Markdown `| markdown` marks a value that is to stay as it is, `| fenced` makes a block of code of it, and
    `header | table(body)` a table of texts.
    """
    return _environment(name.endswith(".html")).get_template(name).render(context)

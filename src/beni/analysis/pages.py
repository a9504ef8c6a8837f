"""HTML pages from the templates beside this file: one look, nothing loaded from outside, all that is shown escaped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from beni.analysis import formats
from beni.runs.read import plain

_FILTERS = (
    formats.score,
    formats.signed,
    formats.count,
    formats.duration,
    formats.gib,
    formats.share,
    formats.grid,
    plain,
)


def render(template: str, values: Mapping[str, Any]) -> str:
    """The text of a page: a template by its file name, filled with plain values.

    Raises:
        jinja2.UndefinedError: when the template asks for a value that is not given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    return environment.get_template(template).render(values)

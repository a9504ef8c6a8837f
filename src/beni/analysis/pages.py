"""HTML pages from the templates beside this file: one look, nothing loaded from outside, all that is shown escaped; and
Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from beni.analysis import formats
from beni.redact import redacted
from beni.runs.read import plain

_MARKUP = re.compile(r"[\\\\`*\[\]|]")
"""What would begin markup, or end a cell, of Markdown; names are full of underscores, which inside words do not."""

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
    return _environment(autoescape=True).get_template(template).render(values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """The text of a Markdown file, as ``render``. Nothing is escaped by itself: the template sends what a run wrote
    through ``line`` or ``cell``.
    """
    environment = _environment(autoescape=False)
    environment.filters |= {"line": line, "cell": cell}
    return environment.get_template(template).render(values)


def line(value: object) -> str:
    """A value as text of one line that is no markup."""
    text = " ".join(redacted(plain(value)).split())
    return _MARKUP.sub(lambda found: "\\" + found[0], text).replace("<", "&lt;")


def cell(value: object) -> str:
    """A value as a cell of a table."""
    return line(formats.MISSING if value is None else value)


def _environment(autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({function.__name__: function for function in _FILTERS})
    return environment

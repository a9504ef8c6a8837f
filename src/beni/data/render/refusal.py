"""What a chat template raises, as an error that names the template and what it said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from beni.data.sample import Sample
from beni.errors import DataError

FAILED = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What expressions of a template raise at values of another kind than they were written for."""


@contextmanager
def explained(sample: Sample, settings: Mapping[str, Any], roles: str) -> Iterator[None]:
    """Around rendering a conversation of such roles.

    Raises:
        DataError: instead of whatever the template raises; names template, sample and what was said.
    """
    name = settings["name"]
    try:
        yield
    except TemplateSyntaxError as error:
        raise DataError(
            f"template={name} is no Jinja template: {error.message} (line {error.lineno})\n"
            "  fix: correct template.jinja, or set template=chatml"
        ) from error
    except TemplateError as error:
        fix = "template.system=null" if settings["system"] else "template=chatml"
        raise DataError(f"{sample}: template={name} refuses the roles {roles}: {error}\n  fix: set {fix}") from error
    except FAILED as error:
        written = "template.jinja" if settings["jinja"] else "the template of the llm"
        raise DataError(
            f"{sample}: template={name} fails at the roles {roles}: {type(error).__name__}: {error}\n"
            f"  fix: correct {written}, or set template=chatml"
        ) from error

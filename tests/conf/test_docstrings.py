"""A docstring is a whole sentence: it can be read without the name above it and the docstring before it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from beni.paths import PACKAGE

FRAGMENT = re.compile(
    r"(Of|As|With|By|And|Also|Then|Likewise|Same|The same|That of|Those of|From lists|In the order|In which|In place)\b"
)
"""Beginnings that lean on what stands before."""


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_docstring_does_not_lean_on_what_stands_before_it(file: Path) -> None:
    nodes = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, DEFINITIONS)]
    said = [(node.name, ast.get_docstring(node) or "") for node in nodes]
    assert [(name, text) for name, text in said if FRAGMENT.match(text)] == []


DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

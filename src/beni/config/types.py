"""Whether a value from YAML fits an annotation, for the annotations that configs use, ranges included."""

from __future__ import annotations

import ast
from typing import Any

from beni.config.ranges import AtLeast, Example, FieldsOf, Range, metadata
from beni.config.suggest import closest


def fits(value: Any, annotation: str) -> bool:
    """``value`` against the source text of a type: scalars, Literal, unions, list, tuple, dict, None, Any, and
    ``Annotated`` with the ranges of config/ranges.py.

    An int fits float (YAML writes ``1`` for ``1.0``); a bool fits only bool. An annotation outside this list accepts
    everything, since it is then the part's own business.
    """
    return _fits(value, ast.parse(annotation, mode="eval").body)


def expectation(annotation: str) -> str:
    """An annotation in words: ``int | None`` -> ``a whole number or null``."""
    return " or ".join(_words(node) for node in _alternatives(ast.parse(annotation, mode="eval").body))


def example(annotation: str, value: Any = None) -> str:
    """Something that fits, as one writes it in an override; for a misspelt choice the one most like ``value``."""
    choices = [option for node in _alternatives(ast.parse(annotation, mode="eval").body) for option in _examples(node)]
    return closest(str(value), choices, cutoff=0.5) or choices[0]


def mended(value: Any, annotation: str) -> str | None:
    """What ``value`` was probably meant to be, as one writes it in an override; None where nothing is near.

    A whole number that was written as another (``1e3``, ``'8'``), or a list of which some items do not fit.
    """
    if isinstance(value, float) and value.is_integer() and fits(int(value), annotation):
        return str(int(value))
    if isinstance(value, str) and value.isdecimal() and fits(int(value), annotation):
        return value
    for node in _alternatives(ast.parse(annotation, mode="eval").body):
        match node:
            case ast.Subscript(value=ast.Name(id="list"), slice=item) if isinstance(value, list) and value:
                first = _examples(item)[0].split()[0]
                good = [str(one) if _fits(one, item) else first for one in value]
                return None if "." in first and not first[0].isdigit() else f"[{', '.join(good)}]"
    return None


def mapping(annotation: str) -> tuple[list[str] | None, str] | None:
    """The keys that a mapping of an annotation may have (None for any), and the annotation of its values.

    None for an annotation that takes no mapping.
    """
    for node in _alternatives(ast.parse(annotation, mode="eval").body):
        annotated = _annotated(node)
        match annotated[0] if annotated else node:
            case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, value])):
                literal = isinstance(key, ast.Subscript) and ast.unparse(key.value) == "Literal"
                return _examples(key) if literal else None, ast.unparse(value)
    return None


def owner_of_fields(annotation: str) -> str | None:
    """The dataclass that a mapping has its keys from (``FieldsOf``), by its dotted path; None for other annotations."""
    if annotated := _annotated(ast.parse(annotation, mode="eval").body):
        return next((one.path for one in annotated[1] if isinstance(one, FieldsOf)), None)
    return None


NAMES = {
    "int": ("a whole number", "1"),
    "float": ("a number", "0.1"),
    "bool": ("true or false", "true"),
    "str": ("text", "..."),
    "list": ("a list", "[...]"),
    "tuple": ("a list", "[...]"),
    "dict": ("a mapping", "{...}"),
}


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _annotated(node: ast.expr) -> tuple[ast.expr, list[Range | Example | FieldsOf]] | None:
    """The type and the ranges of ``Annotated[type, range, ...]``; None for every other node."""
    match node:
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, *rest])):
            return kind, metadata(rest)
    return None


def _words(node: ast.expr) -> str:
    if annotated := _annotated(node):
        kind, ranges = annotated
        bounds = " and ".join(one.describe() for one in ranges if isinstance(one, Range))
        if not bounds:
            return _words(kind)
        words = _words(kind)
        if words == NAMES["float"][0] and "at most" not in bounds and "below" not in bounds:
            words = "a finite number"
        return f"{words}{' ' if bounds.startswith(('above', 'below')) else ' of '}{bounds}"
    if node_mapping := mapping(ast.unparse(node)):
        keys, values = node_mapping
        whose = f"from some of {', '.join(keys)} " if keys else ""
        return f"a mapping {whose}to {expectation(values)}" if values != "Any" else "a mapping"
    match node:
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if name in NAMES:
            return NAMES[name][0]
        case ast.Subscript(value=ast.Name(id="Literal")):
            options = _examples(node)
            return f"one of {', '.join(options)}" if len(options) > 1 else options[0]
        case ast.Subscript(value=ast.Name(id="list"), slice=item) if "Annotated" in ast.unparse(item):
            return f"a list, each {_words(item)}"
        case ast.Subscript(value=ast.Name(id=name)) if name in NAMES:
            return f"{NAMES[name][0]} ({ast.unparse(node)})"
    return ast.unparse(node)


def _examples(node: ast.expr) -> list[str]:
    if annotated := _annotated(node):
        kind, ranges = annotated
        given = [one.value for one in ranges if isinstance(one, Example)]
        bounds = [f"{one.bound:g} or more" for one in ranges if isinstance(one, AtLeast)]
        return given or bounds or _examples(kind)
    match node:
        case ast.Constant(value=None):
            return ["null"]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return [str(ast.literal_eval(o)) for o in (choices.elts if isinstance(choices, ast.Tuple) else [choices])]
        case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)) if name in NAMES:
            return [NAMES[name][1]]
    return ["..."]


def _fits(value: Any, node: ast.expr) -> bool:
    if annotated := _annotated(node):
        kind, ranges = annotated
        return _fits(value, kind) and all(one.holds(value) for one in ranges if isinstance(one, Range))
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id=name):
            return _fits_name(value, name)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            options = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return any(value == ast.literal_eval(o) and type(value) is type(ast.literal_eval(o)) for o in options)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(v, item) for v in value)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            if not isinstance(value, list | tuple):
                return False
            if len(items) == 2 and isinstance(items[1], ast.Constant) and items[1].value is ...:
                return all(_fits(v, items[0]) for v in value)
            return len(value) == len(items) and all(_fits(v, i) for v, i in zip(value, items, strict=True))
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    return True


def _fits_name(value: Any, name: str) -> bool:
    if name == "bool":
        return isinstance(value, bool)
    if name == "int":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "float":  # NaN is in every range and in none: nobody means it
        return isinstance(value, int | float) and not isinstance(value, bool) and value == value
    if name in ("str", "list", "dict"):
        return isinstance(value, {"str": str, "list": list, "dict": dict}[name])
    return True

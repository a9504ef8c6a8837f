"""Whether a value from YAML fits an annotation, for the annotations that configs use."""

from __future__ import annotations

import ast
from typing import Any


def fits(value: Any, annotation: str) -> bool:
    """``value`` against the source text of a type: scalars, Literal, unions, list, tuple, dict, None, Any.

    An int fits float (YAML writes ``1`` for ``1.0``); a bool fits only bool. An annotation outside this list accepts
    everything, since it is then the part's own business.
    """
    return _fits(value, ast.parse(annotation, mode="eval").body)


def _fits(value: Any, node: ast.expr) -> bool:
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
    if name == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if name in ("str", "list", "dict"):
        return isinstance(value, {"str": str, "list": list, "dict": dict}[name])
    return True

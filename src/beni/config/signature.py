"""The signature of a ``_target_``, read from its source without importing it.

Parts import torch and transformers; a misspelt key must not cost their two seconds. So the target's file is parsed
(``ast``), and the class's ``__init__`` or the function gives the keys, their annotations and whether they have a
default. Convention (beni/stage.py): arguments before ``*`` are handed over while building, those after it are keys of
the YAML.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path


@dataclass(frozen=True)
class Key:
    """One key of a part's YAML.

    Attributes:
        annotation: source text of the type, for instance ``int | Literal['auto']``.
        required: True when the signature gives no default.
    """

    name: str
    annotation: str
    required: bool


@cache
def keys_of(target: str) -> dict[str, Key]:
    """Dotted path -> the keys its YAML may carry.

    Raises:
        LookupError: when the module or the name in it does not exist; the message says which.
    """
    arguments = _arguments(target)
    if arguments is None:
        return {}
    return {
        a.arg: Key(a.arg, ast.unparse(a.annotation) if a.annotation else "Any", default is None)
        for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    }


@cache
def handed_names(target: str) -> tuple[str, ...]:
    """Dotted path -> the names of the arguments before ``*``, ``self`` excluded.

    Raises:
        LookupError: as ``keys_of``.
    """
    arguments = _arguments(target)
    return () if arguments is None else tuple(a.arg for a in arguments.args if a.arg != "self")


@cache
def fields_of(target: str) -> dict[str, Key]:
    """Dotted path of a dataclass -> its fields.

    Raises:
        LookupError: as ``keys_of``.
    """
    module, _, name = target.rpartition(".")
    body = _definition(module, name, target).body
    fields = [n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {
        n.target.id: Key(n.target.id, ast.unparse(n.annotation), n.value is None)
        for n in fields
        if isinstance(n.target, ast.Name)
    }


def _arguments(target: str) -> ast.arguments | None:
    """The arguments of a function, or of a class's ``__init__``; None for a class without one."""
    module, _, name = target.rpartition(".")
    node = _definition(module, name, target)
    if isinstance(node, ast.FunctionDef):
        return node.args
    inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    return inits[0].args if inits else None


def _definition(module: str, name: str, target: str) -> ast.ClassDef | ast.FunctionDef:
    path = _source(module)
    if path is None:
        raise LookupError(f"{target}: there is no module {module or target}")
    tree = _parse(path)
    found = [n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name]
    if not found:
        raise LookupError(f"{target}: {module} defines no class or function {name}")
    return found[-1]


def _source(module: str) -> str | None:
    """The file of a module. ``importlib.util.find_spec`` would import the packages around it."""
    top, *below = module.split(".")
    spec = importlib.util.find_spec(top) if top else None
    for name in below:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", spec.submodule_search_locations)
    return spec.origin if spec is not None and str(spec.origin).endswith(".py") else None


@cache
def _parse(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"), filename=path)

"""A class is abstract or final: what a class has written out, no class below it writes otherwise."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from types import FunctionType

import beni

CONSTRUCTORS = ("__init__", "__post_init__")
"""Each class has its own, which calls that of the class above."""


def classes(package: str) -> list[type]:
    """All that are written in a package."""
    found = {}
    for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            for value in vars(importlib.import_module(module.name)).values():
                if inspect.isclass(value) and value.__module__.startswith(f"{package}."):
                    found[f"{value.__module__}.{value.__qualname__}"] = value
    return list(found.values())


def written(kind: type) -> Iterator[str]:
    """Methods and properties in the class's own text: not what is abstract, nor what a dataclass makes for it."""
    for name, value in vars(kind).items():
        function = value
        if isinstance(value, property):
            function = value.fget
        elif isinstance(value, cached_property):
            function = value.func
        elif isinstance(value, classmethod | staticmethod):
            function = value.__func__
        function = inspect.unwrap(function) if callable(function) else None
        abstract = getattr(value, "__isabstractmethod__", False)
        if not isinstance(function, FunctionType) or abstract or name in CONSTRUCTORS:
            continue
        if function.__code__.co_filename == inspect.getfile(kind):
            yield name


def overridden(kind: type) -> list[str]:
    """What a class writes anew of the classes above it, those of other packages aside."""
    package = kind.__module__.partition(".")[0]
    above = [base for base in kind.__mro__[1:] if base.__module__.partition(".")[0] == package]
    mine = set(written(kind))
    return [
        f"{kind.__module__}.{kind.__qualname__}.{name} overrides that of {base.__qualname__}"
        for base in above
        for name in written(base)
        if name in mine
    ]


def test_no_class_overrides_a_method_that_a_class_above_it_has_written_out():
    found = classes(beni.__name__)
    assert len(found) > 200
    assert sum(name == "forward" for kind in found for name in written(kind)) > 40  # shape checks hide no method
    assert [line for kind in found for line in overridden(kind)] == []


class Base(ABC):
    @abstractmethod
    def must(self): ...

    @property
    def size(self):
        return 1

    def __len__(self):
        return 1

    def may_not(self):
        return 1


class Fine(Base):
    def __init__(self):
        super().__init__()

    def must(self):
        return 2


class Wrong(Fine):
    @property
    def size(self):
        return 2

    def __len__(self):
        return 2

    @staticmethod
    def may_not():
        return 2

    def must(self):
        return 3


def test_an_overridden_method_or_property_is_found():
    assert overridden(Fine) == []
    names = [line.split()[0].rpartition(".")[2] for line in overridden(Wrong)]
    assert sorted(names) == ["__len__", "may_not", "must", "size"]

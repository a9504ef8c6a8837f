"""Ranges of numbers as a part of their type: ``steps: Annotated[int, AtLeast(1)]``.

They stand on the fields of sections and on the arguments of parts alike, and are read from the source text with the
rest of the annotation (config/types.py). No range holds for ``nan`` or an infinite number.
"""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final


@dataclass(frozen=True)
class Range(ABC):
    """One end of a range."""

    bound: float
    words: ClassVar[str]

    def holds(self, value: float) -> bool:
        """Whether a number is on the right side of the bound."""
        return math.isfinite(value) and self.includes(value)

    @abstractmethod
    def includes(self, value: float) -> bool:
        """Whether a finite number is on the right side of the bound."""

    def describe(self) -> str:
        """The bound in words: ``at least 1``."""
        return f"{self.words} {self.bound:g}"


@final
class AtLeast(Range):
    """``value >= bound``."""

    words = "at least"

    def includes(self, value: float) -> bool:
        return value >= self.bound


@final
class Above(Range):
    """``value > bound``."""

    words = "above"

    def includes(self, value: float) -> bool:
        return value > self.bound


@final
class AtMost(Range):
    """``value <= bound``."""

    words = "at most"

    def includes(self, value: float) -> bool:
        return value <= self.bound


@final
class Below(Range):
    """``value < bound``."""

    words = "below"

    def includes(self, value: float) -> bool:
        return value < self.bound


@dataclass(frozen=True)
class Example:
    """A value that an error message proposes."""

    value: str


@dataclass(frozen=True)
class FieldsOf:
    """A mapping whose keys, with their types, are the fields of the dataclass at this dotted path."""

    path: str


def metadata(nodes: list[ast.expr]) -> list[Range | Example | FieldsOf]:
    """What ``Annotated`` says besides the type, from its source: calls of the classes above with plain arguments.

    Whatever else stands there belongs to others and is not read.
    """
    known: dict[str, Any] = {kind.__name__: kind for kind in (AtLeast, Above, AtMost, Below, Example, FieldsOf)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return [
        known[call.func.id](*(ast.literal_eval(argument) for argument in call.args))
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in known
    ]

"""How a property speaks: it returns what was measured, or raises one of these."""

from __future__ import annotations

from torch import Tensor


class NotMet(Exception):
    """The stage lacks the property; the message says what was found and what was expected."""


class Excused(Exception):
    """The property says nothing about this stage; the message says why."""


def expect(condition: bool, message: str) -> None:
    """Raises ``NotMet`` with ``message`` unless the condition holds."""
    if not condition:
        raise NotMet(message)


def largest(a: Tensor, b: Tensor) -> float:
    """Difference, infinite where the shapes differ."""
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


def some(names: list[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

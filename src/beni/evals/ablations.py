"""Ablations: what is done to the pictures of held-out samples before they are scored. To add one, add it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL.Image import Image as Picture

from beni.data.images import blank_like


@dataclass(frozen=True)
class Ablation:
    """A change of pictures.

    Attributes:
        name: as ``variant`` in scores.jsonl.
        change: a decoded picture to the one that the model is shown.
        suffix: behind the names of metrics and fields: ``eval/accuracy_blank``; empty for pictures as they are.
    """

    name: str
    change: Callable[[Picture], Picture]
    suffix: str


def _as_it_is(picture: Picture) -> Picture:
    return picture


TRUE = Ablation("true", _as_it_is, "")
BLANK = Ablation("blank", blank_like, "_blank")
"""A grey picture of the same size: what an answer owes to the question alone."""

ABLATIONS = (TRUE, BLANK)
"""What every evaluation scores and every gallery shows, in this order."""

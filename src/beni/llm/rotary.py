"""Rotary positions (arXiv 2104.09864) for keys that an llm did not make, turned as it turns its own.

Families differ in which channels make a pair, and say so in a function of their module that all of them call
``rotate_half``; some turn the first channels only. A layer is handed cosines and sines of the positions that it reads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beni.types import Turn

Rotation = Callable[[Tensor], Tensor]
"""A quarter turn of each pair of channels."""


def turn_of(rotate: Rotation | None, arguments: Mapping[str, Any]) -> Turn | None:
    """How a layer that is handed these arguments, and turns keys so, does it; None where it is handed no angles."""
    angles = arguments.get("position_embeddings")
    return partial(turned, angles, rotate) if isinstance(angles, tuple) and rotate is not None else None


@cache
def rotation(kind: type[nn.Module]) -> Rotation | None:
    """``rotate_half`` of the module that a class, or one that it was made of (FSDP2 makes one of each), stands in."""
    found = (getattr(sys.modules.get(base.__module__), "rotate_half", None) for base in kind.__mro__)
    return next((rotate for rotate in found if rotate is not None), None)


def turned(
    angles: tuple[Float[Tensor, "b t r"], Float[Tensor, "b t r"]],
    rotate: Rotation,
    keys: Float[Tensor, "i h n dh"],
    places: Int[Tensor, "i"],
) -> Float[Tensor, "i h n dh"]:
    """The first r channels of heads turned to positions of the flattened pass, of which all rows may have the same."""
    length = angles[0].shape[1]
    rows = places // length if angles[0].shape[0] > 1 else torch.zeros_like(places)
    cosine, sine = (angle[rows, places % length][:, None, None].to(keys.dtype) for angle in angles)
    first, rest = keys[..., : cosine.shape[-1]], keys[..., cosine.shape[-1] :]
    return torch.cat([first * cosine + rotate(first) * sine, rest], -1)

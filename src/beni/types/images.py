"""Pictures on their way to the encoder: how each became views, and what stands for it in the text."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, "i 3 height width"] | list[Float[Tensor, "3 _ _"]]
"""Views ready for an encoder: stacked, or one by one where their sizes differ."""

Markup = tuple[int | str, ...]
"""What stands in the text for one image: numbers of visual tokens, and texts between them (``<row_1_col_1>``)."""

Box = tuple[float, float, float, float]
"""(top, left, bottom, right) of a view in its picture, each in [0, 1] where nothing was added around it."""


@dataclass(frozen=True)
class ImageLayout:
    """How one picture became views.

    Everything but ``boxes`` follows from the picture's size, and what is known of its tokens follows from that: layouts
    that differ in their boxes alone are equal.

    Attributes:
        size: (height, width) of the picture in pixels.
        views: (height, width) in pixels of each encoder input it became, the whole picture at low resolution included
            where there is one.
        tiles: (rows, columns) of the tiles it was cut into.
        scale: which of the nested numbers of visual tokens it gets, where a stage has several.
        boxes: where each view lies, for views whose places depend on the picture's pixels; empty for others, and before
            the pixels were seen (``Views.settled``).
    """

    size: tuple[int, int]
    views: tuple[tuple[int, int], ...]
    tiles: tuple[int, int] = (1, 1)
    scale: int = 0
    boxes: tuple[Box, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class ViewedImage:
    """A picture ready for the encoder: the pixels of its views in order, how they came about, what stands for them."""

    pixels: list[Float[Tensor, "3 _ _"]]
    layout: ImageLayout
    markup: Markup

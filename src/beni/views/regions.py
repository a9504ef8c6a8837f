"""Crops of a picture beside the whole of it: each is cut from the original picture and encoded as a view of its own.

How many there are is fixed, so the length of a sample follows from its size alone as with other views; where they lie
may depend on the pixels, and is found in the loader, once for a picture (``Views.settled``). A crop has the shape of
the picture, and is squashed to the encoder's size as the whole view is. Every crop costs a pass of the encoder; tokens
of regions that cost none are ``resampler=roi_*``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image as Picture
from PIL.Image import Resampling
from torch import Tensor

from beni.nn.boxes import even_windows
from beni.nn.pixels import PictureTransform
from beni.nn.rows import real_tokens
from beni.types import Box, ImageLayout, Markup, TokenSpec, VisualTokens
from beni.views.base import WHOLE
from beni.views.tiled import TiledViews, squashed, transformed

ASSUMED = 0.5
"""Size of the crops, as a share of the picture's sides, that plans assume before the pixels are seen."""


class RegionViews(TiledViews):
    """``(k, n, d) -> (i, ~, d)``: the whole picture, then its regions, the best first. Subclasses are final.

    Args:
        tokens: spec of the tokens of one view.
        tile: (height, width) in pixels of the picture that the encoder wants.
        regions: crops of a picture.
        join: let the resampler see all views of an image at once.
    """

    def __init__(self, tokens: TokenSpec, tile: tuple[int, int], regions: int, join: bool) -> None:
        super().__init__(tokens, 1 + regions, join)
        self.tile, self.regions = tile, regions
        self.finder = self.found

    @abstractmethod
    def propose(self, picture: Picture) -> Sequence[Box]:
        """``regions`` boxes of a picture. Pure: nothing but its pixels counts."""

    def plan(self, size: tuple[int, int]) -> ImageLayout:
        return ImageLayout(size, (self.tile,) * (1 + self.regions))

    def extremes(self) -> list[ImageLayout]:
        return [self.plan(self.tile)]

    def found(self, picture: Picture) -> Sequence[Box]:
        """Where all views of a picture lie."""
        return WHOLE, *self.propose(picture)

    def split(self, picture: Picture, layout: ImageLayout, transform: PictureTransform) -> list[Tensor]:
        crops = [cropped(picture, box, self.tile) for box in self.boxes(layout)[1:]]
        return transformed([squashed(picture, self.tile), *crops], transform)

    def boxes(self, layout: ImageLayout) -> Sequence[Box]:
        return layout.boxes or (WHOLE, *as_boxes(even_windows(self.regions, (ASSUMED,))))

    def around(self) -> tuple[str, str]:
        return "", ""

    def arranged(self, layout: ImageLayout, rows: Sequence[TokenSpec]) -> Markup:
        return (sum(row.n for row in rows),)

    def arrange(self, layout: ImageLayout, rows: VisualTokens) -> VisualTokens:
        return real_tokens(rows)


def cropped(picture: Picture, box: Box, size: tuple[int, int]) -> Picture:
    """A box of a picture at (height, width). Its sides need not fall on pixels: the filter reads the picture itself."""
    height, width = size
    top, left, bottom, right = box
    edges = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    return picture.resize((width, height), Resampling.BICUBIC, box=edges)


def as_boxes(boxes: Tensor | np.ndarray) -> list[Box]:
    """Rows of a table ``(r, 4)`` as boxes."""
    return [(top, left, bottom, right) for top, left, bottom, right in boxes.tolist()]
